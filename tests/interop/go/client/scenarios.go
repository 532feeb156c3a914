package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

const patience = time.Minute

func floats(values ...float32) []byte {
	raw := []byte{}
	for _, value := range values {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(value))
	}
	return raw
}

func strings(values ...[]byte) []byte {
	raw := []byte{}
	for _, value := range values {
		raw = append(binary.LittleEndian.AppendUint32(raw, uint32(len(value))), value...)
	}
	return raw
}

func limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// with runs a scenario on one connection.
func (s *server) with(run func(context.Context, *grpc.ClientConn) error, options ...grpc.DialOption) error {
	connection, err := s.dial(options...)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, end := limited()
	defer end()
	return run(ctx, connection)
}

// echo asks for the same bytes back.
func (s *server) echo(ctx context.Context, connection *grpc.ClientConn, id string, options ...grpc.CallOption) error {
	number, _ := strconv.Atoi(id)
	raw := floats(float32(number), 1, 2, 3)
	answer, err := s.ask(ctx, connection, "ModelInfer", s.infer("ident", id, "FP32", 1, raw), options...)
	if err != nil {
		return err
	}
	if !bytes.Equal(output(answer), raw) || text(answer, "id") != id {
		return fmt.Errorf("asked for %s, got %v", id, answer)
	}
	return nil
}

func expect(code codes.Code, err error) error {
	if status.Code(err) != code {
		return fmt.Errorf("wanted %v, got %w", code, err)
	}
	return nil
}

func unary(s *server) error {
	return s.with(func(ctx context.Context, connection *grpc.ClientConn) error {
		live, err := s.ask(ctx, connection, "ServerLive", s.message("ServerLiveRequest"))
		if err != nil || !live.Get(field(live, "live")).Bool() {
			return fmt.Errorf("not live: %v %w", live, err)
		}
		about := s.filled("ModelMetadataRequest", `{"name": "ident"}`)
		model, err := s.ask(ctx, connection, "ModelMetadata", about)
		if err != nil || text(model, "name") != "ident" {
			return fmt.Errorf("no metadata: %v %w", model, err)
		}
		return s.echo(ctx, connection, "7")
	})
}

func stream(s *server) error {
	const count, wrong = 300, 150
	return s.with(func(ctx context.Context, connection *grpc.ClientConn) error {
		opened, err := s.stream(ctx, connection)
		if err != nil {
			return err
		}
		both := errgroup.Group{}
		both.Go(func() error { return s.sendAll(opened, count, wrong) })
		both.Go(func() error { return s.receiveAll(opened, count, wrong) })
		return both.Wait()
	})
}

func (s *server) sendAll(opened grpc.ClientStream, count, wrong int) error {
	for index := range count {
		model := "ident"
		if index == wrong {
			model = "nope"
		}
		request := s.infer(model, strconv.Itoa(index), "FP32", 1, floats(float32(index), 0, 0, 0))
		if err := opened.SendMsg(request); err != nil {
			return err
		}
	}
	return opened.CloseSend()
}

func (s *server) receiveAll(opened grpc.ClientStream, count, wrong int) error {
	for index := range count {
		answer := s.message("ModelStreamInferResponse")
		if err := opened.RecvMsg(answer); err != nil {
			return fmt.Errorf("after %d answers: %w", index, err)
		}
		inference := answer.Get(field(answer, "infer_response")).Message()
		failed := text(answer, "error_message") != ""
		fine := bytes.Equal(output(inference), floats(float32(index), 0, 0, 0))
		if text(inference, "id") != strconv.Itoa(index) || failed != (index == wrong) || fine == failed {
			return fmt.Errorf("answer %d is %v", index, answer)
		}
	}
	if err := opened.RecvMsg(s.message("ModelStreamInferResponse")); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the stream did not end well: %w", err)
	}
	return nil
}

func metadataScenario(s *server) error {
	every := make([]byte, 256)
	for index := range every {
		every[index] = byte(index)
	}
	pairs := []string{"triton_grpc_error", "true", "some-bin", string(every), "some-bin", "", "some-text", "a, b;c=\"d\""}
	for index := range 40 {
		pairs = append(pairs, fmt.Sprintf("name-%d", index), "value")
	}
	return s.with(func(ctx context.Context, connection *grpc.ClientConn) error {
		ctx = metadata.AppendToOutgoingContext(ctx, pairs...)
		if err := s.echo(ctx, connection, "1"); err != nil {
			return err
		}
		opened, err := s.stream(ctx, connection)
		if err != nil {
			return err
		}
		if err := opened.SendMsg(s.infer("nope", "1", "FP32", 1, floats(0, 0, 0, 0))); err != nil {
			return err
		}
		return expect(codes.NotFound, opened.RecvMsg(s.message("ModelStreamInferResponse")))
	})
}

func deadline(s *server) error {
	return s.with(func(ctx context.Context, connection *grpc.ClientConn) error {
		calls := errgroup.Group{}
		for range 8 {
			calls.Go(func() error {
				short, end := context.WithTimeout(ctx, 50*time.Millisecond)
				defer end()
				_, err := s.ask(short, connection, "ModelInfer", s.infer("slow", "", "FP32", 1, floats(0, 0, 0, 0)))
				return expect(codes.DeadlineExceeded, err)
			})
		}
		if err := calls.Wait(); err != nil {
			return err
		}
		return s.echo(ctx, connection, "1")
	})
}

