//! Which packs are written again and which are given up. Pure.

/// A pack, how full it is and what its blocks are worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PackUse {
    pub(crate) pack: u32,
    /// Bytes of the object.
    pub(crate) size: u64,
    /// Bytes of frames that are needed.
    pub(crate) live: u64,
    /// Decayed reads of its blocks together.
    pub(crate) score: f64,
}

/// Packs smaller than this part of a full one are put together when there are as many.
const SMALL_PART: u64 = 8;

/// Packs to be written again as one: those of which less than `percent` is needed, the emptiest first, and many small ones.
pub(crate) fn to_repack(packs: &[PackUse], pack_bytes: u64, percent: u8) -> Vec<u32> {
    let is_emptyish =
        |pack: &&PackUse| u128::from(pack.live) * 100 < u128::from(pack.size) * u128::from(percent);
    let is_small = |pack: &&PackUse| pack.live * SMALL_PART < pack_bytes;
    let mut chosen: Vec<&PackUse> = packs.iter().filter(is_emptyish).collect();
    let mut small: Vec<&PackUse> = packs
        .iter()
        .filter(|pack| is_small(pack) && !is_emptyish(pack))
        .collect();
    small.sort_unstable_by_key(|pack| pack.live);
    // One that outweighs the others waits for more of them, or every block would be written again with every few that come.
    let mut sum: u64 = small.iter().map(|pack| pack.live).sum();
    while let Some(largest) = small.pop_if(|largest| largest.live * 2 > sum) {
        sum -= largest.live;
    }
    if small.len() as u64 >= SMALL_PART {
        chosen.extend(small);
    }
    chosen.sort_unstable_by_key(|pack| (pack.live, pack.pack));
    let mut sum = 0;
    chosen
        .into_iter()
        .take_while(|pack| {
            sum += pack.live;
            sum <= pack_bytes || sum == pack.live
        })
        .map(|pack| pack.pack)
        .collect()
}

/// The pack whose blocks are worth least for the room that it takes.
pub(crate) fn to_evict(packs: &[PackUse]) -> Option<u32> {
    let worth = |pack: &PackUse| pack.score / pack.size.max(1) as f64;
    packs
        .iter()
        .min_by(|one, other| {
            worth(one)
                .total_cmp(&worth(other))
                .then(one.pack.cmp(&other.pack))
        })
        .map(|pack| pack.pack)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(pack: u32, size: u64, live: u64, score: f64) -> PackUse {
        PackUse {
            pack,
            size,
            live,
            score,
        }
    }

    #[test]
    fn packs_below_the_share_go_emptiest_first_until_one_is_full() {
        let packs = [
            pack(1, 100, 50, 1.0),
            pack(2, 100, 49, 1.0),
            pack(3, 100, 10, 1.0),
            pack(4, 100, 45, 1.0),
        ];
        assert_eq!(to_repack(&packs, 100, 50), [3, 4]);
        assert_eq!(to_repack(&packs, 1000, 50), [3, 4, 2]);
        assert_eq!(to_repack(&packs, 1000, 5), [] as [u32; 0]);
        // One alone goes even if it is larger than a pack should be.
        assert_eq!(to_repack(&packs[1..2], 20, 50), [2]);
    }

    #[test]
    fn small_packs_are_put_together_once_there_are_eight() {
        let mut packs: Vec<_> = (0..7).map(|n| pack(n, 11, 10, 1.0)).collect();
        assert_eq!(to_repack(&packs, 100, 50), [] as [u32; 0]);
        packs.push(pack(7, 11, 10, 1.0));
        assert_eq!(to_repack(&packs, 100, 50).len(), 8);
    }

    #[test]
    fn putting_small_packs_together_writes_a_block_a_few_times_and_not_with_every_newcomer() {
        let (mut packs, mut written): (Vec<PackUse>, u64) = (Vec::new(), 0);
        for n in 0..2000 {
            packs.push(pack(n, 10, 10, 1.0));
            let chosen = to_repack(&packs, 1 << 30, 50);
            if chosen.is_empty() {
                continue;
            }
            let together: u64 = packs
                .iter()
                .filter(|pack| chosen.contains(&pack.pack))
                .map(|pack| pack.live)
                .sum();
            packs.retain(|pack| !chosen.contains(&pack.pack));
            packs.push(pack(10_000 + n, together, together, 1.0));
            written += together;
        }
        assert!(packs.len() < 40, "{}", packs.len());
        assert!(written / 10 < 2000 * 6, "{}", written / 10);
    }

    #[test]
    fn the_coldest_room_goes_first() {
        let packs = [
            pack(1, 100, 100, 5.0),
            pack(2, 100, 10, 4.0),
            pack(3, 10, 10, 4.0),
        ];
        assert_eq!(to_evict(&packs), Some(2));
        assert_eq!(to_evict(&[]), None);
    }
}
