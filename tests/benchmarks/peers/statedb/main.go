// SPDX-License-Identifier: Apache-2.0

// The peer of tests/benchmarks/statedb_rows.py: reads names of rows from standard input and answers
// each with a figure, doing the same work on github.com/cilium/statedb. Objects are pointers, as
// Cilium stores them, and are made in the measured loop, as ours are.
package main

import (
	"bufio"
	"fmt"
	"math/rand"
	"os"
	"runtime"
	"sort"
	"syscall"
	"time"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
)

const (
	keys   = 1_000
	many   = 100_000
	budget = 250 * time.Millisecond
)

type item struct{ id uint64 }

func (i *item) TableHeader() []string { return []string{"ID"} }
func (i *item) TableRow() []string    { return []string{fmt.Sprint(i.id)} }

type tagged struct {
	id  uint64
	tag uint64
}

func (t *tagged) TableHeader() []string { return []string{"ID"} }
func (t *tagged) TableRow() []string    { return []string{fmt.Sprint(t.id)} }

var byID = statedb.Index[*item, uint64]{
	Name:       "id",
	FromObject: func(i *item) index.KeySet { return index.NewKeySet(index.Uint64(i.id)) },
	FromKey:    index.Uint64,
	Unique:     true,
}

var taggedByID = statedb.Index[*tagged, uint64]{
	Name:       "id",
	FromObject: func(t *tagged) index.KeySet { return index.NewKeySet(index.Uint64(t.id)) },
	FromKey:    index.Uint64,
	Unique:     true,
}

