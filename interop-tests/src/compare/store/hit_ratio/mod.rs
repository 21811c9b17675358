//! Hit ratio of the memory tier's policy against quick_cache and moka: `store.hit_ratio.<trace>.<capacity>.<peer>`.
//!
//! Four recorded traces and two generated ones, at 1 % and 10 % of their keys, all keys of equal weight; the trace that has sizes also at 1 %
//! and 10 % of its bytes (`<trace>-sized`, where `store.byte_hit_ratio` counts bytes). Every access is a get, and an insert after a
//! miss. The rounds differ in the seed: of our hash, of the generated traces, and of the peers' own randomness.

mod generated;
mod peer;
mod trace;

use super::super::figure::{Figure, Unit};
use super::{Bench, Effort, Error};
use anypath_tiered_store::heat::Model;
use peer::{Contestant, Peer};
use std::path::{Path, PathBuf};
use trace::Trace;

/// Capacities in percent of the keys, or bytes, that occur.
const PERCENTS: [u64; 2] = [1, 10];

/// No cell may be this many points below the better peer.
const CELL_BAR: f64 = -0.5;
/// The mean of all cells of equal weights must be this many points above the better peer.
const MEAN_BAR: f64 = 0.3;

/// What one cache did with one trace.
#[derive(Debug, Clone, Copy)]
struct Ratio {
    /// Hits in percent of accesses.
    hits: f64,
    /// Bytes of hits in percent of bytes.
    bytes: f64,
}

/// One line of the table: ours and each peer's, by round.
struct Cell {
    name: String,
    is_sized: bool,
    is_recorded: bool,
    rounds: Vec<Vec<Ratio>>,
}

/// Rounds: what differs between them is small.
fn rounds(effort: Effort) -> u64 {
    match effort {
        Effort::Full => 3,
        Effort::Quick => 1,
    }
}

/// All figures of this kind.
pub(super) fn measure(bench: &mut Bench<'_>, folder: Option<&Path>) -> Result<(), Error> {
    if !bench.wants("store.hit_ratio") && !bench.wants("store.byte_hit_ratio") {
        return Ok(());
    }
    let recorded = match folder {
        Some(folder) => Vec::from(trace::recorded(folder)?),
        None => match trace::recorded(&PathBuf::from("../shared/traces")) {
            Ok(traces) => Vec::from(traces),
            Err(error) => {
                eprintln!("compare: store.hit_ratio WITHOUT the recorded traces: {error}");
                Vec::new()
            }
        },
    };
    let mut cells: Vec<Cell> = Vec::new();
    for round in 0..rounds(bench.effort) {
        let generated = generated::generated(round);
        let all = recorded.iter().chain(&generated);
        let mut at = 0;
        for (number, (trace, percent, is_sized)) in all
            .enumerate()
            .flat_map(|(number, trace)| variants(trace).map(move |variant| (number, variant)))
        {
            let sized = if is_sized { "-sized" } else { "" };
            let name = format!("{}{sized}.{percent}%", trace.name);
            if !bench.wants(&format!("store.hit_ratio.{name}"))
                && !bench.wants(&format!("store.byte_hit_ratio.{name}"))
            {
                continue;
            }
            let ratios = run(trace, percent, is_sized, round);
            match cells.get_mut(at) {
                Some(cell) => cell.rounds.push(ratios),
                None => cells.push(Cell {
                    name,
                    is_sized,
                    is_recorded: number < recorded.len(),
                    rounds: vec![ratios],
                }),
            }
            at += 1;
        }
    }
    let (mut leads, mut on_recorded) = (Vec::new(), Vec::new());
    for cell in &cells {
        let figures = cell.figures("store.hit_ratio", |ratio| ratio.hits);
        let lead = lead(&figures);
        if !cell.is_sized {
            leads.push(lead);
            if cell.is_recorded {
                on_recorded.push(lead);
            }
        }
        say(&format!("store.hit_ratio.{}", cell.name), lead, CELL_BAR);
        figures.into_iter().for_each(&mut bench.report);
        if cell.is_sized {
            let figures = cell.figures("store.byte_hit_ratio", |ratio| ratio.bytes);
            figures.into_iter().for_each(&mut bench.report);
        }
    }
    for (which, leads) in [("the recorded traces", on_recorded), ("all traces", leads)] {
        if !leads.is_empty() {
            let mean = leads.iter().sum::<f64>() / leads.len() as f64;
            let what = format!("store.hit_ratio, mean of {} cells of {which}", leads.len());
            say(&what, mean, MEAN_BAR);
        }
    }
    Ok(())
}

/// Which capacities a trace is run at.
fn variants(trace: &Trace) -> impl Iterator<Item = (&Trace, u64, bool)> {
    let sized = if trace.sizes.is_some() { 2 } else { 1 };
    [false, true]
        .into_iter()
        .take(sized)
        .flat_map(move |is_sized| PERCENTS.map(|percent| (trace, percent, is_sized)))
}

/// Ours, then each peer.
fn run(trace: &Trace, percent: u64, is_sized: bool, round: u64) -> Vec<Ratio> {
    let unique = trace.unique() as u64;
    let whole = match trace.unique_bytes().filter(|_| is_sized) {
        Some(bytes) => bytes,
        None => unique,
    };
    let capacity = whole * percent / 100;
    let entries = usize::try_from(unique * percent / 100).unwrap_or(usize::MAX);
    let ours = Contestant::Ours(Box::new(Model::new(capacity, round)));
    let peers = Peer::ALL.map(|peer| peer.cache(capacity, entries));
    std::iter::once(ours)
        .chain(peers)
        .map(|cache| replay(trace, is_sized, cache))
        .collect()
}

fn replay(trace: &Trace, is_sized: bool, mut cache: Contestant) -> Ratio {
    let (mut hits, mut hit_bytes, mut bytes) = (0u64, 0u64, 0u64);
    for key in &trace.keys {
        let size = trace.size(*key);
        bytes += u64::from(size);
        if cache.access(*key, if is_sized { size } else { 1 }) {
            hits += 1;
            hit_bytes += u64::from(size);
        }
    }
    Ratio {
        hits: hits as f64 * 100.0 / trace.keys.len().max(1) as f64,
        bytes: hit_bytes as f64 * 100.0 / bytes.max(1) as f64,
    }
}

impl Cell {
    fn figures(&self, kind: &str, value: impl Fn(&Ratio) -> f64) -> Vec<Figure> {
        let figure = |(number, peer): (usize, Peer)| {
            let runs = self
                .rounds
                .iter()
                .filter_map(|round| Some((value(round.first()?), value(round.get(number + 1)?))));
            let name = format!("{kind}.{}.{}", self.name, peer.name());
            Figure::new(name, Unit::Percent, runs.collect())
        };
        Peer::ALL.into_iter().enumerate().map(figure).collect()
    }
}

/// Points that we are above the better peer.
fn lead(figures: &[Figure]) -> f64 {
    let leads = figures.iter().map(|figure| figure.ours - figure.peer);
    leads.fold(f64::INFINITY, f64::min)
}

fn say(what: &str, lead: f64, bar: f64) {
    let verdict = if lead >= bar { "met" } else { "MISSED" };
    eprintln!("{what}: {lead:+.2} points against the better peer, bar {bar:+.1} {verdict}");
}
