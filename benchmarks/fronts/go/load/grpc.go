package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	window    = 1<<31 - 1
	perUpdate = 1 << 24
)

// connection is one HTTP/2 connection; everything happens in the goroutine that reads.
type connection struct {
	target
	framer    *http2.Framer
	out       *bufio.Writer
	block     bytes.Buffer
	encoder   *hpack.Encoder
	decoder   *hpack.Decoder
	message   []byte
	calls     uint64
	nextID    uint32
	open      map[uint32]*call
	sendRoom  int64
	callRoom  int64
	frameSize int
	unacked   uint32
	tally     tally
	status    string
	expected  int
}

// call is one request on its way; `left` is what could not be sent yet.
type call struct {
	begun    time.Time
	room     int64
	left     []byte
	received int
}

func callGrpc(where target) tally {
	socket, err := net.Dial("tcp", where.address)
	if err != nil {
		return tally{err: err}
	}
	defer socket.Close()
	c := &connection{target: where, open: map[uint32]*call{}, nextID: 1, sendRoom: 65535, callRoom: 65535, frameSize: 16384}
	c.out = bufio.NewWriterSize(socket, 1<<17)
	c.framer = http2.NewFramer(c.out, bufio.NewReaderSize(socket, 1<<17))
	c.framer.SetReuseFrames()
	c.framer.SetMaxReadFrameSize(1<<24 - 1)
	c.encoder = hpack.NewEncoder(&c.block)
	c.decoder = hpack.NewDecoder(4096, c.sawField)
	c.expected = -1
	c.message = make([]byte, 5, 5+len(where.body))
	binary.BigEndian.PutUint32(c.message[1:], uint32(len(where.body)))
	c.message = append(c.message, where.body...)
	if err := c.run(); err != nil {
		c.tally.err = err
	}
	return c.tally
}

func (c *connection) run() error {
	c.out.WriteString(http2.ClientPreface)
	c.framer.WriteSettings(
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: window},
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
	)
	c.framer.WriteWindowUpdate(0, window-65535)
	for range c.inFlight {
		c.begin()
	}
	for len(c.open) > 0 {
		if err := c.out.Flush(); err != nil {
			return err
		}
		if err := c.read(); err != nil {
			return err
		}
	}
	return nil
}

// begin sends the next call, with a header block of its own.
func (c *connection) begin() {
	c.calls++
	c.block.Reset()
	c.field(":method", "POST")
	c.field(":scheme", "http")
	c.field(":path", c.path)
	c.field(":authority", c.address)
	c.field("content-type", "application/grpc")
	c.field("te", "trailers")
	if c.unique {
		c.field("x-request-id", strconv.FormatUint(c.calls*2654435761, 36))
	}
	id := c.nextID
	c.nextID += 2
	c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block.Bytes(), EndHeaders: true})
	begun := &call{begun: time.Now(), room: c.callRoom, left: c.message}
	c.open[id] = begun
	c.send(id, begun)
}

func (c *connection) field(name, value string) {
	c.encoder.WriteField(hpack.HeaderField{Name: name, Value: value})
}

// send writes what the windows allow.
func (c *connection) send(id uint32, of *call) {
	for len(of.left) > 0 {
		size := min(int64(len(of.left)), int64(c.frameSize), c.sendRoom, of.room)
		if size <= 0 {
			return
		}
		piece := of.left[:size]
		of.left = of.left[size:]
		c.sendRoom -= size
		of.room -= size
		c.framer.WriteData(id, len(of.left) == 0, piece)
	}
}

func (c *connection) read() error {
	frame, err := c.framer.ReadFrame()
	if err != nil {
		return err
	}
	switch frame := frame.(type) {
	case *http2.DataFrame:
		return c.sawData(frame)
	case *http2.HeadersFrame:
		if !frame.HeadersEnded() {
			return errors.New("a header block in pieces is not understood")
		}
		if _, err := c.decoder.Write(frame.HeaderBlockFragment()); err != nil {
			return err
		}
		if frame.StreamEnded() {
			return c.ended(frame.StreamID)
		}
	case *http2.SettingsFrame:
		return c.sawSettings(frame)
	case *http2.WindowUpdateFrame:
		c.sawRoom(frame)
	case *http2.PingFrame:
		if !frame.IsAck() {
			c.framer.WritePing(true, frame.Data)
		}
	case *http2.RSTStreamFrame:
		return fmt.Errorf("the server reset a call: %v", frame.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server goes away: %v %s", frame.ErrCode, frame.DebugData())
	}
	return nil
}

func (c *connection) sawField(field hpack.HeaderField) {
	if field.Name == "grpc-status" {
		c.status = field.Value
	}
}

func (c *connection) sawData(frame *http2.DataFrame) error {
	size := frame.Header().Length
	of := c.open[frame.StreamID]
	if of == nil {
		return fmt.Errorf("data for the unknown stream %d", frame.StreamID)
	}
	of.received += len(frame.Data())
	c.unacked += size
	if c.unacked > perUpdate {
		c.framer.WriteWindowUpdate(0, c.unacked)
		c.unacked = 0
	}
	return nil
}

// ended counts a call and begins the next. Every answer must be well and as long as the first.
func (c *connection) ended(id uint32) error {
	of := c.open[id]
	if c.expected < 0 {
		c.expected = of.received
	}
	if c.status != "0" || of.received != c.expected {
		return fmt.Errorf("an answer with status %q and %d bytes, %d were expected", c.status, of.received, c.expected)
	}
	c.status = ""
	delete(c.open, id)
	now := time.Now()
	c.tally.latencies = append(c.tally.latencies, now.Sub(of.begun))
	if now.Before(c.until) {
		c.begin()
	}
	return nil
}

func (c *connection) sawSettings(frame *http2.SettingsFrame) error {
	if frame.IsAck() {
		return nil
	}
	if value, ok := frame.Value(http2.SettingInitialWindowSize); ok {
		change := int64(value) - c.callRoom
		c.callRoom += change
		for id, of := range c.open {
			of.room += change
			c.send(id, of)
		}
	}
	if value, ok := frame.Value(http2.SettingMaxFrameSize); ok {
		c.frameSize = int(value)
	}
	if value, ok := frame.Value(http2.SettingHeaderTableSize); ok {
		c.encoder.SetMaxDynamicTableSizeLimit(value)
	}
	return c.framer.WriteSettingsAck()
}

func (c *connection) sawRoom(frame *http2.WindowUpdateFrame) {
	if of := c.open[frame.StreamID]; of != nil {
		of.room += int64(frame.Increment)
		c.send(frame.StreamID, of)
		return
	}
	if frame.StreamID != 0 {
		return
	}
	c.sendRoom += int64(frame.Increment)
	for id, of := range c.open {
		c.send(id, of)
	}
}
