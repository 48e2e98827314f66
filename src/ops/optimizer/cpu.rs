//! `optimizer` on the CPU. AdamW and norms are for whole models too, so they take chunks in parallel; Adafactor is for
//! prompts, which are small.

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
    for (v, &g) in v.make_mut::<E>().iter_mut().zip(grad) {
        *v = keep * *v + share * (g * g + eps);
    }
    let v = v.as_slice::<E>();
    apply(step, params.make_mut(), grad, |i, g: E| g / v[i].sqrt());
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
    apply(step, params.make_mut(), grad, |i, g: E| g * row[i / width] * col[i % width]);
}

fn update_means<E: Element>(rows: &mut [E], cols: &mut [E], grad: &[E], step: &AdafactorStep) {
    let width = cols.len();
    let blend = |old: E, mean: f64| E::from_f64((1.0 - step.share) * old.to_f64() + step.share * mean);
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
fn apply<E: Element>(step: &AdafactorStep, params: &mut [E], grad: &[E], y: impl Fn(usize, E) -> E) {
    let squares = grad.iter().enumerate().map(|(i, &g)| {
        let y = y(i, g).to_f64();
        y * y
    });
    let rms = (squares.sum::<f64>() / grad.len() as f64).sqrt();
    let scale = E::from_f64(step.lr / (rms / step.clip_threshold).max(1.0));
    let keep = E::from_f64(step.keep);
    for (i, (p, &g)) in params.iter_mut().zip(grad).enumerate() {
        *p = keep * *p - scale * y(i, g);
    }
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
