package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/encoding/protowire"
)

// The names of libp2p's universal-connectivity app.
const (
	chatTopic      = "universal-connectivity"
	fileTopic      = "universal-connectivity-file"
	browserTopic   = "universal-connectivity-browser-peer-discovery"
	fileProtocol   = "/universal-connectivity-file/1"
	directProtocol = "/universal-connectivity/dm/1.0.0"
)

// What a message may have here; the app's go-peer sets no limit.
const maxFrame = 64 << 20

var errNoRoom = errors.New("started without universal")

// What is done in the app's room: go-peer's topics and requests, and what js-peer answers to them.
type room struct {
	mutex sync.Mutex
	// By their ids: what goes out when one is asked for.
	files map[string][]byte
}

func (node *node) enterRoom() error {
	node.room = &room{files: map[string][]byte{}}
	node.host.SetStreamHandler(fileProtocol, node.serveFile)
	node.host.SetStreamHandler(directProtocol, node.takeDirect)
	// As go-peer, it passes on what browsers announce of themselves.
	for _, topic := range []string{chatTopic, fileTopic, browserTopic} {
		if _, err := node.subscribe(topic); err != nil {
			return err
		}
	}
	return nil
}

func (room *room) put(id string, answer []byte) {
	room.mutex.Lock()
	defer room.mutex.Unlock()
	room.files[id] = answer
}

func (node *node) serveFile(stream network.Stream) {
	id, err := readFrame(bufio.NewReader(stream))
	if err != nil {
		stream.Reset()
		return
	}
	node.room.mutex.Lock()
	answer, known := node.room.files[string(id)]
	node.room.mutex.Unlock()
	if !known {
		stream.Reset()
		return
	}
	if _, err := stream.Write(answer); err != nil {
		stream.Reset()
		return
	}
	stream.Close()
}

func (node *node) takeDirect(stream network.Stream) {
	text, err := readDirect(stream)
	if err != nil {
		stream.Reset()
		return
	}
	node.out.write(fields{"event": "direct", "from": stream.Conn().RemotePeer().String(), "text": text})
	stream.Close()
}

func readDirect(stream network.Stream) (string, error) {
	request, err := readFrame(bufio.NewReader(stream))
	if err != nil {
		return "", err
	}
	content, _, err := directFields(request)
	if err != nil {
		return "", err
	}
	// {1: metadata, 2: status}
	response := appendMetadata(nil)
	response = protowire.AppendTag(response, 2, protowire.VarintType)
	response = protowire.AppendVarint(response, 200)
	_, err = stream.Write(frame(response))
	return content, err
}

// Serves a file and tells the room of it.
func (node *node) offer(ctx context.Context, data string) (any, error) {
	if node.room == nil {
		return nil, errNoRoom
	}
	body, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, err
	}
	id := uuid.NewString()
	node.room.put(id, frame(body))
	_, err = node.publish(ctx, fileTopic, base64.StdEncoding.EncodeToString([]byte(id)))
	return fields{"file": id}, err
}

// Asks one peer for a file, as go-peer does, but reads all of it: go-peer reads once.
func (node *node) take(ctx context.Context, name, file string) (any, error) {
	stream, err := node.open(ctx, name, fileProtocol)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	if _, err := stream.Write(frame([]byte(file))); err != nil {
		return nil, err
	}
	if err := stream.CloseWrite(); err != nil {
		return nil, err
	}
	body, err := readFrame(bufio.NewReader(stream))
	return fields{"data": base64.StdEncoding.EncodeToString(body)}, err
}

// Sends a direct message and waits until the other end has taken it.
func (node *node) direct(ctx context.Context, name, text string) (any, error) {
	stream, err := node.open(ctx, name, directProtocol)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	// {1: metadata, 2: content, 3: type}
	request := appendMetadata(nil)
	request = protowire.AppendTag(request, 2, protowire.BytesType)
	request = protowire.AppendString(request, text)
	request = protowire.AppendTag(request, 3, protowire.BytesType)
	request = protowire.AppendString(request, "text/plain")
	if _, err := stream.Write(frame(request)); err != nil {
		return nil, err
	}
	response, err := readFrame(bufio.NewReader(stream))
	if err != nil {
		return nil, err
	}
	_, status, err := directFields(response)
	if err == nil && status != 200 {
		err = fmt.Errorf("status %d", status)
	}
	return fields{}, err
}

// For what no honest peer does: bytes as they are, for whom asks for a file.
func (node *node) answerRaw(file, data string) (any, error) {
	if node.room == nil {
		return nil, errNoRoom
	}
	id, err := base64.StdEncoding.DecodeString(file)
	if err != nil {
		return nil, err
	}
	answer, err := base64.StdEncoding.DecodeString(data)
	node.room.put(string(id), answer)
	return fields{}, err
}

// Likewise to one peer; returns what comes back until it hangs up.
func (node *node) sendRaw(ctx context.Context, name, protocolName, data string) (any, error) {
	sent, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, err
	}
	stream, err := node.open(ctx, name, protocol.ID(protocolName))
	if err != nil {
		return nil, err
	}
	defer stream.Reset()
	if _, err := stream.Write(sent); err != nil {
		return nil, err
	}
	received, err := io.ReadAll(stream)
	if errors.Is(err, network.ErrReset) {
		err = nil
	}
	return fields{"data": base64.StdEncoding.EncodeToString(received)}, err
}

func (node *node) open(ctx context.Context, name string, id protocol.ID) (network.Stream, error) {
	to, err := peer.Decode(name)
	if err != nil {
		return nil, err
	}
	stream, err := node.host.NewStream(ctx, to, id)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	return stream, stream.SetDeadline(deadline)
}

// A length and so many bytes.
func frame(body []byte) []byte {
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

func readFrame(reader *bufio.Reader) ([]byte, error) {
	length, err := binary.ReadUvarint(reader)
	if err != nil {
		return nil, err
	}
	if length > maxFrame {
		return nil, fmt.Errorf("a frame of %d bytes", length)
	}
	body := make([]byte, length)
	_, err = io.ReadFull(reader, body)
	return body, err
}

func appendMetadata(message []byte) []byte {
	metadata := protowire.AppendTag(nil, 1, protowire.BytesType)
	metadata = protowire.AppendString(metadata, "0.0.1")
	metadata = protowire.AppendTag(metadata, 2, protowire.VarintType)
	metadata = protowire.AppendVarint(metadata, uint64(time.Now().UnixMilli()))
	message = protowire.AppendTag(message, 1, protowire.BytesType)
	return protowire.AppendBytes(message, metadata)
}

// Field 2 of a request, its content, and of a response, its status; a response without metadata is none, as for js-peer.
func directFields(message []byte) (content string, status uint64, err error) {
	hasMetadata := false
	for len(message) > 0 {
		number, kind, length := protowire.ConsumeTag(message)
		if length < 0 {
			return "", 0, protowire.ParseError(length)
		}
		message = message[length:]
		switch {
		case number == 1 && kind == protowire.BytesType:
			hasMetadata = true
		case number == 2 && kind == protowire.BytesType:
			content, _ = protowire.ConsumeString(message)
		case number == 2 && kind == protowire.VarintType:
			status, _ = protowire.ConsumeVarint(message)
		}
		length = protowire.ConsumeFieldValue(number, kind, message)
		if length < 0 {
			return "", 0, protowire.ParseError(length)
		}
		message = message[length:]
	}
	if !hasMetadata {
		err = errors.New("a message without metadata")
	}
	return content, status, err
}
