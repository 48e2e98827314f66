//! Optimizers, learning-rate schedules and gradient clipping, as plain maths on host slices.
//!
//! Every optimizer sees one `[rows, cols]` matrix, the prompt. Steps are counted from 0. All arithmetic is done in the
//! element type, except sums and the scalars that depend on the step, which are f64; there is one thread and one order,
//! so equal input gives equal bits.

mod adafactor;
mod adamw;
mod schedule;

pub use adafactor::{Adafactor, AdafactorConfig};
pub use adamw::{AdamW, AdamWConfig};
pub use schedule::{Schedule, ScheduleKind, clip_grad_norm, warmup_steps};

use crate::dtype::Element;
use crate::error::{Error, Place, Result};
use crate::values::Values;

/// Which optimizer, with its constants.
#[derive(Debug, Clone, PartialEq)]
pub enum OptimizerConfig {
    /// Adam with decoupled weight decay, as PyTorch's `AdamW`.
    AdamW(AdamWConfig),
    /// Adafactor as T5X has it, the paper's optimizer.
    Adafactor(AdafactorConfig),
}

/// An optimizer of one matrix, with its state.
#[derive(Debug, Clone, PartialEq)]
pub enum Optimizer<E: Element> {
    /// Adam with decoupled weight decay.
    AdamW(AdamW<E>),
    /// Adafactor.
    Adafactor(Adafactor<E>),
}

impl<E: Element> Optimizer<E> {
    /// A fresh optimizer of a `[rows, cols]` matrix, before its first step.
    ///
    /// # Errors
    /// `Config` naming the constant that is out of range.
    pub fn new(config: &OptimizerConfig, rows: usize, cols: usize) -> Result<Self> {
        Ok(match config {
            OptimizerConfig::AdamW(c) => Self::AdamW(AdamW::new(c.clone(), rows * cols)?),
            OptimizerConfig::Adafactor(c) => Self::Adafactor(Adafactor::new(c.clone(), rows, cols)?),
        })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        match self {
            Self::AdamW(o) => o.steps(),
            Self::Adafactor(o) => o.steps(),
        }
    }

    /// Moves `params` one step against `grad` at learning rate `lr`; both are `[rows, cols]`, row by row.
    ///
    /// # Errors
    /// `Op` where a length does not fit; nothing is changed then.
    pub fn step(&mut self, params: &mut [E], grad: &[E], lr: f64) -> Result<()> {
        match self {
            Self::AdamW(o) => o.step(params, grad, lr),
            Self::Adafactor(o) => o.step(params, grad, lr),
        }
    }

    /// Bytes of state, the step counter aside.
    pub fn state_bytes(&self) -> usize {
        let elements = match self {
            Self::AdamW(o) => o.buffers().iter().map(|(_, b)| b.len()).sum::<usize>(),
            Self::Adafactor(o) => o.buffers().iter().map(|(_, b)| b.len()).sum(),
        };
        elements * E::DTYPE.size()
    }

    /// The whole state as named buffers: `step`, and the moments bit for bit.
    pub fn state(&self) -> Vec<(String, Values)> {
        let buffers = match self {
            Self::AdamW(o) => o.buffers().to_vec(),
            Self::Adafactor(o) => o.buffers(),
        };
        let step = Values::F64(vec![self.steps() as f64]);
        let moments = buffers.into_iter().map(|(name, b)| (name.to_owned(), Values::from_slice(b)));
        std::iter::once((STEP.to_owned(), step)).chain(moments).collect()
    }

    /// Puts back what [`Optimizer::state`] gave; the same steps follow as would have.
    ///
    /// # Errors
    /// `Input` where a buffer is missing, unknown, there twice, of another length or type, or not finite; nothing is
    /// changed then.
    pub fn load_state(&mut self, state: &[(String, Values)]) -> Result<()> {
        let mut fresh = self.clone();
        let mut slots = match &mut fresh {
            Self::AdamW(o) => o.buffers_mut().into(),
            Self::Adafactor(o) => o.buffers_mut(),
        };
        let known = |name: &str| name == STEP || slots.iter().any(|(slot, _)| *slot == name);
        if let Some((name, _)) = state.iter().find(|(name, _)| !known(name)) {
            return Err(mismatch(name, "only buffers of this optimizer", "a buffer of another one"));
        }
        for (name, slot) in &mut slots {
            **slot = fitting(state, name, slot.len())?;
        }
        let step = fitting::<f64>(state, STEP, 1)?[0];
        if step < 0.0 || step.fract() != 0.0 || step > 2f64.powi(53) {
            return Err(mismatch(STEP, "a whole number from 0", step.to_string()));
        }
        match &mut fresh {
            Self::AdamW(o) => o.set_steps(step as u64),
            Self::Adafactor(o) => o.set_steps(step as u64),
        }
        *self = fresh;
        Ok(())
    }
}

