package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/multiformats/go-multihash"
)

// One line of stdin; each command uses its own fields.
type command struct {
	ID   uint64 `json:"id"`
	Name string `json:"command"`
	// How long it may take.
	Seconds float64 `json:"seconds"`

	Config  config `json:"config"`
	Address string `json:"address"`
	Peer    string `json:"peer"`
	Topic   string `json:"topic"`
	Data    string `json:"data"`
	CID     string `json:"cid"`
	Bytes   int64  `json:"bytes"`
	// Of the DHT.
	Key   string `json:"key"`
	Value string `json:"value"`
	// Of a new block's CID.
	Version uint64 `json:"version"`
	Codec   uint64 `json:"codec"`
	Hash    uint64 `json:"hash"`
	// Of many blocks.
	Count uint64   `json:"count"`
	CIDs  []string `json:"cids"`
	// Of the universal-connectivity app.
	File     string `json:"file"`
	Text     string `json:"text"`
	Protocol string `json:"protocol"`
}

type fields = map[string]any

var errNoDHT = errors.New("started without a DHT")

func (node *node) run(command *command) (any, error) {
	ctx, cancel := command.context()
	defer cancel()
	switch command.Name {
	case "dial":
		return node.dial(ctx, command.Address)
	case "disconnect":
		id, err := peer.Decode(command.Peer)
		if err != nil {
			return nil, err
		}
		return fields{}, node.host.Network().ClosePeer(id)
	case "connections":
		return node.connections(command.Peer)
	case "identify":
		return node.identify(ctx, command.Peer)
	case "ping":
		return node.pingPeer(ctx, command.Peer)
	case "echo":
		return node.echo(ctx, command.Peer, command.Bytes)
	case "reserve":
		return node.reserve(ctx, command.Address)
	case "punchable":
		return node.punchable(ctx)
	case "reachable":
		return node.reachable(ctx, command.Address)
	case "dial_back":
		return node.dialBack(ctx, command.Peer)
	case "subscribe":
		return node.subscribe(command.Topic)
	case "subscribers":
		return node.subscribers(command.Topic)
	case "publish":
		return node.publish(ctx, command.Topic, command.Data)
	case "provide":
		return node.provide(ctx, command.CID)
	case "find":
		return node.find(ctx, command.CID)
	case "put_value":
		return node.putValue(ctx, command.Key, command.Value)
	case "get_value":
		return node.getValue(ctx, command.Key)
	case "add":
		return node.add(ctx, command)
	case "get":
		return node.get(ctx, command.CID)
	case "generate":
		return node.generate(ctx, command.Count, command.Bytes)
	case "fetch":
		return node.fetch(ctx, command.CIDs)
	case "offer":
		return node.offer(ctx, command.Data)
	case "take":
		return node.take(ctx, command.Peer, command.File)
	case "direct":
		return node.direct(ctx, command.Peer, command.Text)
	case "answer_raw":
		return node.answerRaw(command.File, command.Data)
	case "send_raw":
		return node.sendRaw(ctx, command.Peer, command.Protocol, command.Data)
	default:
		return nil, fmt.Errorf("no command %q", command.Name)
	}
}

func (node *node) dial(ctx context.Context, address string) (any, error) {
	info, err := addressInfo(address)
	if err != nil {
		return nil, err
	}
	if err := node.host.Connect(ctx, *info); err != nil {
		return nil, err
	}
	return fields{"peer": info.ID.String()}, nil
}

func (node *node) connections(name string) (any, error) {
	id, err := peer.Decode(name)
	if err != nil {
		return nil, err
	}
	connections := []fields{}
	for _, connection := range node.host.Network().ConnsToPeer(id) {
		connections = append(connections, fields{
			"address":  connection.RemoteMultiaddr().String(),
			"limited":  connection.Stat().Limited,
			"security": string(connection.ConnState().Security),
			"muxer":    string(connection.ConnState().StreamMultiplexer),
		})
	}
	return fields{"connections": connections}, nil
}

