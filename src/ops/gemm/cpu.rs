//! Matrix products on the CPU: the one place that calls the library.
//!
//! Chosen by measuring two threads at the shapes of a 135M model (GFLOP/s, FMA peak 160): faer's kernel on one thread
//! per panel of 96 output columns 130–140; faer's own threading 74–142; `gemm` 84–119. A panel of a frozen matrix also
//! is what has to be widened at a time, and stays in the second-level cache. The panels depend on the shapes alone, so
//! the bits do not depend on the number of threads.

use super::Product;
use crate::device::Device;
use crate::dtype::Element;
use crate::tape::Accumulate;
use crate::weights::{Axis, Matrix};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Output columns a task computes.
const PANEL: usize = 96;
/// Rows of a weight's gradient that a task computes.
const WEIGHT_PANEL: usize = 192;

/// `dst (+)= alpha · lhs · rhs`, on the calling thread.
pub(crate) fn gemm<E: Element>(
    dst: MatMut<'_, E>,
    accumulate: Accumulate,
    lhs: MatRef<'_, E>,
    rhs: MatRef<'_, E>,
    alpha: E,
) {
    let accumulate = match accumulate {
        Accumulate::Replace => Accum::Replace,
        Accumulate::Add => Accum::Add,
    };
    matmul(dst, accumulate, lhs, rhs, alpha, Par::Seq);
}

/// `dst (+)= x Wᵀ` or `x W`, panel by panel over the device's threads; `bias` is added to every row.
pub(crate) fn frozen_product<E: Element>(
    device: &Device,
    dst: MatMut<'_, E>,
    accumulate: Accumulate,
    x: MatRef<'_, E>,
    matrix: &Matrix,
    product: Product,
    bias: Option<&[E]>,
) {
    if dst.nrows() == 0 || dst.ncols() == 0 {
        return;
    }
    let axis = match product {
        Product::Transposed => Axis::Rows,
        Product::AsStored => Axis::Cols,
    };
    let width = matrix.panel_width(axis, PANEL, E::DTYPE);
    dst.par_col_chunks_mut(width).enumerate().for_each(|(index, mut dst)| {
        let range = index * width..index * width + dst.ncols();
        let panel = matrix.panel::<E>(axis, range.clone(), device);
        let weights = match product {
            Product::Transposed => panel.view().transpose(),
            Product::AsStored => panel.view(),
        };
        gemm(dst.as_mut(), accumulate, x, weights, E::ONE);
        if let Some(bias) = bias {
            for row in 0..dst.nrows() {
                for (col, &bias) in bias[range.clone()].iter().enumerate() {
                    dst[(row, col)] += bias;
                }
            }
        }
    });
}

/// `dst (+)= lhs · rhs`, panel by panel over the device's threads.
pub(crate) fn product<E: Element>(dst: MatMut<'_, E>, accumulate: Accumulate, lhs: MatRef<'_, E>, rhs: MatRef<'_, E>) {
    if dst.nrows() == 0 || dst.ncols() == 0 {
        return;
    }
    dst.par_col_chunks_mut(PANEL).enumerate().for_each(|(index, dst)| {
        let width = dst.ncols();
        gemm(dst, accumulate, lhs, rhs.subcols(index * PANEL, width), E::ONE);
    });
}

/// `dst (+)= lhsᵀ · rhs`, the gradient of a weight: panels of the longer side of `dst` over the device's threads.
pub(crate) fn weight_product<E: Element>(
    dst: MatMut<'_, E>,
    accumulate: Accumulate,
    lhs: MatRef<'_, E>,
    rhs: MatRef<'_, E>,
) {
    if dst.nrows() == 0 || dst.ncols() == 0 {
        return;
    }
    if dst.ncols() >= dst.nrows() {
        return product(dst, accumulate, lhs.transpose(), rhs);
    }
    dst.par_row_chunks_mut(WEIGHT_PANEL).enumerate().for_each(|(index, dst)| {
        let height = dst.nrows();
        gemm(dst, accumulate, lhs.subcols(index * WEIGHT_PANEL, height).transpose(), rhs, E::ONE);
    });
}

/// A slice as a matrix of `rows` × `cols`, row after row.
pub(crate) fn view<E: Element>(slice: &[E], rows: usize, cols: usize) -> MatRef<'_, E> {
    MatRef::from_row_major_slice(&slice[..rows * cols], rows, cols)
}

/// A slice as a matrix of `rows` × `cols` to be written, row after row.
pub(crate) fn view_mut<E: Element>(slice: &mut [E], rows: usize, cols: usize) -> MatMut<'_, E> {
    MatMut::from_row_major_slice_mut(&mut slice[..rows * cols], rows, cols)
}
