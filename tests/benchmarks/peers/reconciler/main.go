// SPDX-License-Identifier: Apache-2.0

// The peer of tests/benchmarks/reconciler_side.py: the same work on the reconciler of
// github.com/cilium/statedb. Prints objects per second and the bytes in use at the end.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/cilium/hive"
	"github.com/cilium/hive/cell"
	"github.com/cilium/hive/job"
	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
	"github.com/cilium/statedb/reconciler"
	"golang.org/x/time/rate"
)

var (
	objects = flag.Int("objects", 1_000_000, "number of objects")
	batch   = flag.Int("batch", 1_000, "objects a transaction and a round")
)

type item struct {
	id     uint64
	status reconciler.Status
}

func (i *item) TableHeader() []string { return []string{"ID", "Status"} }
func (i *item) TableRow() []string    { return []string{fmt.Sprint(i.id), i.status.String()} }

func clone(i *item) *item                          { c := *i; return &c }
func getStatus(i *item) reconciler.Status          { return i.status }
func setStatus(i *item, s reconciler.Status) *item { i.status = s; return i }

var byID = statedb.Index[*item, uint64]{
	Name:       "id",
	FromObject: func(i *item) index.KeySet { return index.NewKeySet(index.Uint64(i.id)) },
	FromKey:    index.Uint64,
	Unique:     true,
}

// nothing is a target that does nothing.
type nothing struct{ updates int }

func (n *nothing) Update(context.Context, statedb.ReadTxn, statedb.Revision, *item) error {
	n.updates++
	return nil
}

func (n *nothing) Delete(context.Context, statedb.ReadTxn, statedb.Revision, *item) error {
	return nil
}

func (n *nothing) Prune(context.Context, statedb.ReadTxn, iter.Seq2[*item, statedb.Revision]) error {
	return nil
}

func inUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func insert(db *statedb.DB, table statedb.RWTable[*item], first int) {
	txn := db.WriteTxn(table)
	for id := first; id < min(first+*batch, *objects); id++ {
		if _, _, err := table.Insert(txn, &item{uint64(id), reconciler.StatusPending()}); err != nil {
			panic(err)
		}
	}
	txn.Commit()
}

func waitForAll(db *statedb.DB, table statedb.Table[*item]) {
	for {
		last, _, watch, found := table.GetWatch(db.ReadTxn(), byID.Query(uint64(*objects-1)))
		if found && last.status.Kind == reconciler.StatusKindDone {
			return
		}
		<-watch
	}
}

func main() {
	flag.Parse()
	target := &nothing{}
	var db *statedb.DB
	var table statedb.RWTable[*item]
	app := hive.New(
		cell.SimpleHealthCell,
		statedb.Cell,
		job.Cell,
		cell.Module("bench", "Benchmark",
			cell.Provide(job.Registry.NewGroup),
			cell.Invoke(func(d *statedb.DB, params reconciler.Params) (err error) {
				db = d
				if table, err = statedb.NewTable(db, "items", byID); err != nil {
					return err
				}
				limit := reconciler.WithRoundLimits(*batch, rate.NewLimiter(1000, 10))
				_, err = reconciler.Register(params, table, clone, setStatus, getStatus, target, nil, limit)
				return err
			}),
		),
	)
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	if err := app.Start(logger, context.Background()); err != nil {
		panic(err)
	}
	before := inUse()
	start := time.Now()
	for first := 0; first < *objects; first += *batch {
		insert(db, table, first)
	}
	waitForAll(db, table)
	elapsed := time.Since(start)
	grown := inUse() - before
	if target.updates != *objects {
		fmt.Fprintf(os.Stderr, "%d updates for %d objects\n", target.updates, *objects)
		os.Exit(1)
	}
	fmt.Printf("%.0f %d\n", float64(*objects)/elapsed.Seconds(), grown)
	if err := app.Stop(logger, context.Background()); err != nil {
		panic(err)
	}
}
