//! The disk tier: an append-only log of segments.

pub(crate) mod aborts;
pub(crate) mod checkpoint;
pub(crate) mod compact;
mod filler;
mod id_set;
pub(crate) mod index;
pub(crate) mod lane;
pub(crate) mod log;
#[allow(dead_code, reason = "the cold tier calls it")]
pub(crate) mod moves;
pub(crate) mod pins;
pub(crate) mod record;
pub(crate) mod recovery;
pub(crate) mod segment;
mod slots;
mod table;
pub(crate) mod victims;
