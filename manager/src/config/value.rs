//! How a value is written: TOML types in the file, text in the environment and in flags.

use std::{fmt, time::Duration};

use libp2p::pnet::PreSharedKey;
use serde::{Deserialize, Deserializer, de};

use crate::swarm_key;

/// What a key takes, and so how text from the environment or a flag becomes a TOML value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Flag,
    Count,
    Port,
    Size,
    Time,
    Addresses,
    Path,
    /// Text that no message may repeat.
    Secret,
    Role,
}

impl Kind {
    /// The TOML value that `text` stands for. What cannot be read stays text, so that the type error names it.
    pub(super) fn parse(self, text: &str) -> toml::Value {
        let as_text = || toml::Value::String(text.to_owned());
        match self {
            Self::Flag => match text.to_ascii_lowercase().as_str() {
                "1" | "true" | "yes" | "on" => toml::Value::Boolean(true),
                "0" | "false" | "no" | "off" => toml::Value::Boolean(false),
                _ => as_text(),
            },
            Self::Count | Self::Port => text
                .trim()
                .parse()
                .map_or_else(|_| as_text(), toml::Value::Integer),
            Self::Size | Self::Time | Self::Path | Self::Secret | Self::Role => as_text(),
            Self::Addresses => toml::Value::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|part| !part.is_empty())
                    .map(|part| toml::Value::String(part.to_owned()))
                    .collect(),
            ),
        }
    }

    /// What to write instead, for error messages.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Flag => "true or false",
            Self::Count => "a whole number",
            Self::Port => "a port from 0 to 65535",
            Self::Size => "bytes, as in 1048576, \"512MiB\" or \"10GB\"",
            Self::Time => "a time, as in 90, \"90s\" or \"5m\" (plain numbers are seconds)",
            Self::Addresses => "multiaddrs, as in /ip4/192.0.2.1/tcp/9100/p2p/12D3Koo…",
            Self::Path => "a path",
            Self::Secret => "64 hexadecimal digits, or the text of a swarm.key file",
            Self::Role => "master, worker or leecher",
        }
    }
}

pub(super) fn plain<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

pub(super) fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    T::deserialize(deserializer).map(|value| Some(Some(value)))
}

pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    deserializer.deserialize_any(SizeVisitor).map(Some)
}

pub(super) fn some_size<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<u64>>, D::Error> {
    deserializer
        .deserialize_any(SizeVisitor)
        .map(|value| Some(Some(value)))
}

pub(super) fn time<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    deserializer.deserialize_any(TimeVisitor).map(Some)
}

pub(super) fn swarm_key<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<PreSharedKey>>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let key = swarm_key::parse(&text).map_err(de::Error::custom)?;
    Ok(Some(Some(key)))
}

struct SizeVisitor;

impl de::Visitor<'_> for SizeVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Kind::Size.expected())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
        u64::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        parse_size(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// Bytes from `123`, `512MiB`, `10 GB`; powers of 1,024 with an `i`, of 1,000 without.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

struct TimeVisitor;

impl de::Visitor<'_> for TimeVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Kind::Time.expected())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Duration, E> {
        let seconds = u64::try_from(value)
            .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))?;
        Ok(Duration::from_secs(seconds))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Duration, E> {
        Duration::try_from_secs_f64(value)
            .map_err(|_| E::invalid_value(de::Unexpected::Float(value), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        if let Ok(seconds) = text.trim().parse::<f64>() {
            return self.visit_f64(seconds);
        }
        humantime_serde::re::humantime::parse_duration(text)
            .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}
