//! A libp2p node that reaches any peer by any path and moves content-addressed files

pub mod config;