const STEP: &str = "step";

/// The one buffer `name` of `state`, if it has `len` finite values of type `E`.
fn fitting<E: Element>(state: &[(String, Values)], name: &str, len: usize) -> Result<Vec<E>> {
    let mut found = state.iter().filter(|(n, _)| n == name).map(|(_, values)| values);
    let values = match (found.next(), found.next()) {
        (Some(values), None) => values,
        (None, _) => return Err(mismatch(name, "this buffer", "none")),
        (Some(_), Some(_)) => return Err(mismatch(name, "this buffer once", "it twice")),
    };
    let (want, got) = (format!("{len} {} values", E::DTYPE), format!("{} {} values", values.len(), values.dtype()));
    if want != got {
        return Err(mismatch(name, want, got));
    }
    match values.first_non_finite() {
        Some(index) => Err(mismatch(name, "finite values", format!("another at index {index}"))),
        None => Ok(values.to_vec()),
    }
}

fn mismatch(name: &str, expected: impl Into<String>, got: impl Into<String>) -> Error {
    Error::input(Place::item(format!("optimizer state {name}")), expected, got)
        .hint("the state is of another optimizer, prompt or element type")
}

fn check_lengths<E>(op: &'static str, len: usize, params: &[E], grad: &[E]) -> Result<()> {
    if params.len() == len && grad.len() == len {
        return Ok(());
    }
    let got = format!("{} parameters and {} gradients", params.len(), grad.len());
    Err(Error::op(op, format!("{len} parameters and gradients"), got))
}

fn check_constant(name: &str, value: f64, expected: &str, fits: bool) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::config(Place::item(name), expected, value.to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configs() -> [OptimizerConfig; 3] {
        let factored = AdafactorConfig { min_dim_factored: 2, ..AdafactorConfig::default() };
        [
            OptimizerConfig::AdamW(AdamWConfig::default()),
            OptimizerConfig::Adafactor(AdafactorConfig::default()),
            OptimizerConfig::Adafactor(factored),
        ]
    }

    fn grad(step: usize) -> Vec<f32> {
        (0..6).map(|i| ((i * 7 + step * 3) % 5) as f32 - 1.9).collect()
    }

    #[test]
    fn a_state_put_back_goes_on_with_the_same_bits() {
        for config in configs() {
            let mut straight = Optimizer::<f32>::new(&config, 2, 3).unwrap();
            let mut params = vec![0.5f32; 6];
            for step in 0..3 {
                straight.step(&mut params, &grad(step), 0.1).unwrap();
            }
            let mut resumed = Optimizer::<f32>::new(&config, 2, 3).unwrap();
            resumed.load_state(&straight.state()).unwrap();
            assert_eq!((resumed.steps(), &resumed), (3, &straight));
            let mut again = params.clone();
            straight.step(&mut params, &grad(3), 0.1).unwrap();
            resumed.step(&mut again, &grad(3), 0.1).unwrap();
            assert_eq!(params, again);
        }
    }

    #[test]
    fn state_that_does_not_fit_is_refused_and_changes_nothing() {
        for config in configs() {
            let mut o = Optimizer::<f32>::new(&config, 2, 3).unwrap();
            o.step(&mut [0.5; 6], &grad(0), 0.1).unwrap();
            let (before, good) = (o.clone(), o.state());
            let with = |i: usize, values: Values| {
                let mut state = good.clone();
                state[i].1 = values;
                state
            };
            let mut twice = good.clone();
            twice.push(good[1].clone());
            let mut foreign = good.clone();
            foreign.push(("other".into(), Values::F32(vec![])));
            let nan = Values::F32(vec![f32::NAN; good[1].1.len()]);
            for state in [
                good[..1].to_vec(),
                good[1..].to_vec(),
                twice,
                foreign,
                with(1, Values::F32(vec![0.0])),
                with(1, Values::F64(vec![0.0; good[1].1.len()])),
                with(1, nan),
                with(0, Values::F64(vec![0.5])),
                with(0, Values::F64(vec![-1.0])),
            ] {
                assert_eq!(o.load_state(&state).unwrap_err().exit_code(), 4);
            }
            assert_eq!(o, before);
            assert_eq!(o.step(&mut [0.5; 5], &grad(0), 0.1).unwrap_err().exit_code(), 1);
            assert_eq!(o, before);
        }
    }

    #[test]
    fn state_bytes_are_those_of_the_moments() {
        let bytes = configs().map(|c| Optimizer::<f32>::new(&c, 2, 3).unwrap().state_bytes());
        assert_eq!(bytes, [2 * 6 * 4, 6 * 4, (2 + 3) * 4]);
    }
}
