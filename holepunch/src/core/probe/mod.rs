//! Who asks whom to dial back, and whom a server serves.

pub(crate) mod client;
pub(crate) mod server;

/// How a dial-back ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Outcome {
    #[default]
    NotTried,
    Reached,
    Unreached,
}
