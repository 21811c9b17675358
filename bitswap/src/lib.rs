//! IPFS bitswap 1.2.0 for rust-libp2p: fetch and serve blocks
