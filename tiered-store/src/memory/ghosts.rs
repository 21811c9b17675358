//! What is remembered of evicted blocks: their heat, in 8 bytes each.
//!
//! A table of buckets in which the coldest ghost gives way. The key is a 32-bit tag: a stranger that happens to have the same one
//! starts warmer than it should, which about one in a thousand does, and that costs nothing else.

use crate::heat::Heat;

/// Ghosts in a bucket.
const WAYS: usize = 8;
/// A free place.
const FREE: u32 = 0;

#[derive(Debug, Clone, Copy)]
struct Ghost {
    tag: u32,
    heat: Heat,
}

#[derive(Debug, Default)]
pub(super) struct Ghosts {
    buckets: Vec<[Ghost; WAYS]>,
}

fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32 | 1
}

impl Ghosts {
    /// Makes room for `most` ghosts, by halves more, and gives back what is four times too much.
    pub(super) fn resize(&mut self, most: usize) {
        let wanted = most.div_ceil(WAYS);
        let now = self.buckets.len();
        if wanted <= now && now / 4 <= wanted {
            return;
        }
        let buckets = wanted + wanted / 4;
        let empty = Ghost {
            tag: FREE,
            heat: 0.0,
        };
        let old = std::mem::replace(&mut self.buckets, vec![[empty; WAYS]; buckets]);
        for ghost in old.into_iter().flatten().filter(|ghost| ghost.tag != FREE) {
            self.put(ghost);
        }
    }

    pub(super) fn remember(&mut self, hash: u64, heat: Heat) {
        self.put(Ghost {
            tag: tag(hash),
            heat,
        });
    }

    /// The heat of an evicted block that comes back.
    pub(super) fn take(&mut self, hash: u64) -> Option<Heat> {
        let tag = tag(hash);
        let ghost = self
            .bucket(tag)?
            .iter_mut()
            .find(|ghost| ghost.tag == tag)?;
        ghost.tag = FREE;
        Some(ghost.heat)
    }

    pub(super) fn rebase(&mut self, by: Heat) {
        for ghost in self.buckets.iter_mut().flatten() {
            ghost.heat -= by;
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        (self.buckets.capacity() * size_of::<[Ghost; WAYS]>()) as u64
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let all = self.buckets.iter().flatten();
        all.filter(|ghost| ghost.tag != FREE).count()
    }

    fn bucket(&mut self, tag: u32) -> Option<&mut [Ghost; WAYS]> {
        let number = (u64::from(tag) * self.buckets.len() as u64) >> 32;
        self.buckets.get_mut(number as usize)
    }

    fn put(&mut self, ghost: Ghost) {
        let Some(bucket) = self.bucket(ghost.tag) else {
            return;
        };
        // The same, else a free one, else the coldest.
        let rank = |at: &Ghost| match at.tag {
            same if same == ghost.tag => (0, 0.0),
            FREE => (1, 0.0),
            _ => (2, at.heat),
        };
        let place = bucket.iter_mut().min_by(|a, b| {
            let ((a, heat_a), (b, heat_b)) = (rank(a), rank(b));
            a.cmp(&b).then(heat_a.total_cmp(&heat_b))
        });
        if let Some(place) = place {
            *place = ghost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u64 {
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn a_heat_comes_back_once() {
        let mut ghosts = Ghosts::default();
        ghosts.resize(100);
        ghosts.remember(hash(1), 7.0);
        assert_eq!(ghosts.take(hash(2)), None);
        assert_eq!(ghosts.take(hash(1)), Some(7.0));
        assert_eq!(ghosts.take(hash(1)), None);
    }

    #[test]
    fn the_hot_are_remembered_and_the_table_never_outgrows_its_bound() {
        let mut ghosts = Ghosts::default();
        ghosts.resize(1000);
        let bytes = ghosts.bytes();
        assert!(bytes <= 1000 * 8 * 5 / 4 + 64);
        for n in 0..100_000 {
            let heat = if n % 200 == 0 { 10.0 } else { 0.0 };
            ghosts.remember(hash(n), heat);
        }
        assert_eq!(ghosts.bytes(), bytes);
        assert!(ghosts.len() <= 1256);
        let hot = (0..100_000).step_by(200);
        let kept = hot.filter(|n| ghosts.take(hash(*n)).is_some()).count();
        assert!(kept >= 490, "{kept} of 500");
    }

    #[test]
    fn growing_forgets_nothing() {
        let mut ghosts = Ghosts::default();
        ghosts.resize(64);
        for n in 0..32 {
            ghosts.remember(hash(n), n as Heat);
        }
        ghosts.resize(10_000);
        assert!((0..32).all(|n| ghosts.take(hash(n)) == Some(n as Heat)));
        ghosts.resize(8);
        assert!(ghosts.bytes() < 200);
    }
}
