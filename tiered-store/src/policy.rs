//! The thresholds of heat: what moves between the tiers, when, and how fast.

use serde::Deserialize;

use crate::Role;

const MIB: u64 = 1024 * 1024;

/// When blocks move between the tiers. Valid by construction: [`PolicyBuilder::build`] makes one.
///
/// A *read* below is a decayed one: it counts 1 at first and half as much after every half-life, which is
/// 16 accesses for each block that the tier keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// See [`PolicyBuilder::promote_reads`].
    pub promote_reads: f32,
    /// See [`PolicyBuilder::hysteresis`].
    pub hysteresis: f32,
    /// See [`PolicyBuilder::demote_at_percent`].
    pub demote_at_percent: u8,
    /// See [`PolicyBuilder::demote_to_percent`].
    pub demote_to_percent: u8,
    /// See [`PolicyBuilder::move_bytes_per_second`].
    pub move_bytes_per_second: u64,
    /// See [`PolicyBuilder::memory_put_bytes`].
    pub memory_put_bytes: u32,
    /// See [`PolicyBuilder::node_reads`].
    pub node_reads: f32,
    /// See [`PolicyBuilder::cache_reads`].
    pub cache_reads: f32,
}

impl Default for Policy {
    /// That of [`Role::Worker`].
    fn default() -> Self {
        Role::default().preset().policy
    }
}

impl Policy {
    /// Starts from nothing said: every setting is the role's.
    pub fn builder() -> PolicyBuilder {
        PolicyBuilder::default()
    }

    /// What holds for [`Role::Worker`], from which the other roles differ.
    pub(crate) const WORKER: Policy = Policy {
        promote_reads: 2.0,
        hysteresis: 1.0,
        demote_at_percent: 95,
        demote_to_percent: 90,
        move_bytes_per_second: 32 * MIB,
        memory_put_bytes: 1024 * 1024,
        node_reads: 2.0,
        cache_reads: 0.5,
    };
}

/// Settings of a [`Policy`]; one that is not set is the role's (see the table at [`Role`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyBuilder {
    promote_reads: Option<f32>,
    hysteresis: Option<f32>,
    demote_at_percent: Option<u8>,
    demote_to_percent: Option<u8>,
    move_bytes_per_second: Option<u64>,
    memory_put_bytes: Option<u32>,
    node_reads: Option<f32>,
    cache_reads: Option<f32>,
}

impl PolicyBuilder {
    /// Decayed reads from which a block in the cold tier comes back to the disk. Range 1 to 1,000.
    pub fn promote_reads(mut self, reads: f32) -> Self {
        self.promote_reads = Some(reads);
        self
    }

    /// How much hotter than what has to leave for it a block must be to be promoted, as a share: 1 means twice as hot. More of it
    /// means fewer bytes moved to and fro. Range 0 to 15.
    pub fn hysteresis(mut self, share: f32) -> Self {
        self.hysteresis = Some(share);
        self
    }

    /// Share of the disk's room for blocks that must be in use before the coldest are demoted, in percent. Range 10 to 100.
    pub fn demote_at_percent(mut self, percent: u8) -> Self {
        self.demote_at_percent = Some(percent);
        self
    }

    /// Share of the disk's room for blocks down to which a demotion goes, in percent. Range 5 to `demote_at_percent`.
    pub fn demote_to_percent(mut self, percent: u8) -> Self {
        self.demote_to_percent = Some(percent);
        self
    }

    /// I/O budget of promotion and demotion together, in bytes a second, at least 64 KiB. A full disk does not wait for it.
    pub fn move_bytes_per_second(mut self, bytes: u64) -> Self {
        self.move_bytes_per_second = Some(bytes);
        self
    }

    /// The largest new block that is kept in memory when it is put; larger ones get there when they are read. 0: none.
    pub fn memory_put_bytes(mut self, bytes: u32) -> Self {
        self.memory_put_bytes = Some(bytes);
        self
    }

