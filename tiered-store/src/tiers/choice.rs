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
    let small: Vec<&PackUse> = packs
        .iter()
        .filter(|pack| is_small(pack) && !is_emptyish(pack))
        .collect();
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
