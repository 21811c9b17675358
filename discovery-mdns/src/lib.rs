//! Peers on the local network: libp2p mDNS over IPv4 and IPv6 at once
