//! Which blocks leave the disk first: the coldest that are not pinned.

use hashbrown::HashSet;

use super::index::Entry;
use crate::{key::Key, state::Shared};

/// Steps of the heat histogram by which the coldest blocks are found.
const BINS: usize = 2048;

/// The coldest blocks on disk that take at least `bytes` there together, all of them if that is less. Pinned ones and those in `keep` are
/// left out, and so is what is lost already. What is over or damaged is not: whoever moves them finds that out and drops them. Roughly in the order of heat. Looks at the whole index twice.
pub(crate) fn coldest(shared: &Shared, bytes: u64, keep: &HashSet<Key>) -> Vec<Entry> {
    let may_go = |entry: &Entry| {
        entry.pins == 0 && !entry.is_cold() && !entry.is_lost() && !keep.contains(&entry.key())
    };
    let (mut coldest, mut hottest) = (f32::INFINITY, f32::NEG_INFINITY);
    shared.index.for_each(|entry| {
        if may_go(entry) {
            coldest = coldest.min(entry.heat);
            hottest = hottest.max(entry.heat);
        }
    });
    let width = ((hottest - coldest) / BINS as f32).max(f32::MIN_POSITIVE);
    let bin = |heat: f32| (((heat - coldest) / width) as usize).min(BINS - 1);
    let mut bins = vec![0u64; BINS];
    shared.index.for_each(|entry| {
        if may_go(entry)
            && let Some(bin) = bins.get_mut(bin(entry.heat))
        {
            *bin += entry.footprint();
        }
    });
    let (mut sum, mut last) = (0, BINS - 1);
    for (number, in_bin) in bins.iter().enumerate() {
        sum += in_bin;
        if sum >= bytes {
            last = number;
            break;
        }
    }
    // Bins below the last go whole, of the last one as much as is needed.
    let (mut victims, mut marginal, mut taken) = (Vec::new(), Vec::new(), 0);
    shared.index.for_each(|entry| {
        if may_go(entry) {
            match bin(entry.heat) {
                at if at < last => {
                    taken += entry.footprint();
                    victims.push(*entry);
                }
                at if at == last => marginal.push(*entry),
                _ => {}
            }
        }
    });
    marginal.sort_unstable_by(|one, other| one.heat.total_cmp(&other.heat));
    for entry in marginal {
        if taken >= bytes {
            break;
        }
        taken += entry.footprint();
        victims.push(entry);
    }
    victims
}
