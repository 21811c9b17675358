//! Both cores on virtual time, over a simulated network.

mod client;
mod server;
mod sim;