// What identify said about a connected peer; waits until it has.
func (node *node) identify(ctx context.Context, name string) (any, error) {
	id, err := peer.Decode(name)
	if err != nil {
		return nil, err
	}
	done, err := node.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return nil, err
	}
	defer done.Close()
	for {
		protocols, err := node.host.Peerstore().GetProtocols(id)
		if err != nil {
			return nil, err
		}
		if agent, err := node.host.Peerstore().Get(id, "AgentVersion"); err == nil && len(protocols) > 0 {
			version, _ := node.host.Peerstore().Get(id, "ProtocolVersion")
			addresses := []string{}
			for _, address := range node.host.Peerstore().Addrs(id) {
				addresses = append(addresses, address.String())
			}
			return fields{"agent": agent, "version": version, "protocols": protocols, "addresses": addresses}, nil
		}
		select {
		case <-done.Out():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (node *node) pingPeer(ctx context.Context, name string) (any, error) {
	id, err := peer.Decode(name)
	if err != nil {
		return nil, err
	}
	result := <-node.ping.Ping(ctx, id)
	return fields{"microseconds": result.RTT.Microseconds()}, result.Error
}

// Sends random bytes and expects them back.
func (node *node) echo(ctx context.Context, name string, count int64) (any, error) {
	id, err := peer.Decode(name)
	if err != nil {
		return nil, err
	}
	stream, err := node.host.NewStream(ctx, id, echoProtocol)
	if err != nil {
		return nil, err
	}
	defer stream.Reset()
	deadline, _ := ctx.Deadline()
	if err := stream.SetDeadline(deadline); err != nil {
		return nil, err
	}
	sent := make([]byte, count)
	if _, err := rand.Read(sent); err != nil {
		return nil, err
	}
	go func() {
		if _, err := stream.Write(sent); err == nil {
			stream.CloseWrite()
		}
	}()
	received, err := io.ReadAll(stream)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(sent, received) {
		return nil, fmt.Errorf("%d bytes went, %d came back, or others", len(sent), len(received))
	}
	return fields{"bytes": count}, nil
}

func (node *node) reserve(ctx context.Context, address string) (any, error) {
	info, err := addressInfo(address)
	if err != nil {
		return nil, err
	}
	if err := node.host.Connect(ctx, *info); err != nil {
		return nil, err
	}
	reservation, err := client.Reserve(ctx, node.host, *info)
	if err != nil {
		var refused client.ReservationError
		if errors.As(err, &refused) {
			return nil, fmt.Errorf("refused: %s", refused.Status)
		}
		return nil, err
	}
	addresses := []string{}
	for _, address := range reservation.Addrs {
		addresses = append(addresses, address.String())
	}
	result := fields{
		"addresses":       addresses,
		"expires_seconds": int64(time.Until(reservation.Expiration).Seconds()),
		"limit_seconds":   int64(reservation.LimitDuration.Seconds()),
		"limit_bytes":     reservation.LimitData,
	}
	if voucher := reservation.Voucher; voucher != nil {
		result["voucher"] = fields{"relay": voucher.Relay.String(), "peer": voucher.Peer.String()}
	}
	return result, nil
}

// Waits until the node takes part in hole punches: it does once it has been told under which address it is seen.
func (node *node) punchable(ctx context.Context) (any, error) {
	updated, err := node.host.EventBus().Subscribe(new(event.EvtLocalProtocolsUpdated))
	if err != nil {
		return nil, err
	}
	defer updated.Close()
	for !slices.Contains(node.host.Mux().Protocols(), holepunch.Protocol) {
		select {
		case <-updated.Out():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return fields{}, nil
}

func (node *node) topic(name string) (*pubsub.Topic, error) {
	node.mutex.Lock()
	defer node.mutex.Unlock()
	if topic, joined := node.topics[name]; joined {
		return topic, nil
	}
	topic, err := node.pubsub.Join(name)
	if err == nil {
		node.topics[name] = topic
	}
	return topic, err
}

func (node *node) subscribe(name string) (any, error) {
	topic, err := node.topic(name)
	if err != nil {
		return nil, err
	}
	subscription, err := topic.Subscribe()
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			message, err := subscription.Next(context.Background())
			if err != nil {
				return
			}
			if message.GetFrom() == node.host.ID() {
				continue
			}
			node.out.write(fields{
				"event": "message",
				"topic": name,
				"from":  message.GetFrom().String(),
				"data":  base64.StdEncoding.EncodeToString(message.Data),
			})
		}
	}()
	return fields{}, nil
}

func (node *node) subscribers(name string) (any, error) {
	topic, err := node.topic(name)
	if err != nil {
		return nil, err
	}
	// Never null.
	return fields{"peers": append([]peer.ID{}, topic.ListPeers()...)}, nil
}

func (node *node) publish(ctx context.Context, name, data string) (any, error) {
	topic, err := node.topic(name)
	if err != nil {
		return nil, err
	}
	decoded, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, err
	}
	return fields{}, topic.Publish(ctx, decoded)
}

func (node *node) provide(ctx context.Context, name string) (any, error) {
	id, err := cid.Decode(name)
	if err != nil {
		return nil, err
	}
	if err := node.routed(ctx); err != nil {
		return nil, err
	}
	return fields{}, node.dht.Provide(ctx, id, true)
}

// Waits for a peer in the table, where it comes a moment after it was identified: it is asked something first.
func (node *node) routed(ctx context.Context) error {
	if node.dht == nil {
		return errNoDHT
	}
	deadline := time.Now().Add(10 * time.Second)
	for node.dht.RoutingTable().Size() == 0 && time.Now().Before(deadline) && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

func (node *node) putValue(ctx context.Context, key, value string) (any, error) {
	decodedKey, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		return nil, err
	}
	decodedValue, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return nil, err
	}
	if err := node.routed(ctx); err != nil {
		return nil, err
	}
	return fields{}, node.dht.PutValue(ctx, string(decodedKey), decodedValue)
}

