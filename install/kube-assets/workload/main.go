// SPDX-License-Identifier: Apache-2.0

// The one program of the test clusters' image: it is the sandbox of each pod, the server behind the
// Services, the client in front of them, and the load.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Answer says who answered and whom the server saw as its client.
type Answer struct {
	Pod    string `json:"pod"`
	Client string `json:"client"`
	Port   string `json:"port"`
}

func main() {
	if len(os.Args) < 2 {
		fatal(fmt.Errorf("usage: workload pause|serve|ask|load ..."))
	}
	commands := map[string]func([]string) error{"pause": pause, "serve": serve, "ask": ask, "load": load}
	command, known := commands[os.Args[1]]
	if !known {
		fatal(fmt.Errorf("no command %q", os.Args[1]))
	}
	if err := command(os.Args[2:]); err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "workload:", err)
	os.Exit(1)
}

func stopped() context.Context {
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	return ctx
}

// pause keeps a pod's namespaces and buries the orphans that end in it.
func pause([]string) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	ctx := stopped()
	for {
		select {
		case <-children:
			for {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// serve answers over HTTP and UDP. /fail and /recover switch what /healthz and /readyz say. After
// SIGTERM it is not ready and goes on serving for the drain time: what a server behind a Service
// owes to clients that have not yet heard of its end.
func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	tcp := flags.String("tcp", ":8080", "address of HTTP")
	udp := flags.String("udp", ":8080", "address of UDP")
	drain := flags.Duration("drain", 0, "how long to serve after SIGTERM")
	flags.Parse(arguments)
	pod, _ := os.Hostname()
	var unhealthy, unready atomic.Bool

	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		local := r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
		_, port, _ := net.SplitHostPort(local)
		json.NewEncoder(w).Encode(Answer{pod, r.RemoteAddr, port})
	})
	probe := func(path string, bad *atomic.Bool) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			if bad.Load() {
				http.Error(w, "told to fail", http.StatusServiceUnavailable)
			}
		})
		mux.HandleFunc(path+"/fail", func(http.ResponseWriter, *http.Request) { bad.Store(true) })
		mux.HandleFunc(path+"/recover", func(http.ResponseWriter, *http.Request) { bad.Store(false) })
	}
	probe("/healthz", &unhealthy)
	probe("/readyz", &unready)

	packets, err := net.ListenPacket("udp", *udp)
	if err != nil {
		return err
	}
	go echo(packets, pod)
	listener, err := net.Listen("tcp", *tcp)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux}
	fmt.Println("serving", pod, listener.Addr())
	ctx := stopped()
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		unready.Store(true)
		fmt.Println("stopping", pod)
		time.Sleep(*drain)
		done <- server.Shutdown(context.Background())
	}()
	if err := server.Serve(listener); err != http.ErrServerClosed {
		return err
	}
	return <-done
}

func echo(packets net.PacketConn, pod string) {
	buffer := make([]byte, 65536)
	for {
		_, client, err := packets.ReadFrom(buffer)
		if err != nil {
			return
		}
		_, port, _ := net.SplitHostPort(packets.LocalAddr().String())
		text, _ := json.Marshal(Answer{pod, client.String(), port})
		packets.WriteTo(append(text, '\n'), client)
	}
}

// ask prints the answers of http:// or udp:// addresses, one a line; it fails at the first that
// does not answer. Each request has a connection of its own.
func ask(arguments []string) error {
	flags := flag.NewFlagSet("ask", flag.ExitOnError)
	times := flags.Int("times", 1, "how often")
	wait := flags.Duration("wait", 3*time.Second, "for one answer")
	flags.Parse(arguments)
	for _, text := range flags.Args() {
		target, err := url.Parse(text)
		if err != nil {
			return err
		}
		for range *times {
			one := askHTTP
			if target.Scheme == "udp" {
				one = askUDP
			}
			if err := one(target, *wait, os.Stdout); err != nil {
				return err
			}
		}
	}
	return nil
}

func askHTTP(target *url.URL, wait time.Duration, to io.Writer) error {
	client := http.Client{Timeout: wait, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(target.String())
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(to, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", target, response.Status)
	}
	return nil
}

func askUDP(target *url.URL, wait time.Duration, to io.Writer) error {
	connection, err := net.Dial("udp", target.Host)
	if err != nil {
		return err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(wait))
	if _, err := connection.Write([]byte("?")); err != nil {
		return err
	}
	buffer := make([]byte, 65536)
	size, err := connection.Read(buffer)
	if err != nil {
		return err
	}
	_, err = to.Write(buffer[:size])
	return err
}

// load asks each address at a fixed rate, whatever the answers take, until its time is over, its
// input closes or it is stopped, and prints one JSON object: what was sent, what failed and why, and
// the longest time in which an address gave no good answer.
func load(arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	rate := flags.Int("rate", 200, "requests a second, over all addresses")
	last := flags.Duration("for", time.Hour, "how long")
	wait := flags.Duration("wait", 5*time.Second, "for one answer; what takes longer has failed")
	flags.Parse(arguments)
	var targets []*url.URL
	for _, text := range flags.Args() {
		target, err := url.Parse(text)
		if err != nil {
			return err
		}
		targets = append(targets, target)
	}
	ctx, cancel := context.WithTimeout(stopped(), *last)
	go func() { io.Copy(io.Discard, os.Stdin); cancel() }()
	started := time.Now()
	total := Load{Pods: map[string]int{}, Errors: map[string]int{}, answered: map[string]time.Time{}}
	for _, target := range targets {
		total.answered[target.Host] = started
	}
	var running sync.WaitGroup
	ticks := time.NewTicker(time.Second / time.Duration(*rate))
	fmt.Fprintln(os.Stderr, "started")
	for ctx.Err() == nil {
		select {
		case <-ticks.C:
			target := targets[total.Sent%len(targets)]
			total.Sent++
			running.Add(1)
			go func() { defer running.Done(); total.one(target, *wait) }()
		case <-ctx.Done():
		}
	}
	running.Wait()
	for host := range total.answered {
		total.gap(host)
	}
	total.Seconds = time.Since(started).Seconds()
	return json.NewEncoder(os.Stdout).Encode(&total)
}

// Load is what became of the requests.
type Load struct {
	mutex     sync.Mutex
	Sent      int            `json:"sent"`
	Failed    int            `json:"failed"`
	Seconds   float64        `json:"seconds"`
	SlowestMs float64        `json:"slowest_ms"`
	GapMs     float64        `json:"gap_ms"`
	Pods      map[string]int `json:"pods"`
	Errors    map[string]int `json:"errors"`
	answered  map[string]time.Time // when each address last gave a good answer
}

func (total *Load) one(target *url.URL, wait time.Duration) {
	var answer Answer
	var body bytes.Buffer
	started := time.Now()
	err := askHTTP(target, wait, &body)
	if err == nil {
		err = json.Unmarshal(body.Bytes(), &answer)
	}
	took := float64(time.Since(started).Microseconds()) / 1000
	total.mutex.Lock()
	defer total.mutex.Unlock()
	total.SlowestMs = max(total.SlowestMs, took)
	if err != nil {
		total.Failed++
		total.Errors[fmt.Sprintf("%s after %.1f s: %v", target.Host, time.Since(started).Seconds(), err)]++
		return
	}
	total.Pods[answer.Pod]++
	total.gap(target.Host)
	total.answered[target.Host] = time.Now()
}

// gap notes how long an address has given no good answer.
func (total *Load) gap(host string) {
	total.GapMs = max(total.GapMs, float64(time.Since(total.answered[host]).Microseconds())/1000)
}
