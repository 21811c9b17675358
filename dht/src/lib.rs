//! Kademlia for libp2p: providers, closest peers, bootstrap, explicit server or client mode
