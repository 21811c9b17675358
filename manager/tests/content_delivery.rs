//! The example `content_delivery`, on real nodes on loopback.

#[path = "../examples/content_delivery/delivery.rs"]
mod delivery;

use std::time::Duration;

/// A bound that only a hanging test reaches.
const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn each_site_reads_through_and_serves_after_the_one_before_has_gone() {
    let mut data = vec![0; 3_000_000];
    rand::fill(&mut data[..]);
    let mut reads = Vec::new();
    let delivered = delivery::deliver(&data, |read| reads.push(read));
    tokio::time::timeout(SOON, delivered)
        .await
        .unwrap()
        .unwrap();

    let whole = data.len() as u64;
    let (sites, fetched): (Vec<_>, Vec<_>) = reads
        .iter()
        .map(|read| (read.site, read.fetched >= whole))
        .unzip();
    assert_eq!(sites, ["worker", "worker", "leecher", "last leecher"]);
    // Only the second time is everything there already.
    assert_eq!(fetched, [true, false, true, true]);
    assert!(
        reads[1].local >= whole && reads[1].fetched == 0,
        "{} {}",
        reads[1].local,
        reads[1].fetched
    );
    assert!(reads.iter().all(|read| read.data == data));
}
