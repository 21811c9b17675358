//! Circuit Relay v2 for libp2p: a server and a client that keeps its reservations
