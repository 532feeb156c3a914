package main

import (
	"context"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// raw passes messages as the bytes that they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (raw) Name() string                       { return "proto" }

// callGrpcGo sends calls through grpc-go over one connection.
func callGrpcGo(where target) tally {
	connection, err := grpc.NewClient("passthrough:///"+where.address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		return tally{err: err}
	}
	defer connection.Close()
	tallies := make([]tally, where.inFlight)
	var group sync.WaitGroup
	for index := range tallies {
		group.Add(1)
		go func() {
			defer group.Done()
			tallies[index] = callInTurn(connection, where, index)
		}()
	}
	group.Wait()
	var all tally
	for _, each := range tallies {
		all.latencies = append(all.latencies, each.latencies...)
		if each.err != nil {
			all.err = each.err
		}
	}
	return all
}

func callInTurn(connection *grpc.ClientConn, where target, number int) tally {
	var found tally
	for calls := uint64(number) << 40; ; calls++ {
		begun := time.Now()
		if !begun.Before(where.until) {
			return found
		}
		ctx := context.Background()
		if where.unique {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", strconv.FormatUint(calls*2654435761, 36))
		}
		var answer []byte
		if found.err = connection.Invoke(ctx, where.path, &where.body, &answer); found.err != nil {
			return found
		}
		found.latencies = append(found.latencies, time.Since(begun))
	}
}
