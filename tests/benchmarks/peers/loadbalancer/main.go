// SPDX-License-Identifier: Apache-2.0

// The peer of tests/benchmarks/services_side.py: the benchmark that github.com/cilium/cilium has of
// its own load balancer. It prints its figures itself; PRIVILEGED_TESTS=true uses BPF maps.
package main

import (
	"flag"
	"log/slog"

	"github.com/cilium/cilium/pkg/loadbalancer/benchmark"
)

func main() {
	services := flag.Int("services", 50_000, "number of services")
	flag.Parse()
	benchmark.RunBenchmark(*services, 1, slog.LevelError, false)
}
