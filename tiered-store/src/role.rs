//! Presets for what a node is for.

use serde::{Deserialize, Serialize};

use crate::{Durability, Policy};

const MIB: u64 = 1024 * 1024;

/// What a node is for. Sets capacities, durability and thresholds that were not set explicitly.
///
/// | | master | worker (default) | leecher |
/// |---|---|---|---|
/// | keeps | what orchestration reads: manifests, DAG nodes | the data of its tasks | what it read itself, with the least overhead |
/// | memory | 256 MiB | 100 MiB | 16 MiB |
/// | disk | 4 GiB | 1 GiB | 256 MiB |
/// | segment | 64 MiB | 64 MiB | 8 MiB |
/// | bytes that wait for the disk | 16 MiB | 16 MiB | 4 MiB |
/// | durability of a put | group | group | relaxed: it can fetch the block again |
/// | new blocks in memory | up to 64 KiB | up to 1 MiB | none before they are read |
/// | a new DAG node counts as | 8 reads | 2 reads | 2 reads |
/// | a new block of class cache counts as | 0.5 reads | 0.5 reads | 1 read: all it has is cache |
/// | reads before a cold block comes to the disk | 2 | 2 | 4 |
/// | hysteresis | 1 (twice as hot) | 1 (twice as hot) | 3 (four times as hot) |
/// | moves, bytes a second | 32 MiB | 32 MiB | 4 MiB |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Coordinates others: keeps what orchestration needs at hand.
    Master,
    /// Works on tasks: keeps their data.
    #[default]
    Worker,
    /// Consumes, at times offline: caches locally what it read, in little room and with little traffic.
    Leecher,
}

/// What a [`Role`] sets.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Preset {
    /// Bytes of the memory tier.
    pub memory_capacity: u64,
    /// Bytes of the disk tier.
    pub disk_capacity: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Bytes of blocks that may wait for the disk.
    pub queue_bytes: usize,
    /// When a put returns.
    pub durability: Durability,
    /// Thresholds.
    pub policy: Policy,
}

impl Role {
    /// The settings of this role; see the table above.
    pub const fn preset(self) -> Preset {
        let worker = Preset {
            memory_capacity: 100 * MIB,
            disk_capacity: 1024 * MIB,
            segment_bytes: 64 * MIB,
            queue_bytes: 16 * 1024 * 1024,
            durability: Durability::Group,
            policy: Policy::WORKER,
        };
        match self {
            Role::Worker => worker,
            Role::Master => Preset {
                memory_capacity: 256 * MIB,
                disk_capacity: 4096 * MIB,
                policy: Policy {
                    memory_put_bytes: 64 * 1024,
                    node_reads: 8.0,
                    ..Policy::WORKER
                },
                ..worker
            },
            Role::Leecher => Preset {
                memory_capacity: 16 * MIB,
                disk_capacity: 256 * MIB,
                segment_bytes: 8 * MIB,
                queue_bytes: 4 * 1024 * 1024,
                durability: Durability::Relaxed,
                policy: Policy {
                    promote_reads: 4.0,
                    hysteresis: 3.0,
                    move_bytes_per_second: 4 * MIB,
                    memory_put_bytes: 0,
                    cache_reads: 1.0,
                    ..Policy::WORKER
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid() {
        for role in [Role::Master, Role::Worker, Role::Leecher] {
            let preset = role.preset();
            let policy = Policy::builder().build(role).unwrap();
            assert_eq!(policy, preset.policy);
            assert!(preset.disk_capacity >= 16 * preset.segment_bytes);
        }
    }

    #[test]
    fn a_leecher_has_the_least_of_everything_that_costs() {
        let leecher = Role::Leecher.preset();
        for other in [Role::Master, Role::Worker].map(Role::preset) {
            assert!(leecher.memory_capacity < other.memory_capacity);
            assert!(leecher.disk_capacity < other.disk_capacity);
            assert!(leecher.queue_bytes < other.queue_bytes);
            assert!(leecher.policy.move_bytes_per_second < other.policy.move_bytes_per_second);
            assert!(leecher.policy.hysteresis > other.policy.hysteresis);
        }
    }
}
