package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// callHTTP keeps one request in flight on one HTTP/1.1 connection.
func callHTTP(where target) tally {
	var found tally
	socket, err := net.Dial("tcp", where.address)
	if err != nil {
		return tally{err: err}
	}
	defer socket.Close()
	reader := bufio.NewReaderSize(socket, 1<<17)
	before := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\n", where.path, where.address)
	if where.header != "" {
		before = append(append(before, where.header...), "\r\n"...)
	}
	before = fmt.Appendf(before, "Content-Length: %d\r\n", len(where.body))
	request := make([]byte, 0, len(before)+len(where.body)+64)
	for calls := uint64(1); ; calls++ {
		begun := time.Now()
		if !begun.Before(where.until) {
			return found
		}
		request = append(request[:0], before...)
		if where.unique {
			request = append(request, "X-Request-Id: "...)
			request = append(strconv.AppendUint(request, calls*2654435761, 36), "\r\n"...)
		}
		request = append(append(request, "\r\n"...), where.body...)
		if _, found.err = socket.Write(request); found.err != nil {
			return found
		}
		if found.err = readAnswer(reader); found.err != nil {
			return found
		}
		found.latencies = append(found.latencies, time.Since(begun))
	}
}

func readAnswer(reader *bufio.Reader) error {
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
		return fmt.Errorf("answered %q", line)
	}
	length := -1
	for {
		line, err = reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("content-length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New("an answer without Content-Length is not understood")
	}
	_, err = io.CopyN(io.Discard, reader, int64(length))
	return err
}
