//! One measured figure, ours beside the peer's.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a figure counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// 10⁶ bytes of payload a second.
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Events a second.
    #[serde(rename = "1/s")]
    PerSecond,
    /// CPU seconds, user and system, for 10⁹ bytes of payload.
    #[serde(rename = "CPU s/GB")]
    CpuSecondsPerGigabyte,
    /// Bytes.
    #[serde(rename = "B")]
    Bytes,
    /// Read calls of the operating system for one operation.
    #[serde(rename = "reads")]
    Reads,
    /// Bytes written to the device for a byte of payload.
    #[serde(rename = "x")]
    Times,
    /// Parts of a hundred.
    #[serde(rename = "%")]
    Percent,
    /// 10³ bytes of memory.
    #[serde(rename = "kB")]
    Kilobytes,
    /// Connections.
    #[serde(rename = "connections")]
    Connections,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MegabytesPerSecond => "MB/s",
            Self::Milliseconds => "ms",
            Self::PerSecond => "1/s",
            Self::CpuSecondsPerGigabyte => "CPU s/GB",
            Self::Bytes => "B",
            Self::Reads => "reads",
            Self::Times => "x",
            Self::Percent => "%",
            Self::Kilobytes => "kB",
            Self::Connections => "connections",
        })
    }
}

/// One line of `compare --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `<area>.<what>.<variant>.<peer>`.
    pub figure: String,
    /// Median of our runs.
    pub ours: f64,
    /// Median of the peer's runs.
    pub peer: f64,
    /// `ours / peer`, whatever the unit; None where the peer's value is 0.
    pub ratio: Option<f64>,
    /// What `ours`, `peer` and `runs` count in.
    pub unit: Unit,
    /// `[ours, peer]` of each round, in the order they ran.
    pub runs: Vec<(f64, f64)>,
}

impl Figure {
    /// Takes the medians of interleaved runs, `(ours, peer)` each.
    #[must_use]
    pub fn new(figure: String, unit: Unit, runs: Vec<(f64, f64)>) -> Self {
        let ours = median(runs.iter().map(|run| run.0));
        let peer = median(runs.iter().map(|run| run.1));
        Self {
            figure,
            ours,
            peer,
            ratio: (peer != 0.0).then(|| ours / peer),
            unit,
            runs,
        }
    }
}

impl fmt::Display for Figure {
    /// A row for people; `compare` prints the heading.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<44} {:>10.2} {:>10.2} ",
            self.figure, self.ours, self.peer
        )?;
        match self.ratio {
            Some(ratio) => write!(f, "{ratio:>7.2}")?,
            None => write!(f, "{:>7}", "-")?,
        }
        write!(f, " {}", self.unit)
    }
}

/// The middle value, or the mean of the two in the middle; 0 of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied();
    let lower = values
        .len()
        .checked_sub(1)
        .and_then(|last| values.get(last / 2))
        .copied();
    match (lower, upper) {
        (Some(lower), Some(upper)) => f64::midpoint(lower, upper),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_the_order_of_runs_and_one_outlier() {
        let figure = Figure::new(
            "bitswap.tcp.256KiB.raw_stream_hashed".into(),
            Unit::MegabytesPerSecond,
            vec![(9.0, 1.0), (1.0, 4.0), (2.0, 1000.0)],
        );
        assert_eq!(
            (figure.ours, figure.peer, figure.ratio),
            (2.0, 4.0, Some(0.5))
        );
    }

    #[test]
    fn an_even_number_of_runs_takes_the_mean_of_the_middle_two() {
        assert_eq!(median([4.0, 1.0, 2.0, 8.0].into_iter()), 3.0);
        assert_eq!(median(std::iter::empty()), 0.0);
    }

    #[test]
    fn a_figure_is_the_json_line_that_the_design_documents() {
        let figure = Figure::new(
            "a.b.c.d".into(),
            Unit::CpuSecondsPerGigabyte,
            vec![(1.0, 0.0)],
        );
        assert_eq!(
            serde_json::to_string(&figure).unwrap(),
            r#"{"figure":"a.b.c.d","ours":1.0,"peer":0.0,"ratio":null,"unit":"CPU s/GB","runs":[[1.0,0.0]]}"#
        );
    }
}
