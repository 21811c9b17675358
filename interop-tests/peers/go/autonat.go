package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	autonatv1 "github.com/libp2p/go-libp2p/p2p/host/autonat"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/multiformats/go-multiaddr"
)

var errNoAutonat = errors.New("started without AutoNAT")

// Version 2 as the host would start it, but asking what a command says, when it says so.
func startAutonat(asking host.Host, out *output) (*autonatv2.AutoNAT, error) {
	dialer, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		return nil, err
	}
	autonat, err := autonatv2.New(dialer, autonatv2.WithMetricsTracer(verdicts{out}))
	if err != nil {
		return nil, err
	}
	return autonat, autonat.Start(asking)
}

// Tells what the server was asked to dial, and whether it got through.
type verdicts struct {
	out *output
}

func (verdicts verdicts) CompletedRequest(event autonatv2.EventDialRequestCompleted) {
	line := fields{"event": "autonat", "status": event.ResponseStatus.String(), "dial": event.DialStatus.String()}
	if event.DialedAddr != nil {
		line["address"] = event.DialedAddr.String()
	}
	verdicts.out.write(line)
}

func (verdicts) ClientCompletedRequest([]autonatv2.Request, autonatv2.Result, error) {}

// Asks the one server that it is connected to whether an address can be reached (version 2).
func (node *node) reachable(ctx context.Context, address string) (any, error) {
	asked, err := multiaddr.NewMultiaddr(address)
	if err != nil {
		return nil, err
	}
	if node.autonat == nil {
		return nil, errNoAutonat
	}
	requests := []autonatv2.Request{{Addr: asked, SendDialData: true}}
	for {
		result, err := node.autonat.GetReachability(ctx, requests)
		switch {
		// It hears of a server a moment after it was identified.
		case errors.Is(err, autonatv2.ErrNoPeers):
			select {
			case <-time.After(20 * time.Millisecond):
				continue
			case <-ctx.Done():
				return nil, err
			}
		case err != nil:
			return nil, err
		case result.AllAddrsRefused:
			return nil, errors.New("the server refused to dial the address")
		case result.Reachability == network.ReachabilityUnknown:
			return nil, fmt.Errorf("the server cannot tell: %v", result)
		}
		return fields{"reachable": result.Reachability == network.ReachabilityPublic}, nil
	}
}

// Asks a server to dial back, at any address (version 1).
func (node *node) dialBack(ctx context.Context, name string) (any, error) {
	id, err := peer.Decode(name)
	if err != nil {
		return nil, err
	}
	err = autonatv1.NewAutoNATClient(node.host, nil, nil).DialBack(ctx, id)
	if err != nil && !autonatv1.IsDialError(err) {
		return nil, err
	}
	return fields{"reachable": err == nil}, nil
}
