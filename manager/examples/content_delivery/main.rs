//! A small content delivery network on loopback: `cargo run --example content_delivery` shows who reads what from whom.

mod delivery;

use anypath::BoxError;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let data: Vec<u8> = (0..3_000_000_u32).map(|at| (at ^ at >> 8) as u8).collect();
    delivery::deliver(&data, |read| {
        println!(
            "{} read {} bytes: {} came from another site, {} were here",
            read.site,
            read.data.len(),
            read.fetched,
            read.local
        );
    })
    .await
}
