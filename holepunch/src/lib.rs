//! Direct connections through NATs for libp2p: DCUtR with true observed addresses
