//! Steps of several sizes: how time and memory grow.

use super::{Fit, Measurement};
use crate::device::Kind;
use crate::plot::{Lines, Series, column};

/// The size that a sweep changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// Examples of a step, B.
    Examples,
    /// Rows of the prompt, P.
    NumVirtualTokens,
    /// Tokens of an example, T.
    Tokens,
}

impl Swept {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Examples, Self::NumVirtualTokens, Self::Tokens];

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|swept| swept.name() == name)
    }

    /// Its name, which is that of its flag.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Examples => "examples",
            Self::NumVirtualTokens => "num-virtual-tokens",
            Self::Tokens => "tokens",
        }
    }

    /// What it is, for an axis.
    const fn label(self) -> &'static str {
        match self {
            Self::Examples => "examples of a step, B",
            Self::NumVirtualTokens => "rows of the prompt, P",
            Self::Tokens => "tokens of an example, T",
        }
    }
}

/// A size and what was measured of it.
#[derive(Debug, Clone)]
pub struct Point {
    /// The value of what is swept.
    pub value: usize,
    /// The measurement.
    pub measured: Measurement,
}

fn points(sweep: &[Point], y: impl Fn(&Measurement) -> f64) -> Vec<(f64, f64)> {
    sweep.iter().map(|point| (point.value as f64, y(&point.measured))).collect()
}

const MIB: f64 = (1 << 20) as f64;

/// The lines through the median seconds, and through the peak bytes above the weights; none for fewer than two sizes.
pub fn fits(sweep: &[Point]) -> (Option<Fit>, Option<Fit>) {
    let bytes = points(sweep, |measured| measured.peak_above_weights() as f64);
    (Fit::of(&points(sweep, Measurement::median_seconds)), Fit::of(&bytes))
}

/// A picture of a sweep of `shape`, time above and memory below, as SVG.
pub fn picture(shape: &str, swept: Swept, sweep: &[Point]) -> String {
    let (of_time, of_bytes) = fits(sweep);
    let series = |name: &str, points| Series { name: name.into(), points, dashed: false };
    let line = |fit: Option<Fit>, unit: f64| {
        let points = fit.map(|fit| points_of(sweep, |x| fit.at(x) / unit));
        let name = fit.map(|fit| format!("straight line, R² = {:.4}", fit.r_squared));
        Series { name: name.unwrap_or_else(|| "no line".into()), points: points.unwrap_or_default(), dashed: true }
    };
    let plot = |title: &str, y_label: &str, series| Lines {
        title: format!("{shape}: {title}"),
        x_label: swept.label().into(),
        y_label: y_label.into(),
        series,
    };
    let seconds = series("median of a step", points(sweep, Measurement::median_seconds));
    let peak = series("peak above the weights", points(sweep, |one| one.peak_above_weights() as f64 / MIB));
    let saved = points(sweep, |one| one.memory.peak(Kind::SavedActivations) as f64 / MIB);
    column(&[
        plot("time of a step", "seconds", vec![seconds, line(of_time, 1.0)]),
        plot("memory of a step", "MiB", vec![peak, line(of_bytes, MIB), series("saved activations", saved)]),
    ])
}

/// The ends of a line over the sweep.
fn points_of(sweep: &[Point], y: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    let values = || sweep.iter().map(|point| point.value);
    values().min().into_iter().chain(values().max()).map(|x| (x as f64, y(x as f64))).collect()
}
