//! Adafactor as T5X trains prompts with it (Shazeer and Stern 2018 without momentum and parameter scaling).

use super::{check_constant, check_lengths};
use crate::dtype::Element;
use crate::error::Result;

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
}

impl Default for AdafactorConfig {
    fn default() -> Self {
        Self {
            decay_exponent: 0.8,
            eps: 1e-30,
            clip_threshold: 1.0,
            weight_decay: 1e-5,
            min_dim_factored: 128,
            step_offset: 0,
        }
    }
}

/// Adafactor of one `[rows, cols]` matrix, with t counted from 0:
///
/// `β = 1 − (t+1)^−c`, `v ← βv + (1−β)(g²+ε)`, `y = g/√v`, `y ← y / max(1, RMS(y)/clip)`, `p ← (1−wd)p − lr·y`.
///
/// Where v is factored, its row means `r` and column means `k` are kept instead, and `v ≈ r·k / mean(r)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Adafactor<E: Element> {
    config: AdafactorConfig,
    cols: usize,
    steps: u64,
    moment: Moment<E>,
}

#[derive(Debug, Clone, PartialEq)]
enum Moment<E> {
    Full { v: Vec<E> },
    Factored { rows: Vec<E>, cols: Vec<E> },
}

impl<E: Element> Adafactor<E> {
    /// A fresh optimizer of a `[rows, cols]` matrix.
    ///
    /// # Errors
    /// `Config` naming the constant that is out of range.
    pub fn new(config: AdafactorConfig, rows: usize, cols: usize) -> Result<Self> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let (exponent, eps, clip, decay) =
            (config.decay_exponent, config.eps, config.clip_threshold, config.weight_decay);
        check_constant("decay_exponent", exponent, "a finite number above 0", positive(exponent))?;
        // An ε that rounds to zero would divide 0 by 0 where a gradient is 0.
        let eps_fits = positive(eps) && E::from_f64(eps) > E::ZERO;
        check_constant("adafactor_epsilon", eps, "a finite number above 0", eps_fits)?;
        check_constant("clip_threshold", clip, "a finite number above 0", positive(clip))?;
        check_constant("weight_decay", decay, "a number in [0, 1)", (0.0..1.0).contains(&decay))?;
        let moment = if rows.min(cols) >= config.min_dim_factored {
            Moment::Factored { rows: vec![E::ZERO; rows], cols: vec![E::ZERO; cols] }
        } else {
            Moment::Full { v: vec![E::ZERO; rows * cols] }
        };
        Ok(Self { config, cols, steps: 0, moment })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One step; see [`Adafactor`] for the formula.
    ///
    /// # Errors
    /// `Op` where a length does not fit.
    pub fn step(&mut self, params: &mut [E], grad: &[E], lr: f64) -> Result<()> {
        let len = match &self.moment {
            Moment::Full { v } => v.len(),
            Moment::Factored { rows, cols } => rows.len() * cols.len(),
        };
        check_lengths("Adafactor", len, params, grad)?;
        if len > 0 {
            let t = (self.steps + self.config.step_offset) as f64;
            let share = (t + 1.0).powf(-self.config.decay_exponent);
            match &mut self.moment {
                Moment::Full { v } => {
                    update_full(v, grad, share, self.config.eps);
                    let y = |i: usize, g: E| g / v[i].sqrt();
                    apply(&self.config, params, grad, lr, y);
                }
                Moment::Factored { rows, cols } => {
                    update_factored(rows, cols, grad, share, self.config.eps);
                    let (row, col) = factors(rows, cols);
                    let width = self.cols;
                    let y = |i: usize, g: E| g * row[i / width] * col[i % width];
                    apply(&self.config, params, grad, lr, y);
                }
            }
        }
        self.steps += 1;
        Ok(())
    }

    pub(super) fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    pub(super) fn buffers(&self) -> Vec<(&'static str, &[E])> {
        match &self.moment {
            Moment::Full { v } => vec![("v", v)],
            Moment::Factored { rows, cols } => vec![("v_row", rows), ("v_col", cols)],
        }
    }

    pub(super) fn buffers_mut(&mut self) -> Vec<(&'static str, &mut Vec<E>)> {
        match &mut self.moment {
            Moment::Full { v } => vec![("v", v)],
            Moment::Factored { rows, cols } => vec![("v_row", rows), ("v_col", cols)],
        }
    }
}

fn update_full<E: Element>(v: &mut [E], grad: &[E], share: f64, eps: f64) {
    let (keep, share, eps) = (E::from_f64(1.0 - share), E::from_f64(share), E::from_f64(eps));
    for (v, &g) in v.iter_mut().zip(grad) {
        *v = keep * *v + share * (g * g + eps);
    }
}

