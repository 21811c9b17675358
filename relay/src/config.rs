//! What the two configurations share.

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value lies outside its range.
    #[error("set `{setting}` to {expected}; it is {actual}")]
    OutOfRange {
        /// The setting's name, as in a configuration file.
        setting: &'static str,
        /// The range that is accepted.
        expected: &'static str,
        /// The value that was given.
        actual: String,
    },
}

/// Writes a builder's setters and a configuration's getters from one list, so that each setting
/// is documented once.
macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)+) => {
        impl ConfigBuilder {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(mut self, $name: $kind) -> Self {
                    self.$name = $name;
                    self
                }
            )+
        }

        impl Config {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(&self) -> $kind {
                    self.0.$name
                }
            )+
        }
    };
}
pub(crate) use settings;

/// Fails with the setting's name unless `valid`.
pub(crate) fn require(
    valid: bool,
    setting: &'static str,
    expected: &'static str,
    actual: impl std::fmt::Debug,
) -> Result<(), ConfigError> {
    if valid {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        setting,
        expected,
        actual: format!("{actual:?}"),
    })
}
