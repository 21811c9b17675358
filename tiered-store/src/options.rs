//! What a put can ask for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// When a write returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Durability {
    /// After an fdatasync that it shares with the writes that wait beside it. The default.
    #[default]
    Group,
    /// After an fdatasync of its own.
    Each,
    /// After the write. A power cut may lose it until the next [`flush`](crate::Store::flush), segment end or grouped write;
    /// the death of the process does not. A put that prolongs the time to live of a block that is here is synced all the same: what was
    /// durable must not be lost for it.
    Relaxed,
}

/// What kind of data a block is: a hint for placement. Data that dies together is best kept together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
#[non_exhaustive]
pub enum Class {
    /// Content of files. The default.
    #[default]
    Data = 0,
    /// Small inner nodes of a DAG, read before the data.
    Node = 1,
    /// Can be fetched or computed again at little cost.
    Cache = 2,
}

/// How many reads a new block counts as: the head start that it has against eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
#[non_exhaustive]
pub enum Importance {
    /// Half a read: the first to go.
    Low = 0,
    /// One read. The default.
    #[default]
    Normal = 1,
    /// Eight reads.
    High = 2,
}

impl Importance {
    /// The weight in reads; see [`crate::Heat`](../heat/index.html).
    pub(crate) fn weight(self) -> f32 {
        match self {
            Importance::Low => 0.5,
            Importance::Normal => 1.0,
            Importance::High => 8.0,
        }
    }
}

/// Options of [`Store::put_with`](crate::Store::put_with). `PutOptions::default()` is what [`Store::put`](crate::Store::put) uses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutOptions {
    /// Forget the block after this time, unless it is pinned by then. `None`: never. Of several puts of a block the one that keeps it
    /// longest counts; only [`delete`](crate::Store::delete) takes a block away sooner.
    pub ttl: Option<Duration>,
    /// The head start against eviction.
    pub importance: Importance,
    /// The kind of data.
    pub class: Class,
    /// Pin the block in this set, atomically with the put: after a crash both are there or none.
    pub pin: Option<String>,
    /// When the put returns; `None`: as [`ConfigBuilder::durability`](crate::ConfigBuilder::durability) says.
    pub durability: Option<Durability>,
}

impl PutOptions {
    /// Pins in `set`.
    pub fn pinned(set: impl Into<String>) -> Self {
        PutOptions {
            pin: Some(set.into()),
            ..PutOptions::default()
        }
    }

    /// Forgets the block after `ttl`.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets the head start against eviction.
    pub fn with_importance(mut self, importance: Importance) -> Self {
        self.importance = importance;
        self
    }

    /// Sets the kind of data.
    pub fn with_class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    /// Sets when the put returns.
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }
}
