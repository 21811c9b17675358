//! Peers announced over gossipsub, wire-compatible with js-libp2p's pubsub-peer-discovery
