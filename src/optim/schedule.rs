//! Learning-rate schedules and gradient clipping.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// It stays.
    #[default]
    Constant,
    /// It falls in a straight line to 0 at the last step.
    Linear,
    /// It falls along half a cosine to 0 at the last step.
    Cosine,
}

/// The learning rate of each step, by the formulas of the HF Trainer's schedules of the same names with warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The course after the warm-up.
    pub kind: ScheduleKind,
    /// The highest learning rate.
    pub lr: f64,
    /// Steps over which it rises in a straight line; the first of them has learning rate 0.
    pub warmup: u64,
    /// Steps of the whole run, the warm-up included.
    pub total: u64,
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        self.lr * self.factor(step)
    }

    fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let span = self.total.saturating_sub(self.warmup).max(1) as f64;
        // Past the end the rate stays 0; the Trainer's cosine would rise again.
        let done = ((step - self.warmup) as f64 / span).min(1.0);
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => self.total.saturating_sub(step) as f64 / span,
            ScheduleKind::Cosine => (0.5 * (1.0 + (PI * done).cos())).max(0.0),
        }
    }
}

/// The warm-up's steps where it is given as a share of `total`: rounded up, as the HF Trainer does. A `ratio` outside
/// [0, 1] is brought to the nearer end.
pub fn warmup_steps(ratio: f64, total: u64) -> u64 {
    (ratio.clamp(0.0, 1.0) * total as f64).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-15, "{got} {want}");
        }
    }

    fn rates(kind: ScheduleKind) -> Vec<f64> {
        let schedule = Schedule { kind, lr: 2.0, warmup: 3, total: 10 };
        (0..12).map(|step| schedule.at(step)).collect()
    }

    // Numbers from transformers' get_*_schedule_with_warmup(3 of 10 steps) at learning rate 2.
    const RISE: [f64; 3] = [0.0, 0.6666666666666666, 1.3333333333333333];

    #[test]
    fn schedules_are_those_of_transformers() {
        let linear = [
            2.0,
            1.7142857142857142,
            1.4285714285714286,
            1.1428571428571428,
            0.8571428571428571,
            0.5714285714285714,
            0.2857142857142857,
            0.0,
            0.0,
        ];
        close(&rates(ScheduleKind::Linear), &[RISE.as_slice(), &linear].concat());
        let cosine = [
            2.0,
            1.900968867902419,
            1.6234898018587336,
            1.2225209339563143,
            0.7774790660436857,
            0.3765101981412665,
            0.09903113209758097,
            0.0,
            0.0,
        ];
        close(&rates(ScheduleKind::Cosine), &[RISE.as_slice(), &cosine].concat());
        close(&rates(ScheduleKind::Constant), &[RISE.as_slice(), &[2.0; 9]].concat());
    }

    #[test]
    fn odd_lengths_give_finite_rates() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine] {
            for (warmup, total) in [(0, 0), (0, 1), (5, 5), (7, 3), (u64::MAX, 1), (0, u64::MAX)] {
                for step in [0, 1, 6, u64::MAX] {
                    let rate = Schedule { kind, lr: 1.0, warmup, total }.at(step);
                    assert!((0.0..=1.0).contains(&rate), "{kind:?} {warmup} {total} {step}: {rate}");
                }
            }
        }
        assert_eq!((warmup_steps(0.1, 25), warmup_steps(0.0, 9), warmup_steps(f64::NAN, 9)), (3, 0, 0));
    }
}