func (node *node) getValue(ctx context.Context, key string) (any, error) {
	decoded, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		return nil, err
	}
	if err := node.routed(ctx); err != nil {
		return nil, err
	}
	value, err := node.dht.GetValue(ctx, string(decoded))
	if err != nil {
		return nil, err
	}
	return fields{"value": base64.StdEncoding.EncodeToString(value)}, nil
}

func (node *node) find(ctx context.Context, name string) (any, error) {
	id, err := cid.Decode(name)
	if err != nil {
		return nil, err
	}
	if node.dht == nil {
		return nil, errNoDHT
	}
	found := []string{}
	for provider := range node.dht.FindProvidersAsync(ctx, id, 0) {
		if name := provider.ID.String(); !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	return fields{"peers": found}, nil
}

func (node *node) add(ctx context.Context, command *command) (any, error) {
	data, err := base64.StdEncoding.DecodeString(command.Data)
	if err != nil {
		return nil, err
	}
	prefix := cid.Prefix{Version: command.Version, Codec: command.Codec, MhType: command.Hash, MhLength: -1}
	if command.Hash == multihash.SHA2_256 {
		// Without a length, CIDv0 is refused.
		prefix.MhLength = 32
	}
	id, err := prefix.Sum(data)
	if err != nil {
		return nil, err
	}
	block, err := blocks.NewBlockWithCid(data, id)
	if err != nil {
		return nil, err
	}
	if err := node.blocks.Put(ctx, block); err != nil {
		return nil, err
	}
	return fields{"cid": id.String()}, node.bitswap.NotifyNewBlocks(ctx, block)
}

func (node *node) get(ctx context.Context, name string) (any, error) {
	id, err := cid.Decode(name)
	if err != nil {
		return nil, err
	}
	block, err := node.bitswap.GetBlock(ctx, id)
	if err != nil {
		return nil, err
	}
	return fields{"data": base64.StdEncoding.EncodeToString(block.RawData())}, nil
}
