//! Both cores on virtual time, over a simulated network.

mod client;
mod client_bounds;
mod client_transfers;
mod client_workloads;
mod demand;
mod server;
mod sim;
mod upload;