func cancel(s *server) error {
	return s.with(func(ctx context.Context, connection *grpc.ClientConn) error {
		calls := errgroup.Group{}
		cut, end := context.WithCancel(ctx)
		for range 8 {
			calls.Go(func() error {
				_, err := s.ask(cut, connection, "ModelInfer", s.infer("slow", "", "FP32", 1, floats(0, 0, 0, 0)))
				return expect(codes.Canceled, err)
			})
		}
		err := s.echo(ctx, connection, "1")
		end()
		return errors.Join(err, calls.Wait(), s.echo(ctx, connection, "2"))
	})
}

func (s *server) echoText(ctx context.Context, connection *grpc.ClientConn, size int, options ...grpc.CallOption) error {
	big := make([]byte, size)
	for index := range big {
		big[index] = byte(index*index>>20) & 0x7f
	}
	raw := strings(big, nil, []byte("x"), []byte("é"))
	answer, err := s.ask(ctx, connection, "ModelInfer", s.infer("text", "", "BYTES", 1, raw), options...)
	if err == nil && !bytes.Equal(output(answer), raw) {
		err = fmt.Errorf("%d bytes came back as %d others", len(raw), len(output(answer)))
	}
	return err
}

func large(s *server) error {
	return s.with(func(ctx context.Context, connection *grpc.ClientConn) error {
		calls := errgroup.Group{}
		for range 3 {
			calls.Go(func() error { return s.echoText(ctx, connection, 8<<20) })
		}
		return calls.Wait()
	})
}

// packing notes whether answers came packed.
type packing struct{ packed atomic.Bool }

func (p *packing) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (p *packing) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (p *packing) HandleConn(context.Context, stats.ConnStats)                       {}

func (p *packing) HandleRPC(_ context.Context, seen stats.RPCStats) {
	if payload, is := seen.(*stats.InPayload); is && payload.CompressedLength < payload.Length/2 {
		p.packed.Store(true)
	}
}

// gzipped needs a server that packs its answers.
func gzipped(s *server) error {
	seen := &packing{}
	return s.with(func(ctx context.Context, connection *grpc.ClientConn) error {
		both := grpc.UseCompressor(gzip.Name)
		if err := errors.Join(s.echoText(ctx, connection, 1<<20, both), s.echo(ctx, connection, "1", both)); err != nil {
			return err
		}
		if !seen.packed.Load() {
			return errors.New("the answers were not packed")
		}
		return nil
	}, grpc.WithStatsHandler(seen))
}

func parallel(s *server) error {
	const connections, callers, each = 3, 32, 40
	all := errgroup.Group{}
	for connection := range connections {
		all.Go(func() error {
			return s.with(func(ctx context.Context, opened *grpc.ClientConn) error {
				calls := errgroup.Group{}
				for caller := range callers {
					calls.Go(func() error {
						for call := range each {
							id := strconv.Itoa((connection*callers+caller)*each + call)
							if err := s.echo(ctx, opened, id); err != nil {
								return err
							}
						}
						return nil
					})
				}
				return calls.Wait()
			})
		})
	}
	return all.Wait()
}

// keepalive pings by itself: grpc-go's own pings come ten seconds apart at least.
func keepalive(s *server) error {
	raw, err := net.Dial("tcp", s.address)
	if err != nil {
		return err
	}
	defer raw.Close()
	connection, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(raw)
	if err != nil {
		return err
	}
	ctx, end := limited()
	defer end()
	for index := range 50 {
		if err := connection.Ping(ctx); err != nil {
			return fmt.Errorf("ping %d: %w", index, err)
		}
	}
	return s.with(func(ctx context.Context, opened *grpc.ClientConn) error { return s.echo(ctx, opened, "1") })
}

// load calls until standard input ends, and says how often.
func load(s *server) error {
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	return s.with(func(ctx context.Context, connection *grpc.ClientConn) error {
		callers := errgroup.Group{}
		for range 8 {
			callers.Go(func() error {
				for call := 0; ; call++ {
					select {
					case <-over:
						return nil
					default:
					}
					if err := s.echo(ctx, connection, strconv.Itoa(call)); err != nil {
						return fmt.Errorf("call %d: %w", call, err)
					}
				}
			})
		}
		return callers.Wait()
	})
}

func nonASCII(s *server) error {
	const name = "модель 名前 ☃ 100%"
	return s.with(func(ctx context.Context, connection *grpc.ClientConn) error {
		_, err := s.ask(ctx, connection, "ModelInfer", s.infer(name, "", "FP32", 1, floats(0, 0, 0, 0)))
		want := fmt.Sprintf("Request for unknown model: '%s' is not found", name)
		if status.Code(err) != codes.NotFound || status.Convert(err).Message() != want {
			return fmt.Errorf("wanted %q, got %w", want, err)
		}
		nothing := s.message("ServerLiveRequest")
		return expect(codes.Unimplemented, connection.Invoke(ctx, "/nowhere.Service/None", nothing, nothing))
	})
}

func healthScenario(s *server) error {
	return s.with(func(ctx context.Context, connection *grpc.ClientConn) error {
		client := health.NewHealthClient(connection)
		answer, err := client.Check(ctx, &health.HealthCheckRequest{})
		if err != nil || answer.Status != health.HealthCheckResponse_SERVING {
			return fmt.Errorf("health is %v: %w", answer, err)
		}
		watch, err := client.Watch(ctx, &health.HealthCheckRequest{Service: service})
		if err != nil {
			return err
		}
		first, err := watch.Recv()
		if err != nil || first.Status != health.HealthCheckResponse_SERVING {
			return fmt.Errorf("watched health is %v: %w", first, err)
		}
		return nil
	})
}
