//! Adafactor as T5X trains prompts and models with it (Shazeer and Stern 2018 without momentum; a prompt's steps are not
//! scaled by its size, a weight's are).

use super::{check_constant, converted};
use crate::device::{Device, Kind};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::optimizer::{self, AdafactorStep, adafactor, adafactor_factored};
use crate::tensor::Tensor;

/// The constants of [`Adafactor`]; the defaults are those of Lester et al. 2021.
#[derive(Debug, Clone, PartialEq)]
pub struct AdafactorConfig {
    /// The exponent c of the decay `β_t = 1 − (t+1)^−c`, above 0.
    pub decay_exponent: f64,
    /// Added to the squared gradient, above 0.
    pub eps: f64,
    /// The root mean square above which an update is scaled down to it, above 0.
    pub clip_threshold: f64,
    /// The share of a parameter that each step removes, whatever the learning rate; in [0, 1).
    pub weight_decay: f64,
    /// The second moment is kept as row and column means where both dimensions have at least this size.
    pub min_dim_factored: usize,
    /// Added to t in β_t: the paper's runs go on from the pre-trained model's step counter, about 1.1 million.
    pub step_offset: u64,
    /// ε₂ of Shazeer and Stern 2018, above 0: an update is multiplied by the root mean square of its parameters, or by this
    /// where they have less. `None`: it is not, as for the paper's prompts. T5X trains weights with [`PARAMETER_SCALE`].
    pub parameter_scale: Option<f64>,
}

/// The ε₂ of T5X.
pub const PARAMETER_SCALE: f64 = 1e-3;

impl Default for AdafactorConfig {
    fn default() -> Self {
        Self {
            decay_exponent: 0.8,
            eps: 1e-30,
            clip_threshold: 1.0,
            weight_decay: 1e-5,
            min_dim_factored: 128,
            step_offset: 0,
            parameter_scale: None,
        }
    }
}

impl AdafactorConfig {
    pub(super) fn is_factored(&self, rows: usize, cols: usize) -> bool {
        rows.min(cols) >= self.min_dim_factored
    }
}

/// Adafactor of one `[rows, cols]` matrix, with t counted from 0:
///
/// `β = 1 − (t+1)^−c`, `v ← βv + (1−β)(g²+ε)`, `y = g/√v`, `y ← y / max(1, RMS(y)/clip)`, `p ← (1−wd)p − lr·s·y`, with
/// `s = max(parameter_scale, RMS(p))`, or 1.
///
/// Where v is factored, its row means `r` and column means `k` are kept instead, and `v ≈ r·k / mean(r)`.
#[derive(Debug, Clone)]
pub struct Adafactor {
    config: AdafactorConfig,
    steps: u64,
    moment: Moment,
}

#[derive(Debug, Clone)]
enum Moment {
    Full { v: Tensor },
    Factored { rows: Tensor, cols: Tensor },
}

impl Adafactor {
    /// A fresh optimizer of a `[rows, cols]` matrix of `dtype` on `device`.
    ///
    /// # Errors
    /// `Config` naming the constant that is out of range.
    pub fn new(config: AdafactorConfig, device: &Device, dtype: DType, rows: usize, cols: usize) -> Result<Self> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let (exponent, eps, clip, decay) =
            (config.decay_exponent, config.eps, config.clip_threshold, config.weight_decay);
        check_constant("decay_exponent", exponent, "a finite number above 0", positive(exponent))?;
        // An ε that rounds to zero would divide 0 by 0 where a gradient is 0.
        let eps_fits = positive(eps) && (dtype == DType::F64 || eps as f32 > 0.0);
        check_constant("adafactor_epsilon", eps, "a finite number above 0", eps_fits)?;
        check_constant("clip_threshold", clip, "a finite number above 0", positive(clip))?;
        check_constant("weight_decay", decay, "a number in [0, 1)", (0.0..1.0).contains(&decay))?;
        let scale = config.parameter_scale.unwrap_or(1.0);
        check_constant("parameter_scale", scale, "a finite number above 0", positive(scale))?;
        let zeros = |rows, cols| Tensor::zeros(device, rows, cols, dtype, Kind::Optimizer);
        let moment = if config.is_factored(rows, cols) {
            Moment::Factored { rows: zeros(1, rows), cols: zeros(1, cols) }
        } else {
            Moment::Full { v: zeros(rows, cols) }
        };
        Ok(Self { config, steps: 0, moment })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step; see [`Adafactor`] for the formula.
    ///
    /// # Errors
    /// `Op` where a shape or type does not fit; `Device` where a GPU fails.
    pub fn step(&mut self, params: &mut Tensor, grad: &Tensor, lr: f64) -> Result<()> {
        let t = (self.steps + self.config.step_offset) as f64;
        let step = AdafactorStep {
            share: (t + 1.0).powf(-self.config.decay_exponent),
            eps: self.config.eps,
            clip_threshold: self.config.clip_threshold,
            keep: 1.0 - self.config.weight_decay,
            lr,
            parameter_scale: self.config.parameter_scale,
        };
        match &mut self.moment {
            Moment::Full { v } => adafactor(params, grad, v, &step)?,
            Moment::Factored { rows, cols } => adafactor_factored(params, grad, rows, cols, &step)?,
        }
        self.steps += 1;
        Ok(())
    }