    /// Reads that a new block of [`Class::Node`](crate::Class::Node) counts as, times those of its importance. Range 0.01 to 1,000.
    pub fn node_reads(mut self, reads: f32) -> Self {
        self.node_reads = Some(reads);
        self
    }

    /// Reads that a new block of [`Class::Cache`](crate::Class::Cache) counts as, times those of its importance. Range 0.01 to 1,000.
    pub fn cache_reads(mut self, reads: f32) -> Self {
        self.cache_reads = Some(reads);
        self
    }

    /// Fills in what `role` says and checks the ranges.
    pub fn build(self, role: Role) -> Result<Policy, PolicyError> {
        let preset = role.preset().policy;
        let policy = Policy {
            promote_reads: self.promote_reads.unwrap_or(preset.promote_reads),
            hysteresis: self.hysteresis.unwrap_or(preset.hysteresis),
            demote_at_percent: self.demote_at_percent.unwrap_or(preset.demote_at_percent),
            demote_to_percent: self.demote_to_percent.unwrap_or(preset.demote_to_percent),
            move_bytes_per_second: self
                .move_bytes_per_second
                .unwrap_or(preset.move_bytes_per_second),
            memory_put_bytes: self.memory_put_bytes.unwrap_or(preset.memory_put_bytes),
            node_reads: self.node_reads.unwrap_or(preset.node_reads),
            cache_reads: self.cache_reads.unwrap_or(preset.cache_reads),
        };
        policy.check()
    }
}

impl Policy {
    fn check(self) -> Result<Policy, PolicyError> {
        let within = |setting, value: f64, least: f64, most: f64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(PolicyError {
                    setting,
                    given: value,
                    least,
                    most,
                })
            }
        };
        within("promote_reads", f64::from(self.promote_reads), 1.0, 1000.0)?;
        within("hysteresis", f64::from(self.hysteresis), 0.0, 15.0)?;
        within(
            "demote_at_percent",
            f64::from(self.demote_at_percent),
            10.0,
            100.0,
        )?;
        within(
            "demote_to_percent",
            f64::from(self.demote_to_percent),
            5.0,
            f64::from(self.demote_at_percent),
        )?;
        within(
            "move_bytes_per_second",
            self.move_bytes_per_second as f64,
            65536.0,
            f64::MAX,
        )?;
        within("node_reads", f64::from(self.node_reads), 0.01, 1000.0)?;
        within("cache_reads", f64::from(self.cache_reads), 0.01, 1000.0)?;
        Ok(self)
    }
}

/// A setting of [`PolicyBuilder`] is out of range.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{setting} is {given}, it must be between {least} and {most}")]
#[non_exhaustive]
pub struct PolicyError {
    /// Its name.
    pub setting: &'static str,
    /// What was asked for.
    pub given: f64,
    /// The least that is allowed.
    pub least: f64,
    /// The most that is allowed.
    pub most: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_wins_over_the_role_and_the_rest_is_the_roles() {
        let policy = Policy::builder()
            .promote_reads(7.0)
            .build(Role::Leecher)
            .unwrap();
        let leecher = Role::Leecher.preset().policy;
        assert_eq!(
            policy,
            Policy {
                promote_reads: 7.0,
                ..leecher
            }
        );
    }

    #[test]
    fn every_range_is_checked() {
        let builders = [
            Policy::builder().promote_reads(0.5),
            Policy::builder().promote_reads(f32::NAN),
            Policy::builder().hysteresis(-0.1),
            Policy::builder().hysteresis(16.0),
            Policy::builder().demote_at_percent(101),
            Policy::builder()
                .demote_at_percent(50)
                .demote_to_percent(51),
            Policy::builder().move_bytes_per_second(1),
            Policy::builder().node_reads(0.0),
            Policy::builder().cache_reads(f32::INFINITY),
        ];
        for builder in builders {
            assert!(builder.build(Role::Worker).is_err(), "{builder:?}");
        }
    }
}
