//! Where values come from: file, then environment, then flags; the later one wins.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{Config, ConfigBuilder, ConfigError, KEYS, value::Kind};

/// The prefix of environment variables; the rest is the key in upper case.
const ENVIRONMENT_PREFIX: &str = "ANYPATH_";

/// Variables with the prefix that name something else than a key: where things are, and what the project's own
/// tests tell each other.
const NOT_KEYS: [&str; 3] = ["ANYPATH_DATA_DIR", "ANYPATH_CONFIG", "ANYPATH_BIN"];
const NOT_KEYS_PREFIX: &str = "ANYPATH_LAB_";

/// A value given on the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// The flag as the user wrote it, as in `--port`.
    pub flag: &'static str,
    /// The key that it sets.
    pub key: &'static str,
    /// Its value as text; lists are separated by commas.
    pub value: String,
}

/// Where [`load`] looks, from weakest to strongest.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The configuration file. One that does not exist is an error only if `file_required`.
    pub file: Option<PathBuf>,
    /// Whether the user named the file himself.
    pub file_required: bool,
    /// Environment variables; those without the prefix `ANYPATH_` are ignored.
    pub environment: Vec<(String, String)>,
    /// Flags.
    pub flags: Vec<Flag>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(&'static str),
    /// The default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::Flag(flag) => write!(f, "the flag {flag}"),
            Self::Default => write!(f, "the default"),
        }
    }
}

/// Why the configuration cannot be loaded. Each text names key, value and origin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not valid TOML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        reason: String,
    },
    /// No key has this name.
    #[error("unknown key `{key}` in {origin}; the keys are {}", known_keys())]
    UnknownKey {
        /// The name.
        key: String,
        /// Where it stands.
        origin: Origin,
    },
    /// A value cannot be used.
    #[error("`{key}` = {value} in {origin}: {reason}")]
    Invalid {
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// Where it stands.
        origin: Origin,
        /// What to write instead.
        reason: String,
    },
}

/// Reads every source and builds the configuration.
pub fn load(sources: &Sources) -> Result<Config, LoadError> {
    let mut layered = Layered::default();
    if let Some(path) = &sources.file {
        for (key, value) in read_file(path, sources.file_required)? {
            layered.set(key, value, Origin::File(path.clone()))?;
        }
    }
    // Sorted, so that of two errors always the same one is reported.
    let mut environment: Vec<_> = sources.environment.iter().collect();
    environment.sort();
    for (name, value) in environment {
        let Some(key) = name.strip_prefix(ENVIRONMENT_PREFIX) else {
            continue;
        };
        if !NOT_KEYS.contains(&name.as_str()) && !name.starts_with(NOT_KEYS_PREFIX) {
            layered.set_text(
                key.to_ascii_lowercase(),
                value,
                Origin::Environment(name.clone()),
            )?;
        }
    }
    for Flag { flag, key, value } in &sources.flags {
        layered.set_text((*key).to_owned(), value, Origin::Flag(flag))?;
    }
    layered.build()
}

fn read_file(path: &Path, required: bool) -> Result<toml::Table, LoadError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {
            return Ok(toml::Table::new());
        }
        Err(source) => {
            return Err(LoadError::Unreadable {
                path: path.to_owned(),
                source,
            });
        }
    };
    text.parse()
        .map_err(|error: toml::de::Error| LoadError::Syntax {
            path: path.to_owned(),
            reason: error.to_string(),
        })
}

/// The strongest value of each key so far, with its origin.
#[derive(Default)]
struct Layered {
    values: toml::Table,
    origins: std::collections::BTreeMap<String, Origin>,
}

impl Layered {
    fn set_text(&mut self, key: String, text: &str, origin: Origin) -> Result<(), LoadError> {
        match KEYS.iter().find(|(name, _)| *name == key) {
            Some((_, kind)) => self.set(key, kind.parse(text), origin),
            None => Err(LoadError::UnknownKey { key, origin }),
        }
    }

    fn set(&mut self, key: String, value: toml::Value, origin: Origin) -> Result<(), LoadError> {
        let Some((_, kind)) = KEYS.iter().find(|(name, _)| *name == key) else {
            return Err(LoadError::UnknownKey { key, origin });
        };
        // Each key alone, so that the error is about this one and this origin.
        let alone = toml::Table::from_iter([(key.clone(), value.clone())]);
        if let Err(error) = ConfigBuilder::deserialize(alone) {
            let reason = format!("expected {} ({})", kind.expected(), error.message());
            return Err(LoadError::Invalid {
                value: shown(&key, &value),
                key,
                origin,
                reason,
            });
        }
        self.origins.insert(key.clone(), origin);
        self.values.insert(key, value);
        Ok(())
    }

    fn build(self) -> Result<Config, LoadError> {
        let builder = ConfigBuilder::deserialize(self.values.clone()).map_err(|error| {
            let shown =
                |(key, value): (&String, &toml::Value)| format!("{key} = {}", shown(key, value));
            LoadError::Invalid {
                key: "configuration".to_owned(),
                value: self.values.iter().map(shown).collect::<Vec<_>>().join(", "),
                origin: Origin::Default,
                reason: error.message().to_owned(),
            }
        })?;
        builder.build().map_err(
            |ConfigError::OutOfRange { key, reason }| LoadError::Invalid {
                key: key.to_owned(),
                value: self
                    .values
                    .get(key)
                    .map_or_else(|| "default".to_owned(), |value| shown(key, value)),
                origin: self.origins.get(key).cloned().unwrap_or(Origin::Default),
                reason: reason.to_owned(),
            },
        )
    }
}

/// The value as an error may show it.
fn shown(key: &str, value: &toml::Value) -> String {
    match KEYS.iter().find(|(name, _)| *name == key) {
        Some((_, Kind::Secret)) => "(not shown)".to_owned(),
        _ => value.to_string(),
    }
}

fn known_keys() -> String {
    KEYS.iter()
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .join(", ")
}
