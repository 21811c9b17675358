//! A libp2p node that reaches any peer by any path and moves content-addressed files

pub mod config;
pub mod data_dir;
#[cfg(feature = "files")]
pub mod files;
pub mod identity;
