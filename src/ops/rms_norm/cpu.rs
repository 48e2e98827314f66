//! `rms_norm` on the CPU.

use crate::dtype::Element;
use crate::ops::simd::{dot, rows_per_task, vectorised};
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use rayon::prelude::*;

#[inline(always)]
fn scale<E: Element>(x: &[E], epsilon: E) -> E {
    E::ONE / Element::sqrt(dot(x, x) / E::from_f64(x.len() as f64) + epsilon)
}

pub(super) fn forward<E: Element>(x: &Tensor, weight: &Tensor, epsilon: f64, y: &mut Tensor) {
    let cols = x.cols();
    let (weight, epsilon) = (weight.as_slice::<E>(), E::from_f64(epsilon));
    let task = rows_per_task(cols) * cols.max(1);
    y.make_mut::<E>().par_chunks_mut(task).zip(x.as_slice::<E>().par_chunks(task)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
                    let r = scale(x, epsilon);
                    for i in 0..cols {
                        y[i] = weight[i] * (x[i] * r);
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
    let (weight, epsilon) = (weight.as_slice::<E>(), E::from_f64(epsilon));
    let task = rows_per_task(cols) * cols.max(1);
    let inputs = dy.as_slice::<E>().par_chunks(task).zip(x.as_slice::<E>().par_chunks(task));
    dx.make_mut::<E>().par_chunks_mut(task).zip(inputs).for_each(|(dx, (dy, x))| {
        vectorised(
            #[inline(always)]
            || {
                let mut g = vec![E::ZERO; cols];
                for ((dx, dy), x) in dx.chunks_exact_mut(cols).zip(dy.chunks_exact(cols)).zip(x.chunks_exact(cols)) {
                    let r = scale(x, epsilon);
                    for i in 0..cols {
                        g[i] = weight[i] * dy[i];
                    }
                    let common = r * r * r * (dot(&g, x) / E::from_f64(cols as f64));
                    match accumulate {
                        Accumulate::Replace => {
                            for i in 0..cols {
                                dx[i] = r * g[i] - x[i] * common;
                            }
                        }
                        Accumulate::Add => {
                            for i in 0..cols {
                                dx[i] += r * g[i] - x[i] * common;
                            }
                        }
                    }
                }
            },
        );
    });
}
