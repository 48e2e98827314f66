//! `layer_norm` on the CPU. A row is worked on in f64 and rounded once: memory, not arithmetic, is what it waits for.

use crate::dtype::Element;
use crate::ops::simd::{dot, rows_per_task, sum, vectorised};
use crate::ops::wide::column_sums;
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Writes `x − mean(x)` to `centred` and returns `1/√(var(x) + ε)`.
#[inline(always)]
fn centre<E: Element>(x: &[E], epsilon: f64, centred: &mut [f64]) -> f64 {
    for i in 0..x.len() {
        centred[i] = Element::to_f64(x[i]);
    }
    let count = x.len() as f64;
    let mean = sum(centred) / count;
    for i in 0..x.len() {
        centred[i] -= mean;
    }
    1.0 / (dot(centred, centred) / count + epsilon).sqrt()
}

pub(super) fn forward<E: Element>(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64, y: &mut Tensor) {
    let cols = x.cols();
    let (weight, bias) = (weight.as_slice::<E>(), bias.as_slice::<E>());
    let task = rows_per_task(cols) * cols.max(1);
    y.make_mut::<E>().par_chunks_mut(task).zip(x.as_slice::<E>().par_chunks(task)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                let mut normed = vec![0.0; cols];
                for (y, x) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
                    let r = centre(x, epsilon, &mut normed);
                    for i in 0..cols {
                        let (weight, bias) = (Element::to_f64(weight[i]), Element::to_f64(bias[i]));
                        y[i] = E::from_f64(normed[i] * r * weight + bias);
                    }
                }
            },
        );
    });
}

pub(super) fn backward<E: Element>(
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    epsilon: f64,
    dx: &mut Tensor,
    accumulate: Accumulate,
) {
    let cols = x.cols();
    let (weight, count) = (weight.as_slice::<E>(), cols as f64);
    let task = rows_per_task(cols) * cols.max(1);
    let inputs = dy.as_slice::<E>().par_chunks(task).zip(x.as_slice::<E>().par_chunks(task));
    dx.make_mut::<E>().par_chunks_mut(task).zip(inputs).for_each(|(dx, (dy, x))| {
        vectorised(
            #[inline(always)]
            || {
                let (mut g, mut normed) = (vec![0.0; cols], vec![0.0; cols]);
                for ((dx, dy), x) in dx.chunks_exact_mut(cols).zip(dy.chunks_exact(cols)).zip(x.chunks_exact(cols)) {
                    let r = centre(x, epsilon, &mut normed);
                    for i in 0..cols {
                        normed[i] *= r;
                        g[i] = Element::to_f64(weight[i]) * Element::to_f64(dy[i]);
                    }
                    let mean = sum(&g) / count;
                    let along = dot(&g, &normed) / count;
                    match accumulate {
                        Accumulate::Replace => {
                            for i in 0..cols {
                                dx[i] = E::from_f64(r * (g[i] - mean - normed[i] * along));
                            }
                        }
                        Accumulate::Add => {
                            for i in 0..cols {
                                dx[i] += E::from_f64(r * (g[i] - mean - normed[i] * along));
                            }
                        }
                    }
                }
            },
        );
    });
}

/// `dw = Σ x̂ ∘ dy` and `db = Σ dy` over the rows.
pub(super) fn weight_gradient<E: Element>(dy: &Tensor, x: &Tensor, epsilon: f64, dw: &mut Tensor, db: &mut Tensor) {
    let cols = x.cols();
    let mut both = vec![E::ZERO; 2 * cols];
    column_sums(dy.rows(), &mut both, Accumulate::Replace, |rows, sums| {
        let (along, total) = sums.split_at_mut(cols);
        let mut normed = vec![0.0; cols];
        let range = rows.start * cols..rows.end * cols;
        let pairs =
            dy.as_slice::<E>()[range.clone()].chunks_exact(cols).zip(x.as_slice::<E>()[range].chunks_exact(cols));
        for (dy, x) in pairs {
            let r = centre(x, epsilon, &mut normed);
            for i in 0..cols {
                along[i] += Element::to_f64(dy[i]) * (normed[i] * r);
                total[i] += Element::to_f64(dy[i]);
            }
        }
    });
    dw.make_mut::<E>().copy_from_slice(&both[..cols]);
    db.make_mut::<E>().copy_from_slice(&both[cols..]);
}
