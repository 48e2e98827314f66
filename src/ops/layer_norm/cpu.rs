//! `layer_norm` on the CPU.

use crate::dtype::Element;
use crate::ops::simd::{dot, rows_per_task, sum, vectorised};
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Writes `x − mean(x)` to `centred` and returns `1/√(var(x) + ε)`.
#[inline(always)]
fn centre<E: Element>(x: &[E], epsilon: E, centred: &mut [E]) -> E {
    let count = E::from_f64(x.len() as f64);
    let mean = sum(x) / count;
    for i in 0..x.len() {
        centred[i] = x[i] - mean;
    }
    E::ONE / Element::sqrt(dot(centred, centred) / count + epsilon)
}

pub(super) fn forward<E: Element>(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64, y: &mut Tensor) {
    let cols = x.cols();
    let (weight, bias, epsilon) = (weight.as_slice::<E>(), bias.as_slice::<E>(), E::from_f64(epsilon));
    let task = rows_per_task(cols) * cols.max(1);
    y.make_mut::<E>().par_chunks_mut(task).zip(x.as_slice::<E>().par_chunks(task)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
                    let r = centre(x, epsilon, y);
                    for i in 0..cols {
                        y[i] = y[i] * r * weight[i] + bias[i];
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
    let count = E::from_f64(cols as f64);
    let (weight, epsilon) = (weight.as_slice::<E>(), E::from_f64(epsilon));
    let task = rows_per_task(cols) * cols.max(1);
    let inputs = dy.as_slice::<E>().par_chunks(task).zip(x.as_slice::<E>().par_chunks(task));
    dx.make_mut::<E>().par_chunks_mut(task).zip(inputs).for_each(|(dx, (dy, x))| {
        vectorised(
            #[inline(always)]
            || {
                let (mut g, mut normed) = (vec![E::ZERO; cols], vec![E::ZERO; cols]);
                for ((dx, dy), x) in dx.chunks_exact_mut(cols).zip(dy.chunks_exact(cols)).zip(x.chunks_exact(cols)) {
                    let r = centre(x, epsilon, &mut normed);
                    for i in 0..cols {
                        normed[i] *= r;
                        g[i] = weight[i] * dy[i];
                    }
                    let mean = sum(&g) / count;
                    let along = dot(&g, &normed) / count;
                    match accumulate {
                        Accumulate::Replace => {
                            for i in 0..cols {
                                dx[i] = r * (g[i] - mean - normed[i] * along);
                            }
                        }
                        Accumulate::Add => {
                            for i in 0..cols {
                                dx[i] += r * (g[i] - mean - normed[i] * along);
                            }
                        }
                    }
                }
            },
        );
    });
}
