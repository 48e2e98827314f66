//! AdamW, in the order of operations of PyTorch's single-tensor code.
//!
//! In f32 it differs from PyTorch on AVX2 in last bits: fused multiply-adds and MKL's square root round otherwise.

use super::check_constant;
use crate::device::{Device, Kind};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::optimizer::{AdamWStep, adamw, adamw_rounded};
use crate::tensor::Tensor;

/// The constants of [`AdamW`]; the defaults are PyTorch's, but for the weight decay, which is the HF Trainer's 0.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment, above 0.
    pub eps: f64,
    /// The share of a parameter that a step at learning rate 1 removes, from 0.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2, as in `torch.optim.AdamW`).
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    m: Tensor,
    v: Tensor,
}

impl AdamW {
    /// A fresh optimizer of a `[rows, cols]` matrix of `dtype` on `device`.
    ///
    /// # Errors
    /// `Config` naming the constant that is out of range.
    pub fn new(config: AdamWConfig, device: &Device, dtype: DType, rows: usize, cols: usize) -> Result<Self> {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = config;
        check_constant("adam_beta1", beta1, "a number in [0, 1)", (0.0..1.0).contains(&beta1))?;
        check_constant("adam_beta2", beta2, "a number in [0, 1)", (0.0..1.0).contains(&beta2))?;
        check_constant("adam_epsilon", eps, "a finite number above 0", eps > 0.0 && eps.is_finite())?;
        let decay_fits = weight_decay >= 0.0 && weight_decay.is_finite();
        check_constant("weight_decay", weight_decay, "a finite number from 0", decay_fits)?;
        let zeros = || Tensor::zeros(device, rows, cols, dtype, Kind::Optimizer);
        Ok(Self { config, steps: 0, m: zeros(), v: zeros() })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step: with t counted from 1,
    /// `p ← p(1 − lr·wd)`, `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`,
    /// `p ← p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε)`.
    ///
    /// # Errors
    /// `Op` where a shape or type does not fit; `Device` where a GPU fails.
    pub fn step(&mut self, params: &mut Tensor, grad: &Tensor, lr: f64) -> Result<()> {
        self.step_of(params, grad, lr, 1.0, None)
    }

    /// [`AdamW::step`] against `factor` times `grad`. Where the weight is held in bf16, as `grad` is, it is `value`, and
    /// `params` its copy in f32.
    pub(super) fn step_of(
        &mut self,
        params: &mut Tensor,
        grad: &Tensor,
        lr: f64,
        factor: f64,
        value: Option<&mut Tensor>,
    ) -> Result<()> {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let t = (self.steps + 1) as f64;
        let step = AdamWStep {
            factor,
            keep: 1.0 - lr * weight_decay,
            towards: 1.0 - beta1,
            decay: beta2,
            share: 1.0 - beta2,
            size: -(lr / (1.0 - beta1.powf(t))),
            correction: (1.0 - beta2.powf(t)).sqrt(),
            eps,
        };
        match value {
            Some(value) => adamw_rounded(params, grad, &mut self.m, &mut self.v, &step, value)?,
            None => adamw(params, grad, &mut self.m, &mut self.v, &step)?,
        }
        self.steps += 1;
        Ok(())
    }

    pub(super) fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    pub(super) fn moments(&self) -> [(&'static str, &Tensor); 2] {
        [("m", &self.m), ("v", &self.v)]
    }

    pub(super) fn moments_mut(&mut self) -> [(&'static str, &mut Tensor); 2] {
        [("m", &mut self.m), ("v", &mut self.v)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Element;

    /// What torch 2.x's AdamW (lr 0.05, weight decay 0.01, foreach off) makes of these in 1 and 5 steps.
    fn run<E: Element>(steps: usize) -> Vec<E> {
        let device = Device::cpu(Some(1)).unwrap();
        let row = |values: &[E]| Tensor::from_slice(&device, 1, 4, values, Kind::Optimizer).unwrap();
        let mut params = row(&[0.5, -1.25, 3.0, -0.001].map(E::from_f64));
        let config = AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(config, &device, E::DTYPE, 1, 4).unwrap();
        for t in 0..steps {
            let (sign, add) = (E::from_f64(if t % 2 == 0 { 1.0 } else { -0.5 }), E::from_f64(0.01 * t as f64));
            let grad = [0.1, -2.0, 0.003, 40.0].map(|g| E::from_f64(g) * sign + add);
            optimizer.step(&mut params, &row(&grad), 0.05).unwrap();
        }
        params.to_vec().unwrap()
    }

    #[test]
    fn f64_gives_torchs_numbers() {
        let want = [
            (1, [0.4497500049999995, -1.19937500025, 2.9485001666661113, -0.0509994999875]),
            (5, [0.3434059665575351, -1.1187734211111837, 2.76330286247941, -0.1306243047101436]),
        ];
        for (steps, want) in want {
            for (got, want) in run::<f64>(steps).iter().zip(want) {
                assert!((got - want).abs() <= 1e-15 * want.abs().max(1.0), "{steps} steps: {got} {want}");
            }
        }
    }

    #[test]
    fn f32_gives_torchs_numbers_but_for_last_bits() {
        let one = [0.449_749_98, -1.199_375, 2.948_500_2, -0.050_999_5];
        let five = [0.343_405_9, -1.118_773_5, 2.763_302_6, -0.130_624_3];
        for (steps, want) in [(1, one), (5, five)] {
            for (got, want) in run::<f32>(steps).iter().zip(want) {
                assert!((got - want).abs() <= 4.0 * f32::EPSILON * want.abs(), "{steps} steps: {got} {want}");
            }
        }
    }

    #[test]
    fn the_first_step_by_hand() {
        // m/(1-β₁) = g and √v/√(1-β₂) = |g|, so the step is lr·g/(|g|+ε): here 0.1·2/(2+1), after p·(1−0.1·0.5).
        let config = AdamWConfig { eps: 1.0, weight_decay: 0.5, ..AdamWConfig::default() };
        let device = Device::cpu(Some(1)).unwrap();
        let one = |value: f64| Tensor::from_slice(&device, 1, 1, &[value], Kind::Optimizer).unwrap();
        let mut params = one(4.0);
        let mut optimizer = AdamW::new(config, &device, DType::F64, 1, 1).unwrap();
        optimizer.step(&mut params, &one(2.0), 0.1).unwrap();
        assert!((params.as_slice::<f64>()[0] - (3.8 - 0.2 / 3.0)).abs() < 1e-15);
    }

    #[test]
    fn constants_out_of_range_are_named() {
        let d = AdamWConfig::default;
        for (config, name) in [
            (AdamWConfig { beta1: 1.0, ..d() }, "adam_beta1"),
            (AdamWConfig { beta2: -0.1, ..d() }, "adam_beta2"),
            (AdamWConfig { eps: 0.0, ..d() }, "adam_epsilon"),
            (AdamWConfig { weight_decay: f64::NAN, ..d() }, "weight_decay"),
        ] {
            let device = Device::cpu(Some(1)).unwrap();
            let error = AdamW::new(config, &device, DType::F32, 1, 1).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }
}
