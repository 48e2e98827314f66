//! f32 tensors as f64 and back, for narrow models: their sums are taken in f64 and rounded once. Such a model has no
//! speed to lose, and the few numbers of its gradient leave rounding errors little to average out with. And sums over the
//! rows, which are f64 everywhere.

use crate::device::Kind;
use crate::dtype::{DType, Element};
use crate::ops::simd::vectorised;
use crate::tape::Accumulate;
use crate::tensor::{Tensor, with_element};
use rayon::prelude::*;
use std::ops::Range;

/// Rows that [`column_sums`] adds up on one thread.
const SUMMED_ROWS: usize = 64;

/// `x` in f64, on the CPU.
pub(crate) fn widened(x: &Tensor) -> Tensor {
    let mut wide = Tensor::scratch(x.device(), x.rows(), x.cols(), DType::F64, Kind::Workspace);
    with_element!(x.dtype(), E => {
        let pairs = wide.make_mut::<f64>().iter_mut().zip(x.as_slice::<E>());
        pairs.for_each(|(wide, &x)| *wide = Element::to_f64(x));
    });
    wide
}

/// Writes `wide` to `y`, rounded to its type.
pub(crate) fn round_to(y: &mut Tensor, wide: &Tensor) {
    with_element!(y.dtype(), E => {
        let pairs = y.make_mut::<E>().iter_mut().zip(wide.as_slice::<f64>());
        pairs.for_each(|(y, &wide)| *y = E::from_f64(wide));
    });
}

/// `out (+)= Σ` over `rows` rows of what `add` adds to a row of sums for a range of them. The ranges depend on the number
/// of rows alone and are added in their order.
pub(crate) fn column_sums<E: Element>(
    rows: usize,
    out: &mut [E],
    accumulate: Accumulate,
    add: impl Fn(Range<usize>, &mut [f64]) + Sync,
) {
    let parts: Vec<Vec<f64>> = (0..rows.div_ceil(SUMMED_ROWS))
        .into_par_iter()
        .map(|part| {
            let range = part * SUMMED_ROWS..((part + 1) * SUMMED_ROWS).min(rows);
            let mut sums = vec![0.0; out.len()];
            vectorised(
                #[inline(always)]
                || add(range, &mut sums),
            );
            sums
        })
        .collect();
    for (column, out) in out.iter_mut().enumerate() {
        let sum = E::from_f64(parts.iter().map(|part| part[column]).sum());
        match accumulate {
            Accumulate::Replace => *out = sum,
            Accumulate::Add => *out += sum,
        }
    }
}
