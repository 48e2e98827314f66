//! `optimizer` on the CPU: in parallel chunks of fixed sizes, whose sums are added in their order, as weights are large.

use super::{AdafactorStep, AdamWStep};
use crate::dtype::Element;
use crate::ops::simd::{CHUNK, dot_f64, vectorised};
use crate::tensor::Tensor;
use rayon::prelude::*;

pub(super) fn adamw<E: Element>(params: &mut Tensor, grad: &Tensor, m: &mut Tensor, v: &mut Tensor, step: &AdamWStep) {
    let AdamWStep { factor, keep, towards, decay, share, size, correction, eps } = *step;
    let [factor, keep, towards, decay, share, size, correction, eps] =
        [factor, keep, towards, decay, share, size, correction, eps].map(E::from_f64);
    let moments = m.make_mut::<E>().par_chunks_mut(CHUNK).zip(v.make_mut::<E>().par_chunks_mut(CHUNK));
    let values = params.make_mut::<E>().par_chunks_mut(CHUNK).zip(grad.as_slice::<E>().par_chunks(CHUNK));
    values.zip(moments).for_each(|((p, g), (m, v))| {
        vectorised(
            #[inline(always)]
            || {
                for ((p, &g), (m, v)) in p.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
                    let g = factor * g;
                    *p *= keep;
                    *m = lerp(*m, g, towards);
                    *v = *v * decay + share * g * g;
                    *p += size * *m / (v.sqrt() / correction + eps);
                }
            },
        );
    });
}

/// `a + w(b − a)`, from the nearer end, as `torch.lerp`.
#[inline(always)]
fn lerp<E: Element>(a: E, b: E, w: E) -> E {
    if w < E::from_f64(0.5) { a + w * (b - a) } else { b - (b - a) * (E::ONE - w) }
}

pub(super) fn adafactor<E: Element>(params: &mut Tensor, grad: &Tensor, v: &mut Tensor, step: &AdafactorStep) {
    let grad = grad.as_slice::<E>();
    let (keep, share, eps) = (E::from_f64(1.0 - step.share), E::from_f64(step.share), E::from_f64(step.eps));
    v.make_mut::<E>().par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).for_each(|(v, g)| {
        for (v, &g) in v.iter_mut().zip(g) {
            *v = keep * *v + share * (g * g + eps);
        }
    });
    let v = v.as_slice::<E>();
    apply(step, params.make_mut(), grad, CHUNK, |chunk, i, g: E| g / v[chunk * CHUNK + i].sqrt());
}

pub(super) fn adafactor_factored<E: Element>(
    params: &mut Tensor,
    grad: &Tensor,
    rows: &mut Tensor,
    cols: &mut Tensor,
    step: &AdafactorStep,
) {
    let (width, grad) = (grad.cols(), grad.as_slice::<E>());
    update_means(rows.make_mut::<E>(), cols.make_mut::<E>(), grad, step);
    let (row, col) = factors(rows.as_slice::<E>(), cols.as_slice::<E>());
    apply(step, params.make_mut(), grad, width, |chunk, i, g: E| g * row[chunk] * col[i]);
}

/// Rows whose squares are added up by one thread.
const ROWS: usize = 64;

fn update_means<E: Element>(rows: &mut [E], cols: &mut [E], grad: &[E], step: &AdafactorStep) {
    let (width, height) = (cols.len(), rows.len());
    let blend = |old: E, mean: f64| E::from_f64((1.0 - step.share) * old.to_f64() + step.share * mean);
    let blocks = rows.par_chunks_mut(ROWS).zip(grad.par_chunks(ROWS * width)).map(|(rows, grad)| {
        let mut col_sums = vec![0.0; width];
        for (row, g) in rows.iter_mut().zip(grad.chunks_exact(width)) {
            let mut sum = 0.0;
            for (col_sum, g) in col_sums.iter_mut().zip(g) {
                let square = g.to_f64() * g.to_f64() + step.eps;
                sum += square;
                *col_sum += square;
            }
            *row = blend(*row, sum / width as f64);
        }
        col_sums
    });
    let blocks: Vec<Vec<f64>> = blocks.collect();
    for (at, col) in cols.iter_mut().enumerate() {
        let sum: f64 = blocks.iter().map(|sums| sums[at]).sum();
        *col = blend(*col, sum / height as f64);
    }
}

/// What a gradient is multiplied by for its row and for its column: `1/√(r/mean(r))` and `1/√k`.
fn factors<E: Element>(rows: &[E], cols: &[E]) -> (Vec<E>, Vec<E>) {
    let mean = rows.iter().map(|r| r.to_f64()).sum::<f64>() / rows.len() as f64;
    let root = |x: f64| E::from_f64(1.0 / x.sqrt());
    let row = rows.iter().map(|r| root(r.to_f64() / mean)).collect();
    (row, cols.iter().map(|k| root(k.to_f64())).collect())
}

/// Scales the updates down to the threshold, and by the parameters' size where that is asked for, and takes them. `y` gives
/// one by the number of its chunk of `size`, its place there, and its gradient. They are computed twice rather than kept.
fn apply<E: Element>(
    step: &AdafactorStep,
    params: &mut [E],
    grad: &[E],
    size: usize,
    y: impl Fn(usize, usize, E) -> E + Sync,
) {
    let squares = grad.par_chunks(size).enumerate().map(|(chunk, g)| {
        let squares = g.iter().enumerate().map(|(i, &g)| y(chunk, i, g).to_f64().powi(2));
        squares.sum::<f64>()
    });
    let squares: Vec<f64> = squares.collect();
    let root_mean = |sum: f64| (sum / grad.len() as f64).sqrt();
    let rms = root_mean(squares.iter().sum());
    let of_params = step.parameter_scale.map_or(1.0, |least| root_mean(sum_of_squares(params)).max(least));
    let scale = E::from_f64(step.lr * of_params / (rms / step.clip_threshold).max(1.0));
    let keep = E::from_f64(step.keep);
    params.par_chunks_mut(size).zip(grad.par_chunks(size)).enumerate().for_each(|(chunk, (p, g))| {
        for (i, (p, &g)) in p.iter_mut().zip(g).enumerate() {
            *p = keep * *p - scale * y(chunk, i, g);
        }
    });
}

/// Added up chunk by chunk, in their order.
pub(super) fn sum_of_squares<E: Element>(x: &[E]) -> f64 {
    let chunks: Vec<f64> = x
        .par_chunks(CHUNK)
        .map(|x| {
            vectorised(
                #[inline(always)]
                || dot_f64(x, x),
            )
        })
        .collect();
    chunks.iter().sum()
}

pub(super) fn scale<E: Element>(x: &mut [E], factor: E) {
    x.par_chunks_mut(CHUNK).for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_moment_that_keeps_nothing_is_the_gradient() {
        assert_eq!(lerp(5.0f32, 3.0, 1.0), 3.0);
        assert_eq!(lerp(5.0f32, 3.0, 0.25), 4.5);
    }
}
