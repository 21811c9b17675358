//! Both cores on virtual time, over a simulated network.

mod client;
mod demand;
mod server;
mod sim;
mod upload;
