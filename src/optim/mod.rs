//! Optimizers and learning-rate schedules: constants, state, and the numbers that depend on the step. The arithmetic is
//! an op, [`crate::ops::optimizer`], done where the prompt is.
//!
//! An [`Optimizer`] sees one `[rows, cols]` matrix, the prompt; a [`WeightOptimizer`] has one for each weight. Steps are
//! counted from 0. The numbers that depend on the step are f64.

mod adafactor;
mod adamw;
mod schedule;
mod weights;

pub use crate::ops::optimizer::{clip_factor, clip_grad_norm, grad_norm, is_finite};
pub use adafactor::{Adafactor, AdafactorConfig, PARAMETER_SCALE};
pub use adamw::{AdamW, AdamWConfig};
pub use schedule::{Schedule, ScheduleKind, warmup_steps};
pub use weights::WeightOptimizer;

use crate::device::Kind;
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::ops;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::values::Values;

/// Which optimizer, with its constants.
#[derive(Debug, Clone, PartialEq)]
pub enum OptimizerConfig {
    /// Adam with decoupled weight decay, as PyTorch's `AdamW`.
    AdamW(AdamWConfig),
    /// Adafactor as T5X has it, the paper's optimizer.
    Adafactor(AdafactorConfig),
}

/// An optimizer of one matrix, with its state on the matrix's device.
#[derive(Debug, Clone)]
pub enum Optimizer {
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
    /// Adafactor.
    Adafactor(Adafactor),
}

impl OptimizerConfig {
    /// Bytes of the state of a `[rows, cols]` matrix of `dtype`, the step counter aside.
    pub fn state_bytes(&self, rows: usize, cols: usize, dtype: DType) -> usize {
        let numbers = match self {
            Self::AdamW(_) => 2 * rows * cols,
            Self::Adafactor(config) if config.is_factored(rows, cols) => rows + cols,
            Self::Adafactor(_) => rows * cols,
        };
        numbers * dtype.size()
    }
}

impl Optimizer {
    /// A fresh optimizer of `params` `[rows, cols]`, before its first step.
    ///
    /// # Errors
    /// `Config` naming the constant that is out of range; `Device` where there is no memory for the state.
    pub fn new(config: &OptimizerConfig, params: &Tensor) -> Result<Self> {
        let (device, dtype, rows, cols) = (params.device(), params.dtype(), params.rows(), params.cols());
        device.run(|| {
            Ok(match config {
                OptimizerConfig::AdamW(c) => Self::AdamW(AdamW::new(c.clone(), device, dtype, rows, cols)?),
                OptimizerConfig::Adafactor(c) => Self::Adafactor(Adafactor::new(c.clone(), device, dtype, rows, cols)?),
            })
        })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        match self {
            Self::AdamW(o) => o.steps(),
            Self::Adafactor(o) => o.steps(),
        }
    }

    /// Moves `params` one step against `grad` at learning rate `lr`.
    ///
    /// # Errors
    /// `Op` where a shape or type does not fit; nothing is changed then. `Device` where a GPU fails.
    pub fn step(&mut self, params: &mut Tensor, grad: &Tensor, lr: f64) -> Result<()> {
        let device = params.device().clone();
        device.run(|| match self {
            Self::AdamW(o) => o.step(params, grad, lr),
            Self::Adafactor(o) => o.step(params, grad, lr),
        })
    }

    /// A step of a weight against `factor` times `grad`. In bf16 the weight is `value`, and `params` its copy in f32.
    fn step_weight(
        &mut self,
        params: &mut Tensor,
        grad: Tensor,
        lr: f64,
        factor: f64,
        value: Option<&mut Tensor>,
    ) -> Result<()> {
        match self {
            Self::AdamW(o) => o.step_of(params, &grad, lr, factor, value),
            Self::Adafactor(o) => o.step_of(params, grad, lr, factor, value),
        }
    }

