// A closed-loop load generator for V2 over gRPC and HTTP/1.1: so many requests in flight, each answer sends the next.
//
// It speaks HTTP/2 through the framer of golang.org/x/net and encodes a new header block for each call, so that no server
// can live on having seen the same block before. It prints one line of JSON.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"sync"
	"time"
)

// target is what every connection needs to know.
type target struct {
	address  string
	path     string
	body     []byte
	header   string
	unique   bool
	inFlight int
	until    time.Time
}

// tally is what one connection saw.
type tally struct {
	latencies []time.Duration
	err       error
}

type report struct {
	PerS  float64 `json:"per_s"`
	P50Ms float64 `json:"p50_ms"`
	P99Ms float64 `json:"p99_ms"`
	Calls int     `json:"calls"`
}

func main() {
	protocol := flag.String("protocol", "grpc", "grpc, grpc-go or http")
	address := flag.String("address", "", "host:port")
	path := flag.String("path", "", "path of the request")
	file := flag.String("body", "", "file with the body (gRPC: the message)")
	header := flag.String("header", "", "a further header line (http)")
	connections := flag.Int("connections", 4, "connections")
	inFlight := flag.Int("in-flight", 16, "requests in flight on each connection (http: one)")
	unique := flag.Bool("unique", true, "send a header whose value differs from call to call")
	duration := flag.Duration("duration", 2*time.Second, "how long")
	flag.Parse()
	body, err := os.ReadFile(*file)
	if err != nil {
		fail(err)
	}
	work := map[string]func(target) tally{"grpc": callGrpc, "grpc-go": callGrpcGo, "http": callHTTP}[*protocol]
	if work == nil {
		fail(fmt.Errorf("unknown protocol %q: grpc, grpc-go and http are known", *protocol))
	}
	started := time.Now()
	where := target{*address, *path, body, *header, *unique, *inFlight, started.Add(*duration)}
	tallies := make([]tally, *connections)
	var group sync.WaitGroup
	for index := range tallies {
		group.Add(1)
		go func() {
			defer group.Done()
			tallies[index] = work(where)
		}()
	}
	group.Wait()
	print(tallies, time.Since(started))
}

func print(tallies []tally, spent time.Duration) {
	var all []time.Duration
	for _, each := range tallies {
		if each.err != nil {
			fail(each.err)
		}
		all = append(all, each.latencies...)
	}
	if len(all) == 0 {
		fail(fmt.Errorf("no call was answered"))
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	found := report{float64(len(all)) / spent.Seconds(), ms(all[len(all)/2]), ms(all[len(all)*99/100]), len(all)}
	json.NewEncoder(os.Stdout).Encode(found)
}

func ms(of time.Duration) float64 { return float64(of.Nanoseconds()) / 1e6 }

func fail(err error) {
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
}
