//! NAT lab, foreign peers and comparisons for Anypath

pub mod compare;
pub mod lab;
pub mod peers;
pub mod soak;
