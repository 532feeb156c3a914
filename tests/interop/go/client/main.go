// Program interop asks a V2 server through grpc-go: interop SCENARIO ADDRESS DESCRIPTORS. Ends with 1 and says why when
// the server does not answer as it should.
package main

import (
	"fmt"
	"os"
)

var scenarios = map[string]func(*server) error{
	"unary":     unary,
	"stream":    stream,
	"metadata":  metadataScenario,
	"deadline":  deadline,
	"cancel":    cancel,
	"large":     large,
	"gzip":      gzipped,
	"parallel":  parallel,
	"keepalive": keepalive,
	"load":      load,
	"error":     nonASCII,
	"health":    healthScenario,
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name, address, descriptors string) error {
	scenario, known := scenarios[name]
	if !known {
		return fmt.Errorf("there is no scenario %q", name)
	}
	found, err := open(address, descriptors)
	if err != nil {
		return err
	}
	return scenario(found)
}
