//! `rms_norm` on the CPU. A row is worked on in f64 and rounded once: memory, not arithmetic, is what it waits for.

use crate::dtype::Element;
use crate::ops::simd::{dot_f64, rows_per_task, vectorised};
use crate::ops::wide::column_sums;
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use rayon::prelude::*;

#[inline(always)]
fn scale<E: Element>(x: &[E], epsilon: f64) -> f64 {
    1.0 / (dot_f64(x, x) / x.len() as f64 + epsilon).sqrt()
}

pub(super) fn forward<E: Element>(x: &Tensor, weight: &Tensor, epsilon: f64, y: &mut Tensor) {
    let cols = x.cols();
    let weight = weight.as_slice::<E>();
    let task = rows_per_task(cols) * cols.max(1);
    y.make_mut::<E>().par_chunks_mut(task).zip(x.as_slice::<E>().par_chunks(task)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
                    let r = scale(x, epsilon);
                    for i in 0..cols {
                        y[i] = E::from_f64(Element::to_f64(weight[i]) * Element::to_f64(x[i]) * r);
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
    let weight = weight.as_slice::<E>();
    let task = rows_per_task(cols) * cols.max(1);
    let inputs = dy.as_slice::<E>().par_chunks(task).zip(x.as_slice::<E>().par_chunks(task));
    dx.make_mut::<E>().par_chunks_mut(task).zip(inputs).for_each(|(dx, (dy, x))| {
        vectorised(
            #[inline(always)]
            || {
                let mut g = vec![0.0; cols];
                for ((dx, dy), x) in dx.chunks_exact_mut(cols).zip(dy.chunks_exact(cols)).zip(x.chunks_exact(cols)) {
                    let r = scale(x, epsilon);
                    for i in 0..cols {
                        g[i] = Element::to_f64(weight[i]) * Element::to_f64(dy[i]);
                    }
                    let common = r * r * r * (dot_f64(&g, x) / cols as f64);
                    match accumulate {
                        Accumulate::Replace => {
                            for i in 0..cols {
                                dx[i] = E::from_f64(r * g[i] - Element::to_f64(x[i]) * common);
                            }
                        }
                        Accumulate::Add => {
                            for i in 0..cols {
                                dx[i] += E::from_f64(r * g[i] - Element::to_f64(x[i]) * common);
                            }
                        }
                    }
                }
            },
        );
    });
}

/// `dw (+)= Σ r x ∘ dy` over the rows.
pub(super) fn weight_gradient<E: Element>(
    dy: &Tensor,
    x: &Tensor,
    epsilon: f64,
    dw: &mut Tensor,
    accumulate: Accumulate,
) {
    let cols = x.cols();
    column_sums(dy.rows(), dw.make_mut::<E>(), accumulate, |rows, sums| {
        let range = rows.start * cols..rows.end * cols;
        let pairs =
            dy.as_slice::<E>()[range.clone()].chunks_exact(cols).zip(x.as_slice::<E>()[range].chunks_exact(cols));
        for (dy, x) in pairs {
            let r = scale(x, epsilon);
            for i in 0..cols {
                sums[i] += Element::to_f64(dy[i]) * (Element::to_f64(x[i]) * r);
            }
        }
    });
}
