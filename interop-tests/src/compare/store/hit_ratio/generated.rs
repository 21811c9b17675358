//! Reads of files in IPFS, generated: no trace of them is published.
//!
//! A request names the root of a file, by a Zipf law or one that nobody asks for again, and reads its blocks (leaves of 256 KiB, and a node for
//! each 174 of them, as kubo lays them out) mostly from the first to the last. Several requests run at a time. What is popular drifts.
//! The shape follows what gateways report: many roots are asked for once, and half of the CIDs in the DHT are others a day later.

use super::trace::Trace;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Links of a node in kubo's balanced layout.
const LINKS: u32 = 174;
/// Requests that run at the same time.
const AT_ONCE: usize = 8;

/// What the two shapes differ in.
struct Shape {
    name: &'static str,
    /// Files of the catalogue.
    roots: u32,
    /// Exponent of the Zipf law over them.
    exponent: f64,
    /// Share of requests for a file that is asked for once.
    once: f64,
    /// Mean leaves of a file; they are distributed exponentially.
    leaves: f64,
    /// Share of requests that read all of the file; others read one range.
    whole: f64,
    /// Requests after which another tenth of the catalogue has lost its rank.
    drift: usize,
    /// Accesses to blocks.
    accesses: usize,
}

/// A gateway: pages and pictures of a few blocks, much that is asked for once.
const GATEWAY: Shape = Shape {
    name: "ipfs-gateway",
    roots: 40_000,
    exponent: 0.8,
    once: 0.4,
    leaves: 2.0,
    whole: 1.0,
    drift: 100_000,
    accesses: 1_500_000,
};

/// A node that serves data sets: files of many blocks, read in sequence or in ranges.
const FILES: Shape = Shape {
    name: "ipfs-files",
    roots: 3_000,
    exponent: 1.0,
    once: 0.3,
    leaves: 60.0,
    whole: 0.7,
    drift: 10_000,
    accesses: 1_500_000,
};

/// Both shapes, reproducible by the seed.
pub(super) fn generated(seed: u64) -> [Trace; 2] {
    [GATEWAY, FILES].map(|shape| shape.trace(seed))
}

/// A request under way: the blocks of `root` from `next` to `end`.
struct Request {
    root: u64,
    next: u32,
    end: u32,
}

impl Shape {
    fn trace(&self, seed: u64) -> Trace {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut sum = 0.0;
        let law: Vec<f64> = (1..=self.roots)
            .map(|rank| {
                sum += f64::from(rank).powf(-self.exponent);
                sum
            })
            .collect();
        let mut by_rank: Vec<u64> = (0..u64::from(self.roots)).collect();
        let mut fresh = u64::from(self.roots);
        let mut running: Vec<Request> = Vec::new();
        let mut requests = 0;
        let mut blocks = Vec::with_capacity(self.accesses);
        while blocks.len() < self.accesses {
            if running.len() < AT_ONCE {
                requests += 1;
                if requests % (self.drift / 10) == 0 {
                    // A hundredth of the ranks changes hands.
                    for _ in 0..self.roots / 200 {
                        let (a, b) = (
                            rng.random_range(0..by_rank.len()),
                            rng.random_range(0..by_rank.len()),
                        );
                        by_rank.swap(a, b);
                    }
                }
                let root = if rng.random_bool(self.once) {
                    fresh += 1;
                    fresh
                } else {
                    let draw = rng.random_range(0.0..sum);
                    let rank = law.partition_point(|below| *below < draw);
                    by_rank.get(rank).copied().unwrap_or(0)
                };
                running.push(self.request(root, &mut rng));
                continue;
            }
            let at = rng.random_range(0..running.len());
            let Some(request) = running.get_mut(at) else {
                continue;
            };
            // A node comes before the first leaf that is read below it.
            if request.next.is_multiple_of(LINKS) || blocks.is_empty() {
                blocks.push((request.root, 0, request.next / LINKS));
            }
            blocks.push((request.root, 1, request.next));
            request.next += 1;
            if request.next >= request.end {
                running.swap_remove(at);
            }
        }
        Trace::new(self.name, blocks)
    }

    fn request(&self, root: u64, rng: &mut StdRng) -> Request {
        // The size belongs to the file, not to the request.
        let mut of_root = StdRng::seed_from_u64(root);
        let leaves = (-of_root.random::<f64>().max(1e-9).ln() * self.leaves).ceil();
        let leaves = (leaves as u32).max(1);
        if rng.random_bool(self.whole) {
            return Request {
                root,
                next: 0,
                end: leaves,
            };
        }
        let next = rng.random_range(0..leaves);
        let end = rng.random_range(next..leaves) + 1;
        Request { root, next, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_accesses_and_another_one_others() {
        let [gateway, files] = generated(1);
        assert_eq!(gateway.keys, generated(1)[0].keys);
        assert_ne!(files.keys, generated(2)[1].keys);
    }

    #[test]
    fn the_shapes_are_what_they_are_described_as() {
        for trace in generated(1) {
            let mut reads = vec![0u32; trace.unique()];
            for key in &trace.keys {
                reads[*key as usize] += 1;
            }
            let once = reads.iter().filter(|reads| **reads == 1).count();
            let share = once as f64 / reads.len() as f64;
            println!(
                "{}: {} accesses, {} keys, {:.0} % of them read once",
                trace.name,
                trace.keys.len(),
                reads.len(),
                share * 100.0
            );
            assert!((0.3..0.98).contains(&share));
        }
    }
}
