//! AdamW, in the order of operations of PyTorch's single-tensor code.
//!
//! In f32 it differs from PyTorch on AVX2 in last bits: fused multiply-adds and MKL's square root round otherwise.

use super::{check_constant, check_lengths};
use crate::dtype::Element;
use crate::error::Result;

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
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW<E: Element> {
    config: AdamWConfig,
    steps: u64,
    m: Vec<E>,
    v: Vec<E>,
}

impl<E: Element> AdamW<E> {
    /// A fresh optimizer of `len` parameters.
    ///
    /// # Errors
    /// `Config` naming the constant that is out of range.
    pub fn new(config: AdamWConfig, len: usize) -> Result<Self> {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = config;
        check_constant("adam_beta1", beta1, "a number in [0, 1)", (0.0..1.0).contains(&beta1))?;
        check_constant("adam_beta2", beta2, "a number in [0, 1)", (0.0..1.0).contains(&beta2))?;
        check_constant("adam_epsilon", eps, "a finite number above 0", eps > 0.0 && eps.is_finite())?;
        let decay_fits = weight_decay >= 0.0 && weight_decay.is_finite();
        check_constant("weight_decay", weight_decay, "a finite number from 0", decay_fits)?;
        Ok(Self { config, steps: 0, m: vec![E::ZERO; len], v: vec![E::ZERO; len] })
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
    /// `Op` where a length does not fit.
    pub fn step(&mut self, params: &mut [E], grad: &[E], lr: f64) -> Result<()> {
        check_lengths("AdamW", self.m.len(), params, grad)?;
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let t = self.steps as f64;
        let keep = E::from_f64(1.0 - lr * weight_decay);
        let towards = E::from_f64(1.0 - beta1);
        let (decay, share) = (E::from_f64(beta2), E::from_f64(1.0 - beta2));
        let size = E::from_f64(-(lr / (1.0 - beta1.powf(t))));
        let correction = E::from_f64((1.0 - beta2.powf(t)).sqrt());
        let eps = E::from_f64(eps);
        for (((p, &g), m), v) in params.iter_mut().zip(grad).zip(&mut self.m).zip(&mut self.v) {
            *p *= keep;
            *m = lerp(*m, g, towards);
            *v = *v * decay + share * g * g;
            *p += size * *m / (v.sqrt() / correction + eps);
        }
        Ok(())
    }

    pub(super) fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    pub(super) fn buffers(&self) -> [(&'static str, &[E]); 2] {
        [("m", &self.m), ("v", &self.v)]
    }

    pub(super) fn buffers_mut(&mut self) -> [(&'static str, &mut Vec<E>); 2] {
        [("m", &mut self.m), ("v", &mut self.v)]
    }
}

/// `a + w(b − a)`, from the nearer end, as `torch.lerp`.
fn lerp<E: Element>(a: E, b: E, w: E) -> E {
    if w < E::from_f64(0.5) { a + w * (b - a) } else { b - (b - a) * (E::ONE - w) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What torch 2.x's AdamW (lr 0.05, weight decay 0.01, foreach off) makes of these in 1 and 5 steps.
    fn run<E: Element>(steps: usize) -> Vec<E> {
        let mut params = [0.5, -1.25, 3.0, -0.001].map(E::from_f64).to_vec();
        let config = AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(config, 4).unwrap();
        for t in 0..steps {
            let (sign, add) = (E::from_f64(if t % 2 == 0 { 1.0 } else { -0.5 }), E::from_f64(0.01 * t as f64));
            let grad = [0.1, -2.0, 0.003, 40.0].map(|g| E::from_f64(g) * sign + add);
            optimizer.step(&mut params, &grad, 0.05).unwrap();
        }
        params
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
        let mut params = [4.0f64];
        AdamW::new(config, 1).unwrap().step(&mut params, &[2.0], 0.1).unwrap();
        assert!((params[0] - (3.8 - 0.2 / 3.0)).abs() < 1e-15);
    }

    #[test]
    fn a_first_moment_that_keeps_nothing_is_the_gradient() {
        assert_eq!(lerp(5.0f32, 3.0, 1.0), 3.0);
        assert_eq!(lerp(5.0f32, 3.0, 0.25), 4.5);
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
            let error = AdamW::<f32>::new(config, 1).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }
}
