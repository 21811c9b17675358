package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multiaddr"

	// BLAKE3, SHA3 and the others of boxo's list.
	_ "github.com/multiformats/go-multihash/register/all"
)

// Bytes come back as they went; what a circuit lets through shows here.
const echoProtocol = "/anypath-interop/echo/1.0.0"

// What a node is made of; the fields of the command start.
type config struct {
	Listen []string `json:"listen"`
	// Relays for others, with these limits; null relays for nobody. Without seconds and bytes it has no limit that loopback reaches.
	Relay *struct {
		MaxReservations int   `json:"max_reservations"`
		Seconds         int64 `json:"seconds"`
		Bytes           int64 `json:"bytes"`
	} `json:"relay"`
	// client or server; empty for no DHT.
	DHT string `json:"dht"`
	// The versions spoken, best first; empty for all that boxo knows.
	Bitswap []string `json:"bitswap"`
	// Stands behind a NAT and takes part in hole punches.
	Punch bool `json:"punch"`
	// The text of the key file of a private network; empty for none.
	SwarmKey string `json:"swarm_key"`
	// Dials back for those that ask by AutoNAT, and asks others when a command says so.
	Autonat bool `json:"autonat"`
	// Finds others by mDNS, and is found.
	MDNS bool `json:"mdns"`
	// In the room of the universal-connectivity app.
	Universal bool `json:"universal"`
}

type node struct {
	host    host.Host
	ping    *ping.PingService
	bitswap *bitswap.Bitswap
	blocks  blockstore.Blockstore
	dht     *dht.IpfsDHT
	pubsub  *pubsub.PubSub
	autonat *autonatv2.AutoNAT
	room    *room
	out     *output

	mutex  sync.Mutex
	topics map[string]*pubsub.Topic
}

func start(command *command, out *output) (*node, any, error) {
	ctx := context.Background()
	settings := command.Config
	options := []libp2p.Option{
		libp2p.ListenAddrStrings(settings.Listen...),
		libp2p.DisableMetrics(),
	}
	if settings.Punch {
		options = append(options,
			libp2p.ForceReachabilityPrivate(),
			libp2p.EnableHolePunching(holepunch.WithTracer(punches{out})),
		)
	} else {
		// The addresses of loopback are as good as any.
		options = append(options, libp2p.ForceReachabilityPublic())
	}
	if settings.SwarmKey != "" {
		key, err := pnet.DecodeV1PSK(strings.NewReader(settings.SwarmKey))
		if err != nil {
			return nil, nil, err
		}
		options = append(options, libp2p.PrivateNetwork(key))
	}
	if settings.Autonat {
		options = append(options, libp2p.EnableNATService())
	}
	if limits := settings.Relay; limits != nil {
		resources := relay.DefaultResources()
		resources.MaxReservations = limits.MaxReservations
		if limits.Seconds == 0 && limits.Bytes == 0 {
			resources.Limit = nil
			resources.MaxReservationsPerIP = limits.MaxReservations
		} else {
			resources.Limit = &relay.RelayLimit{Duration: time.Duration(limits.Seconds) * time.Second, Data: limits.Bytes}
		}
		options = append(options, libp2p.EnableRelayService(
			relay.WithResources(resources),
			relay.WithReservationAddressFilter(func(multiaddr.Multiaddr) bool { return true }),
		))
	}
	peerHost, err := libp2p.New(options...)
	if err != nil {
		return nil, nil, err
	}
	if settings.Punch {
		peerHost.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, connection network.Conn) {
			out.write(fields{
				"event":        "connected",
				"peer":         connection.RemotePeer().String(),
				"address":      connection.RemoteMultiaddr().String(),
				"microseconds": connection.Stat().Opened.UnixMicro(),
			})
		}})
	}
	peerNode := &node{host: peerHost, out: out, topics: map[string]*pubsub.Topic{}}
	peerNode.ping = ping.NewPingService(peerHost)
	if settings.Autonat {
		if peerNode.autonat, err = startAutonat(peerHost, out); err != nil {
			return nil, nil, err
		}
	}
	peerHost.SetStreamHandler(echoProtocol, func(stream network.Stream) {
		defer stream.Close()
		if _, err := io.Copy(stream, stream); err != nil {
			stream.Reset()
		}
	})

	var protocols []bsnet.NetOpt
	if len(settings.Bitswap) > 0 {
		var versions []protocol.ID
		for _, version := range settings.Bitswap {
			versions = append(versions, protocol.ID(version))
		}
		protocols = append(protocols, bsnet.SupportedProtocols(versions))
	}
	peerNode.blocks = blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	peerNode.bitswap = bitswap.New(ctx, bsnet.NewFromIpfsHost(peerHost, protocols...), nil, peerNode.blocks)

	if settings.DHT != "" {
		mode := dht.ModeClient
		if settings.DHT == "server" {
			mode = dht.ModeServer
		}
		peerNode.dht, err = dht.New(peerHost, dht.Mode(mode), dht.DisableAutoRefresh(), dht.BootstrapPeers())
		if err != nil {
			return nil, nil, err
		}
	}
	peerNode.pubsub, err = pubsub.NewGossipSub(ctx, peerHost)
	if err != nil {
		return nil, nil, err
	}
	if settings.Universal {
		if err := peerNode.enterRoom(); err != nil {
			return nil, nil, err
		}
	}
	if settings.MDNS {
		if err := mdns.NewMdnsService(peerHost, mdns.ServiceName, neighbours{out}).Start(); err != nil {
			return nil, nil, err
		}
	}
	return peerNode, map[string]any{"peer": peerHost.ID().String(), "listen": peerNode.addresses()}, nil
}

// Tells what the hole puncher does.
type punches struct {
	out *output
}

func (punches punches) Trace(event *holepunch.Event) {
	punches.out.write(fields{"event": "punch", "peer": event.Remote.String(), "what": event.Type, "details": event.Evt})
}

// Tells whom mDNS finds.
type neighbours struct {
	out *output
}

func (neighbours neighbours) HandlePeerFound(found peer.AddrInfo) {
	neighbours.out.write(fields{"event": "discovered", "peer": found.ID.String(), "addresses": found.Addrs})
}

// Where the node listens, with its name at the end.
func (node *node) addresses() []string {
	addresses := []string{}
	for _, address := range node.host.Network().ListenAddresses() {
		// The relay client listens, too, nowhere in particular.
		if _, err := address.ValueForProtocol(multiaddr.P_CIRCUIT); err == nil {
			continue
		}
		addresses = append(addresses, fmt.Sprintf("%s/p2p/%s", address, node.host.ID()))
	}
	return addresses
}

// A context that lasts as long as the command may take, and that is content with a relayed connection.
func (command *command) context() (context.Context, context.CancelFunc) {
	ctx := network.WithAllowLimitedConn(context.Background(), "interop")
	return context.WithTimeout(ctx, time.Duration(command.Seconds*float64(time.Second)))
}

func addressInfo(address string) (*peer.AddrInfo, error) {
	parsed, err := multiaddr.NewMultiaddr(address)
	if err != nil {
		return nil, err
	}
	return peer.AddrInfoFromP2pAddr(parsed)
}
