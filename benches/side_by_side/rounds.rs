//! Rounds of ours and a peer's in turn, and what they came to.
//!
//! A machine that drifts then favours neither: what counts is the ratio within
//! a round, of which the median and the range are told.

use std::fmt;

use crate::setting;

/// What a measure is to come to.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// The ratio is at most this.
    AtMost(f64),
    /// The ratio is at least this.
    AtLeast(f64),
}

impl Goal {
    fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(limit) => ratio <= limit,
            Self::AtLeast(limit) => ratio >= limit,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit:.2}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit:.2}"),
        }
    }
}

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// `P1` and others.
    pub id: &'static str,
    /// What is done.
    pub work: &'static str,
    /// What is measured of it.
    pub unit: &'static str,
    /// Who else does it.
    pub peer: &'static str,
    /// What the ratio, ours by the peer's, is to be.
    pub goal: Goal,
}

/// Fewer say little about a noisy machine.
const ROUNDS: usize = 5;

/// So many rounds: more with `CALLVAULT_BENCH_ROUNDS`.
pub fn rounds() -> usize {
    setting("CALLVAULT_BENCH_ROUNDS", ROUNDS).max(ROUNDS)
}

impl Comparison {
    /// Measures ours and the peer's in turn, and tells.
    pub async fn run(&self, mut ours: impl AsyncFnMut() -> f64, mut peer: impl AsyncFnMut() -> f64) {
        let mut measured = Vec::new();
        for _ in 0..rounds() {
            measured.push((ours().await, peer().await));
        }
        self.tell(&measured);
    }

    /// Tells what rounds came to: ours and the peer's of each.
    pub fn tell(&self, measured: &[(f64, f64)]) {
        let ours: Vec<f64> = measured.iter().map(|(ours, _)| *ours).collect();
        let peers: Vec<f64> = measured.iter().map(|(_, peer)| *peer).collect();
        let ratios: Vec<f64> = measured.iter().map(|(ours, peer)| ours / peer).collect();
        let ratio = median(&ratios);
        let said = if self.goal.is_met(ratio) { "met" } else { "NOT met" };
        let (low, high) = range(&ratios);
        let Self { id, work, unit, peer, goal } = self;
        println!(
            "{id}  {work}: {:.3} {unit}, {peer} {:.3} {unit}; ratio {ratio:.3} ({low:.3}–{high:.3}, {} rounds), goal {goal}: {said}",
            median(&ours),
            median(&peers),
            measured.len(),
        );
    }

    /// Says that there is no such peer here.
    pub fn missing(&self, why: &str) {
        println!("{}  {} beside {}: NOT MEASURED: {why}", self.id, self.work, self.peer);
    }
}

/// What has no peer: the value itself is to be at most, or at least, something.
pub fn tell_alone(id: &str, work: &str, unit: &str, values: &[f64], goal: Goal) {
    let (value, (low, high)) = (median(values), range(values));
    let said = if goal.is_met(value) { "met" } else { "NOT met" };
    println!("{id}  {work}: {value:.3} {unit} ({low:.3}–{high:.3}, {} rounds), goal {goal}: {said}", values.len());
}

/// The one in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The value below which that part of them lies.
pub fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * part) as usize;
    values[at.min(values.len() - 1)]
}

fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)))
}