    /// [`Adafactor::step`] against `factor` times `grad`. Where the weight is held in bf16, as `grad` is, it is `value`, and
    /// `params` its copy in f32.
    pub(super) fn step_of(
        &mut self,
        params: &mut Tensor,
        grad: Tensor,
        lr: f64,
        factor: f64,
        value: Option<&mut Tensor>,
    ) -> Result<()> {
        let mut grad = converted(grad, params.dtype())?;
        optimizer::scale(&mut grad, factor)?;
        self.step(params, &grad, lr)?;
        match value {
            Some(value) => value.copy_from_prefix(&converted(params.clone(), value.dtype())?, params.rows()),
            None => Ok(()),
        }
    }

    pub(super) fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    pub(super) fn moments(&self) -> Vec<(&'static str, &Tensor)> {
        match &self.moment {
            Moment::Full { v } => vec![("v", v)],
            Moment::Factored { rows, cols } => vec![("v_row", rows), ("v_col", cols)],
        }
    }

    pub(super) fn moments_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        match &mut self.moment {
            Moment::Full { v } => vec![("v", v)],
            Moment::Factored { rows, cols } => vec![("v_row", rows), ("v_col", cols)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Element;

    /// What one step of a fresh optimizer makes of a matrix.
    fn first_step(
        config: AdafactorConfig,
        (rows, cols): (usize, usize),
        params: &[f64],
        grad: &[f64],
        lr: f64,
    ) -> Vec<f64> {
        let device = Device::cpu(Some(1)).unwrap();
        let matrix = |values| Tensor::from_f64(&device, rows, cols, DType::F64, values, Kind::Optimizer).unwrap();
        let mut params = matrix(params);
        let mut optimizer = Adafactor::new(config, &device, DType::F64, rows, cols).unwrap();
        optimizer.step(&mut params, &matrix(grad), lr).unwrap();
        params.to_vec().unwrap()
    }

    /// The formulas once more, on a matrix of f64, with every intermediate written out.
    struct Naive {
        v: Vec<Vec<f64>>,
        row: Vec<f64>,
        col: Vec<f64>,
        t: i32,
    }

    impl Naive {
        fn new(rows: usize, cols: usize) -> Self {
            Self { v: vec![vec![0.0; cols]; rows], row: vec![0.0; rows], col: vec![0.0; cols], t: 0 }
        }

        fn step(&mut self, p: &mut [Vec<f64>], g: &[Vec<f64>], lr: f64, factored: bool) {
            let (rows, cols) = (g.len(), g[0].len());
            let beta = 1.0 - f64::from(self.t + 1).powf(-0.8);
            let g2: Vec<Vec<f64>> = g.iter().map(|r| r.iter().map(|x| x.powi(2) + 1e-30).collect()).collect();
            for i in 0..rows {
                let mean = g2[i].iter().sum::<f64>() / cols as f64;
                self.row[i] = beta * self.row[i] + (1.0 - beta) * mean;
                for j in 0..cols {
                    self.v[i][j] = beta * self.v[i][j] + (1.0 - beta) * g2[i][j];
                }
            }
            for j in 0..cols {
                let mean = (0..rows).map(|i| g2[i][j]).sum::<f64>() / rows as f64;
                self.col[j] = beta * self.col[j] + (1.0 - beta) * mean;
            }
            let total = self.row.iter().sum::<f64>() / rows as f64;
            let mut y = g.to_vec();
            for i in 0..rows {
                for j in 0..cols {
                    let v = if factored { self.row[i] * self.col[j] / total } else { self.v[i][j] };
                    y[i][j] = g[i][j] / v.sqrt();
                }
            }
            let rms = (y.iter().flatten().map(|x| x * x).sum::<f64>() / (rows * cols) as f64).sqrt();
            for i in 0..rows {
                for j in 0..cols {
                    p[i][j] = (1.0 - 1e-5) * p[i][j] - lr * y[i][j] / rms.max(1.0);
                }
            }
            self.t += 1;
        }
    }

    fn wave(i: usize, j: usize, t: usize) -> f64 {
        ((i * 31 + j * 17 + t * 7) as f64).sin() * if (i + t).is_multiple_of(3) { 1e-3 } else { 5.0 }
    }

    fn against_naive<E: Element>(rows: usize, cols: usize, tolerance: f64) {
        let factored = rows >= 128 && cols >= 128;
        let mut want: Vec<Vec<f64>> =
            (0..rows).map(|i| (0..cols).map(|j| E::from_f64(wave(j, i, 99)).to_f64()).collect()).collect();
        let device = Device::cpu(Some(1)).unwrap();
        let matrix =
            |values: Vec<f64>| Tensor::from_f64(&device, rows, cols, E::DTYPE, &values, Kind::Optimizer).unwrap();
        let mut got = matrix(want.concat());
        let mut naive = Naive::new(rows, cols);
        let mut ours = Adafactor::new(AdafactorConfig::default(), &device, E::DTYPE, rows, cols).unwrap();
        assert_eq!(ours.moments().len(), if factored { 2 } else { 1 });
        for t in 0..5 {
            let g: Vec<Vec<f64>> =
                (0..rows).map(|i| (0..cols).map(|j| E::from_f64(wave(i, j, t)).to_f64()).collect()).collect();
            naive.step(&mut want, &g, 0.3, factored);
            ours.step(&mut got, &matrix(g.concat()), 0.3).unwrap();
        }
        for (got, want) in got.as_slice::<E>().iter().zip(want.concat()) {
            assert!((got.to_f64() - want).abs() <= tolerance * want.abs().max(1.0), "{got:?} {want}");
        }
    }

    #[test]
    fn a_naive_reference_agrees_factored_and_not() {
        for (rows, cols) in [(3, 5), (127, 130), (130, 127), (128, 128), (129, 140)] {
            against_naive::<f64>(rows, cols, 1e-13);
            against_naive::<f32>(rows, cols, 2e-6);
        }
    }

    #[test]
    fn the_first_step_by_hand() {
        // β₀ = 0, so v = g² and y = sign(g), of RMS 1 over two: p ← (1−0.25)p ∓ 0.3.
        let config = AdafactorConfig { weight_decay: 0.25, ..AdafactorConfig::default() };
        let params = first_step(config.clone(), (1, 2), &[4.0, 8.0], &[2.0, -5e-3], 0.3);
        assert!((params[0] - 2.7).abs() < 1e-15 && (params[1] - 6.3).abs() < 1e-15, "{params:?}");

        // With an offset of 1, 1−β = 2^−0.8 and y = ±2^0.4 > 1, which is clipped back to 1.
        let late = AdafactorConfig { step_offset: 1, ..config.clone() };
        let params = first_step(late.clone(), (1, 2), &[4.0, 8.0], &[2.0, -5e-3], 0.3);
        assert!((params[0] - 2.7).abs() < 1e-15, "{params:?}");
        let loose = AdafactorConfig { clip_threshold: 100.0, ..late };
        let params = first_step(loose, (1, 2), &[4.0, 8.0], &[2.0, -5e-3], 0.3);
        assert!((params[0] - (3.0 - 0.3 * 2f64.powf(0.4))).abs() < 1e-15, "{params:?}");

        // Scaled by the parameters' root mean square, √40, or by the least there is.
        let scaled = |least| AdafactorConfig { parameter_scale: Some(least), ..config.clone() };
        for (least, scale) in [(1e-3, 40f64.sqrt()), (100.0, 100.0)] {
            let params = first_step(scaled(least), (1, 2), &[4.0, 8.0], &[2.0, -5e-3], 0.3);
            assert!((params[0] - (3.0 - 0.3 * scale)).abs() < 1e-14, "{params:?}");
        }

        // Factored, g = [[1, 1], [1, 7]]: r = [1, 25], k = [1, 25], mean 13, so v₀₀ = 1/13 and y₀₀ = √13; y = g/√v is
        // [[3.606, 0.721], [0.721, 1.010]] of RMS 1.9387.
        let factored = AdafactorConfig { min_dim_factored: 2, weight_decay: 0.0, ..config };
        let params = first_step(factored, (2, 2), &[0.0; 4], &[1.0, 1.0, 1.0, 7.0], 1.0);
        let v = [1.0 / 13.0, 25.0 / 13.0, 25.0 / 13.0, 625.0 / 13.0];
        let y = [1.0 / f64::sqrt(v[0]), 1.0 / f64::sqrt(v[1]), 1.0 / f64::sqrt(v[2]), 7.0 / f64::sqrt(v[3])];
        let rms = (y.iter().map(|y| y * y).sum::<f64>() / 4.0).sqrt();
        for (p, y) in params.iter().zip(y) {
            assert!((p + y / rms).abs() < 1e-15, "{params:?}");
        }
    }

    #[test]
    fn zero_gradients_only_decay() {
        for min_dim_factored in [1, 128] {
            let config = AdafactorConfig { min_dim_factored, ..AdafactorConfig::default() };
            assert_eq!(first_step(config, (2, 2), &[1.0; 4], &[0.0; 4], 0.3), [1.0 - 1e-5; 4]);
        }
    }

    #[test]
    fn constants_out_of_range_are_named() {
        let d = AdafactorConfig::default;
        for (config, name) in [
            (AdafactorConfig { decay_exponent: 0.0, ..d() }, "decay_exponent"),
            (AdafactorConfig { eps: 1e-60, ..d() }, "adafactor_epsilon"),
            (AdafactorConfig { clip_threshold: f64::INFINITY, ..d() }, "clip_threshold"),
            (AdafactorConfig { weight_decay: 1.0, ..d() }, "weight_decay"),
            (AdafactorConfig { parameter_scale: Some(0.0), ..d() }, "parameter_scale"),
        ] {
            let device = Device::cpu(Some(1)).unwrap();
            let error = Adafactor::new(config, &device, DType::F32, 1, 1).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }
}
