//! What the matrix library alone makes of the products of a step.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::flops::Product;
use faer::linalg::matmul::matmul;
use faer::traits::ComplexField;
use faer::{Accum, Mat, Par};
use std::time::Instant;

/// The most elements of a matrix of results or inputs that is made for this. A product with more rows is measured on as
/// many as fit: past some thousands the rate no longer depends on them.
const MOST_ELEMENTS: usize = 1 << 27;

/// The rate of the library beside that of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Library {
    /// Floating-point operations per second of the library on the products of the step, in the median round.
    pub flops_per_second: f64,
    /// The step's rate by the library's of the same round: the median of all rounds, the least, the most.
    pub ratio: [f64; 3],
}

impl Library {
    /// From the rates of step and library, round by round; none without rounds.
    pub(super) fn of(mut rounds: Vec<(f64, f64)>) -> Option<Self> {
        rounds.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let ratio = |&(step, library): &(f64, f64)| step / library;
        let middle = rounds.get(rounds.len() / 2)?;
        let ratios = [middle, rounds.first()?, rounds.last()?].map(ratio);
        Some(Self { flops_per_second: middle.1, ratio: ratios })
    }
}

/// Seconds that the library takes for `products` on the threads of `device`; each shape is measured once and counted as
/// often as it occurs.
///
/// # Errors
/// What the device reports.
pub(super) fn seconds(device: &Device, dtype: DType, products: &[Product]) -> Result<f64> {
    let threads = device.threads();
    device.run(|| {
        Ok(match dtype {
            DType::F64 => products.iter().map(|product| seconds_of(product, threads, 0.5f64)).sum(),
            DType::F32 | DType::BF16 => products.iter().map(|product| seconds_of(product, threads, 0.5f32)).sum(),
        })
    })
}

fn seconds_of<E: ComplexField + Copy>(product: &Product, threads: usize, value: E) -> f64 {
    let Product { m, n, k, count } = *product;
    if m == 0 || n == 0 || k == 0 {
        return 0.0;
    }
    let rows = m.min((MOST_ELEMENTS / n.max(k)).max(1));
    // Row-major operands, as the step has them; the weight is read as it lies for the forward pass.
    let x = Mat::<E>::full(k, rows, value);
    let w = Mat::<E>::full(k, n, value);
    let mut y = Mat::<E>::full(n, rows, value);
    let start = Instant::now();
    matmul(y.as_mut().transpose_mut(), Accum::Replace, x.as_ref().transpose(), w.as_ref(), value, Par::rayon(threads));
    start.elapsed().as_secs_f64() * count as f64 * (m as f64 / rows as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_round_is_by_ratio() {
        let library = Library::of(vec![(9.0, 10.0), (5.0, 10.0), (14.0, 20.0)]).unwrap();
        assert_eq!(library, Library { flops_per_second: 20.0, ratio: [0.7, 0.5, 0.9] });
        assert_eq!(Library::of(Vec::new()), None);
    }

    #[test]
    fn products_take_time_and_empty_ones_none() {
        let device = Device::cpu(Some(2)).unwrap();
        let product = |m, count| Product { m, n: 33, k: 17, count };
        for dtype in [DType::F32, DType::F64] {
            assert!(seconds(&device, dtype, &[product(31, 2)]).unwrap() > 0.0);
            assert_eq!(seconds(&device, dtype, &[product(0, 2), product(31, 0)]).unwrap(), 0.0);
        }
        assert_eq!(seconds(&device, DType::F32, &[]).unwrap(), 0.0);
    }
}