func byTag(unique bool) statedb.Index[*tagged, uint64] {
	return statedb.Index[*tagged, uint64]{
		Name:       "tag",
		FromObject: func(t *tagged) index.KeySet { return index.NewKeySet(index.Uint64(t.tag)) },
		FromKey:    index.Uint64,
		Unique:     unique,
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// clock is the time of day, or with BENCH_CLOCK=cpu the processor time of all threads, the garbage
// collector's included.
func clock() time.Duration {
	if os.Getenv("BENCH_CLOCK") != "cpu" {
		return time.Since(epoch)
	}
	var usage syscall.Rusage
	must(0, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

var epoch = time.Now()

// rate repeats the work for the budget and returns its units per second.
func rate(work func() int) float64 {
	work()
	done := 0
	start := clock()
	for clock()-start < budget {
		done += work()
	}
	return float64(done) / (clock() - start).Seconds()
}

func items() (*statedb.DB, statedb.RWTable[*item]) {
	db := statedb.New()
	return db, must(statedb.NewTable(db, "items", byID))
}

func filled(n uint64) (*statedb.DB, statedb.RWTable[*item]) {
	db, table := items()
	txn := db.WriteTxn(table)
	for id := uint64(0); id < n; id++ {
		table.Insert(txn, &item{id})
	}
	txn.Commit()
	return db, table
}

func filledTagged(n int, unique bool, tag func(int) uint64) (*statedb.DB, statedb.RWTable[*tagged], statedb.Index[*tagged, uint64]) {
	db := statedb.New()
	tags := byTag(unique)
	table := must(statedb.NewTable(db, "tagged", taggedByID, tags))
	txn := db.WriteTxn(table)
	for id := 0; id < n; id++ {
		table.Insert(txn, &tagged{uint64(id), tag(id)})
	}
	txn.Commit()
	return db, table, tags
}

func write(batch uint64) float64 {
	db, table := items()
	return rate(func() int {
		for first := uint64(0); first < keys; first += batch {
			txn := db.WriteTxn(table)
			for id := first; id < first+batch; id++ {
				table.Insert(txn, &item{id})
			}
			txn.Commit()
		}
		return keys
	})
}

func writeSecondary() float64 {
	db := statedb.New()
	table := must(statedb.NewTable(db, "tagged", taggedByID, byTag(false)))
	return rate(func() int {
		for first := uint64(0); first < keys; first += 100 {
			txn := db.WriteTxn(table)
			for id := first; id < first+100; id++ {
				table.Insert(txn, &tagged{id, id & 7})
			}
			txn.Commit()
		}
		return keys
	})
}

func modify() float64 {
	db, table := filled(keys)
	return rate(func() int {
		txn := db.WriteTxn(table)
		for id := uint64(0); id < keys; id++ {
			table.Modify(txn, &item{id}, func(_, new *item) *item { return new })
		}
		txn.Commit()
		return keys
	})
}

func getInsert() float64 {
	db, table := filled(keys)
	return rate(func() int {
		txn := db.WriteTxn(table)
		for id := uint64(0); id < keys; id++ {
			table.Get(txn, byID.Query(id))
			table.Insert(txn, &item{id})
		}
		txn.Commit()
		return keys
	})
}

func shuffled() []int { return rand.New(rand.NewSource(1)).Perm(keys) }

func randomInsert() float64 {
	db, table := items()
	numbers := shuffled()
	return rate(func() int {
		txn := db.WriteTxn(table)
		for _, id := range numbers {
			table.Insert(txn, &item{uint64(id)})
		}
		txn.Abort()
		return keys
	})
}

func randomReplaceSecondary() float64 {
	db, table, _ := filledTagged(keys, false, func(id int) uint64 { return uint64(id & 7) })
	numbers := shuffled()
	return rate(func() int {
		txn := db.WriteTxn(table)
		for _, id := range numbers {
			table.Insert(txn, &tagged{uint64(id), uint64(id & 7)})
		}
		txn.Commit()
		return keys
	})
}

func changes() float64 {
	db, table := items()
	db.Start()
	defer db.Stop()
	txn := db.WriteTxn(table)
	iterator := must(table.Changes(txn))
	txn.Commit()
	return rate(func() int {
		txn := db.WriteTxn(table)
		for id := uint64(0); id < keys; id++ {
			table.Insert(txn, &item{id})
		}
		txn.Commit()
		seen := 0
		next, _ := iterator.Next(db.ReadTxn())
		for change := range next {
			if !change.Deleted {
				seen++
			}
		}
		txn = db.WriteTxn(table)
		table.DeleteAll(txn)
		txn.Commit()
		next, _ = iterator.Next(db.ReadTxn())
		for change := range next {
			if change.Deleted {
				seen++
			}
		}
		if seen != 2*keys {
			panic(seen)
		}
		return keys
	})
}

func iterateLoop() float64 {
	db, table := filled(many)
	txn := db.ReadTxn()
	return rate(func() int {
		number := uint64(0)
		for obj := range table.All(txn) {
			if obj.id != number {
				panic(obj)
			}
			number++
		}
		return int(number)
	})
}

func iterateBulk() float64 {
	db, table := filled(many)
	txn := db.ReadTxn()
	return rate(func() int { return len(statedb.Collect(table.All(txn))) })
}

func listSecondary() float64 {
	db, table, tags := filledTagged(many, false, func(id int) uint64 { return uint64(id % 100) })
	txn := db.ReadTxn()
	return rate(func() int { return len(statedb.Collect(table.List(txn, tags.Query(7)))) })
}

func getPrimary() float64 {
	db, table := filled(many)
	txn := db.ReadTxn()
	return rate(func() int {
		for id := uint64(0); id < many; id++ {
			table.Get(txn, byID.Query(id))
		}
		return many
	})
}

func getSecondary() float64 {
	db, table, tags := filledTagged(many, true, func(id int) uint64 { return uint64(id) })
	txn := db.ReadTxn()
	return rate(func() int {
		for id := uint64(0); id < many; id++ {
			table.Get(txn, tags.Query(id))
		}
		return many
	})
}

func readTxnGet() float64 {
	db, table := filled(many)
	return rate(func() int {
		for id := uint64(0); id < many; id++ {
			table.Get(db.ReadTxn(), byID.Query(id))
		}
		return many
	})
}

func snapshot() float64 {
	db, _ := filled(many)
	return rate(func() int {
		for i := 0; i < keys; i++ {
			db.ReadTxn()
		}
		return keys
	})
}

func commit1Of100() float64 {
	db, table := items()
	for n := 1; n < 100; n++ {
		must(statedb.NewTable(db, fmt.Sprintf("table%d", n), byID))
	}
	return rate(func() int {
		for id := uint64(0); id < 100; id++ {
			txn := db.WriteTxn(table)
			table.Insert(txn, &item{id})
			txn.Commit()
		}
		return 100
	})
}

func wakeP99() float64 {
	db, table := filled(keys)
	var delays []float64
	for i := 0; i < 500; i++ {
		_, _, watch, _ := table.GetWatch(db.ReadTxn(), byID.Query(7))
		started := make(chan time.Time, 1)
		go func() {
			time.Sleep(500 * time.Microsecond)
			txn := db.WriteTxn(table)
			table.Insert(txn, &item{7})
			started <- time.Now()
			txn.Commit()
		}()
		<-watch
		delays = append(delays, float64(time.Since(<-started).Nanoseconds())/1000)
	}
	sort.Float64s(delays)
	return delays[len(delays)*99/100]
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapInuse
}

func bytesPerObject() float64 {
	before := inUse()
	db, _ := filled(2 * many)
	after := inUse()
	runtime.KeepAlive(db)
	return float64(after-before) / (2 * many)
}

var rows = map[string]func() float64{
	"write_1":                  func() float64 { return write(1) },
	"write_10":                 func() float64 { return write(10) },
	"write_100":                func() float64 { return write(100) },
	"write_1000":               func() float64 { return write(1000) },
	"write_100_secondary":      writeSecondary,
	"insert_many_1000":         func() float64 { return write(1000) },
	"modify":                   modify,
	"get_insert":               getInsert,
	"random_insert":            randomInsert,
	"random_replace_secondary": randomReplaceSecondary,
	"changes":                  changes,
	"iterate_loop":             iterateLoop,
	"iterate_bulk":             iterateBulk,
	"list_secondary":           listSecondary,
	"get_primary":              getPrimary,
	"get_secondary":            getSecondary,
	"read_txn_get":             readTxnGet,
	"snapshot":                 snapshot,
	"commit_1_of_100":          commit1Of100,
	"wake_p99_us":              wakeP99,
	"bytes_per_object":         bytesPerObject,
}

func main() {
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		row, known := rows[input.Text()]
		if !known {
			fmt.Println("none")
			continue
		}
		fmt.Println(row())
		runtime.GC()
	}
}