fn update_factored<E: Element>(rows: &mut [E], cols: &mut [E], grad: &[E], share: f64, eps: f64) {
    let width = cols.len();
    let blend = |old: E, mean: f64| E::from_f64((1.0 - share) * old.to_f64() + share * mean);
    let mut col_sums = vec![0.0; width];
    for (row, g) in rows.iter_mut().zip(grad.chunks_exact(width)) {
        let mut sum = 0.0;
        for (col_sum, g) in col_sums.iter_mut().zip(g) {
            let square = g.to_f64() * g.to_f64() + eps;
            sum += square;
            *col_sum += square;
        }
        *row = blend(*row, sum / width as f64);
    }
    for (col, sum) in cols.iter_mut().zip(col_sums) {
        *col = blend(*col, sum / rows.len() as f64);
    }
}

/// What a gradient is multiplied by for its row and for its column: `1/√(r/mean(r))` and `1/√k`.
fn factors<E: Element>(rows: &[E], cols: &[E]) -> (Vec<E>, Vec<E>) {
    let mean = rows.iter().map(|r| r.to_f64()).sum::<f64>() / rows.len() as f64;
    let root = |x: f64| E::from_f64(1.0 / x.sqrt());
    let row = rows.iter().map(|r| root(r.to_f64() / mean)).collect();
    (row, cols.iter().map(|k| root(k.to_f64())).collect())
}

/// Scales the updates `y(index, gradient)` down to the threshold and takes them. They are computed twice rather than kept.
fn apply<E: Element>(config: &AdafactorConfig, params: &mut [E], grad: &[E], lr: f64, y: impl Fn(usize, E) -> E) {
    let squares = grad.iter().enumerate().map(|(i, &g)| {
        let y = y(i, g).to_f64();
        y * y
    });
    let rms = (squares.sum::<f64>() / grad.len() as f64).sqrt();
    let scale = E::from_f64(lr / (rms / config.clip_threshold).max(1.0));
    let keep = E::from_f64(1.0 - config.weight_decay);
    for (i, (p, &g)) in params.iter_mut().zip(grad).enumerate() {
        *p = keep * *p - scale * y(i, g);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut got: Vec<E> = want.concat().into_iter().map(E::from_f64).collect();
        let mut naive = Naive::new(rows, cols);
        let mut ours = Adafactor::new(AdafactorConfig::default(), rows, cols).unwrap();
        assert_eq!(ours.buffers().len(), if factored { 2 } else { 1 });
        for t in 0..5 {
            let g: Vec<Vec<f64>> =
                (0..rows).map(|i| (0..cols).map(|j| E::from_f64(wave(i, j, t)).to_f64()).collect()).collect();
            naive.step(&mut want, &g, 0.3, factored);
            let flat: Vec<E> = g.concat().into_iter().map(E::from_f64).collect();
            ours.step(&mut got, &flat, 0.3).unwrap();
        }
        for (got, want) in got.iter().zip(want.concat()) {
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
        let mut params = [4.0f64, 8.0];
        Adafactor::new(config.clone(), 1, 2).unwrap().step(&mut params, &[2.0, -5e-3], 0.3).unwrap();
        assert!((params[0] - 2.7).abs() < 1e-15 && (params[1] - 6.3).abs() < 1e-15, "{params:?}");

        // With an offset of 1, 1−β = 2^−0.8 and y = ±2^0.4 > 1, which is clipped back to 1.
        let late = AdafactorConfig { step_offset: 1, ..config.clone() };
        let mut params = [4.0f64, 8.0];
        Adafactor::new(late.clone(), 1, 2).unwrap().step(&mut params, &[2.0, -5e-3], 0.3).unwrap();
        assert!((params[0] - 2.7).abs() < 1e-15, "{params:?}");
        let mut params = [4.0f64, 8.0];
        let loose = AdafactorConfig { clip_threshold: 100.0, ..late };
        Adafactor::new(loose, 1, 2).unwrap().step(&mut params, &[2.0, -5e-3], 0.3).unwrap();
        assert!((params[0] - (3.0 - 0.3 * 2f64.powf(0.4))).abs() < 1e-15, "{params:?}");

        // Factored, g = [[1, 1], [1, 7]]: r = [1, 25], k = [1, 25], mean 13, so v₀₀ = 1/13 and y₀₀ = √13; y = g/√v is
        // [[3.606, 0.721], [0.721, 1.010]] of RMS 1.9387.
        let factored = AdafactorConfig { min_dim_factored: 2, weight_decay: 0.0, ..config };
        let mut params = [0.0f64; 4];
        Adafactor::new(factored, 2, 2).unwrap().step(&mut params, &[1.0, 1.0, 1.0, 7.0], 1.0).unwrap();
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
            let mut params = [1.0f32; 4];
            Adafactor::new(config, 2, 2).unwrap().step(&mut params, &[0.0; 4], 0.3).unwrap();
            assert_eq!(params, [1.0 - 1e-5; 4]);
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
        ] {
            let error = Adafactor::<f32>::new(config, 1, 1).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().starts_with(name), "{error}");
        }
    }
}