    fn moments(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::AdamW(o) => o.moments().into(),
            Self::Adafactor(o) => o.moments(),
        }
    }

    /// Bytes of state, the step counter aside.
    pub fn state_bytes(&self) -> usize {
        self.moments().iter().map(|(_, moment)| moment.buffer_bytes()).sum()
    }

    /// The whole state as named buffers: `step`, and the moments bit for bit.
    ///
    /// # Errors
    /// `Device` where a GPU fails.
    pub fn state(&self) -> Result<Vec<(String, Values)>> {
        let mut state = vec![(STEP.to_owned(), Values::F64(vec![self.steps() as f64]))];
        for (name, moment) in self.moments() {
            state.push((name.to_owned(), moment.to_values()?));
        }
        Ok(state)
    }

    /// Puts back what [`Optimizer::state`] gave; the same steps follow as would have.
    ///
    /// # Errors
    /// `Input` where a buffer is missing, unknown, there twice, of another length or type, or not finite; nothing is
    /// changed then. `Device` where a GPU fails.
    pub fn load_state(&mut self, state: &[(String, Values)]) -> Result<()> {
        let mut fresh = self.clone();
        let mut slots = match &mut fresh {
            Self::AdamW(o) => o.moments_mut().into(),
            Self::Adafactor(o) => o.moments_mut(),
        };
        let known = |name: &str| name == STEP || slots.iter().any(|(slot, _)| *slot == name);
        if let Some((name, _)) = state.iter().find(|(name, _)| !known(name)) {
            return Err(mismatch(name, "only buffers of this optimizer", "a buffer of another one"));
        }
        for (name, slot) in &mut slots {
            let values = fitting(state, name, slot.len(), slot.dtype())?;
            **slot = Tensor::from_values(slot.device(), slot.rows(), slot.cols(), values, Kind::Optimizer)?;
        }
        let step = fitting(state, STEP, 1, DType::F64)?.get(0).unwrap_or(f64::NAN);
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

/// The one buffer `name` of `state`, if it has `len` finite values of type `dtype`.
fn fitting<'a>(state: &'a [(String, Values)], name: &str, len: usize, dtype: DType) -> Result<&'a Values> {
    let mut found = state.iter().filter(|(n, _)| n == name).map(|(_, values)| values);
    let values = match (found.next(), found.next()) {
        (Some(values), None) => values,
        (None, _) => return Err(mismatch(name, "this buffer", "none")),
        (Some(_), Some(_)) => return Err(mismatch(name, "this buffer once", "it twice")),
    };
    let (want, got) = (format!("{len} {dtype} values"), format!("{} {} values", values.len(), values.dtype()));
    if want != got {
        return Err(mismatch(name, want, got));
    }
    match values.first_non_finite() {
        Some(index) => Err(mismatch(name, "finite values", format!("another at index {index}"))),
        None => Ok(values),
    }
}

fn mismatch(name: &str, expected: impl Into<String>, got: impl Into<String>) -> Error {
    Error::input(Place::item(format!("optimizer state {name}")), expected, got)
        .hint("the state is of another optimizer, prompt or element type")
}

/// `x` in `dtype`.
fn converted(x: Tensor, dtype: DType) -> Result<Tensor> {
    Ok(ops::cast(&mut Tape::new(), &Var::constant(x), dtype)?.into_tensor())
}

fn check_constant(name: &str, value: f64, expected: &str, fits: bool) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::config(Place::item(name), expected, value.to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    fn configs() -> [OptimizerConfig; 3] {
        let factored = AdafactorConfig { min_dim_factored: 2, ..AdafactorConfig::default() };
        [
            OptimizerConfig::AdamW(AdamWConfig::default()),
            OptimizerConfig::Adafactor(AdafactorConfig::default()),
            OptimizerConfig::Adafactor(factored),
        ]
    }

    fn matrix(values: &[f64]) -> Tensor {
        let device = Device::cpu(Some(1)).unwrap();
        Tensor::from_f64(&device, 2, 3, DType::F32, values, Kind::Optimizer).unwrap()
    }

    fn grad(step: usize) -> Tensor {
        matrix(&[0, 1, 2, 3, 4, 5].map(|i| ((i * 7 + step * 3) % 5) as f64 - 1.9))
    }

    #[test]
    fn a_state_put_back_goes_on_with_the_same_bits() {
        for config in configs() {
            let mut params = matrix(&[0.5; 6]);
            let mut straight = Optimizer::new(&config, &params).unwrap();
            for step in 0..3 {
                straight.step(&mut params, &grad(step), 0.1).unwrap();
            }
            let mut resumed = Optimizer::new(&config, &params).unwrap();
            resumed.load_state(&straight.state().unwrap()).unwrap();
            assert_eq!((resumed.steps(), resumed.state().unwrap()), (3, straight.state().unwrap()));
            let mut again = params.clone();
            straight.step(&mut params, &grad(3), 0.1).unwrap();
            resumed.step(&mut again, &grad(3), 0.1).unwrap();
            assert_eq!(params.as_slice::<f32>(), again.as_slice::<f32>());
        }
    }

    #[test]
    fn state_that_does_not_fit_is_refused_and_changes_nothing() {
        for config in configs() {
            let mut params = matrix(&[0.5; 6]);
            let mut o = Optimizer::new(&config, &params).unwrap();
            o.step(&mut params, &grad(0), 0.1).unwrap();
            let good = o.state().unwrap();
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
            assert_eq!(o.state().unwrap(), good);
            let mut other = params.prefix(1);
            assert_eq!(o.step(&mut other, &grad(0), 0.1).unwrap_err().exit_code(), 1);
            assert_eq!(o.state().unwrap(), good);
        }
    }

    #[test]
    fn state_bytes_are_those_of_the_moments() {
        let bytes = configs().map(|c| Optimizer::new(&c, &matrix(&[0.5; 6])).unwrap().state_bytes());
        assert_eq!(bytes, [2 * 6 * 4, 6 * 4, (2 + 3) * 4]);
        assert_eq!(bytes, configs().map(|c| c.state_bytes(2, 3, DType::F32)));
    }
}
