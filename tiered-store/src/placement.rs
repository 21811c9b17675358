//! Where a new block goes: by size, importance and class.
//!
//! Every block is written to the disk's log first, because that is what makes it durable; the cold tier is reached by demotion only. What
//! placement decides is whether the block is in memory too from the start, and its first heat, and by that how soon it leaves either:
//!
//! ```text
//! first heat in reads = importance (½, 1, 8) × class (data 1, node and cache as configured)
//! in memory           = size ≤ memory_put_bytes, or high importance, and it fits
//! ```

use crate::{Class, Importance, Policy, PutOptions};

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Placement {
    /// Offer it to the memory tier at once.
    pub(crate) in_memory: bool,
    /// What it counts as against eviction and demotion, in reads.
    pub(crate) reads: f32,
}

/// A block of high importance may take this part of the memory tier at once.
const LARGEST_PART: u64 = 8;

/// Decides on a new block of `bytes`.
pub(crate) fn place(
    policy: &Policy,
    memory_capacity: u64,
    bytes: usize,
    options: &PutOptions,
) -> Placement {
    let bytes = bytes as u64;
    let class = match options.class {
        Class::Data => 1.0,
        Class::Node => policy.node_reads,
        Class::Cache => policy.cache_reads,
    };
    let is_small = bytes <= u64::from(policy.memory_put_bytes);
    let in_memory = match options.importance {
        Importance::Low => false,
        Importance::Normal => is_small && policy.memory_put_bytes > 0,
        Importance::High => true,
    };
    Placement {
        in_memory: in_memory && bytes <= memory_capacity / LARGEST_PART,
        reads: options.importance.weight() * class,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Role;

    #[test]
    fn size_importance_class_and_role_decide_as_the_table_says() {
        use {
            Class::{Cache, Data, Node},
            Importance::{High, Low, Normal},
            Role::{Leecher, Master, Worker},
        };
        const KIB: usize = 1024;
        // role, bytes, importance, class → in memory, reads
        let table = [
            (Worker, 256 * KIB, Normal, Data, true, 1.0),
            (Worker, 2048 * KIB, Normal, Data, false, 1.0),
            (Worker, 2048 * KIB, High, Data, true, 8.0),
            (Worker, KIB, Low, Data, false, 0.5),
            (Worker, KIB, Normal, Node, true, 2.0),
            (Worker, KIB, Normal, Cache, true, 0.5),
            (Master, 256 * KIB, Normal, Data, false, 1.0),
            (Master, KIB, Normal, Node, true, 8.0),
            (Master, KIB, High, Node, true, 64.0),
            (Leecher, KIB, Normal, Data, false, 1.0),
            (Leecher, KIB, Normal, Cache, false, 1.0),
            (Leecher, KIB, High, Data, true, 8.0),
            (Leecher, 0, Normal, Data, false, 1.0),
            (Leecher, 4096 * KIB, High, Data, false, 8.0),
        ];
        for (role, bytes, importance, class, in_memory, reads) in table {
            let preset = role.preset();
            let options = PutOptions::default()
                .with_importance(importance)
                .with_class(class);
            let placed = place(&preset.policy, preset.memory_capacity, bytes, &options);
            let expected = Placement { in_memory, reads };
            assert_eq!(placed, expected, "{role:?} {bytes} {options:?}");
        }
    }
}
