//! `linear` on a GPU: one product with the matrix as it is held there, or with a widened copy that lives as long.

use crate::device::CudaDevice;
use crate::error::Result;
use crate::ops::columns::{self, Sum};
use crate::ops::gemm::Product;
use crate::ops::gemm::cuda::{Block, matmul, weight_product, widen};
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use crate::weights::{Matrix, Orientation, Resident};

pub(super) fn forward(
    cuda: &CudaDevice,
    x: &Tensor,
    matrix: &Matrix,
    bias: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    run(cuda, x, matrix, Product::forward(matrix.orientation()), bias, y, Accumulate::Replace)
}

pub(super) fn backward(
    cuda: &CudaDevice,
    dy: &Tensor,
    matrix: &Matrix,
    dx: &mut Tensor,
    accumulate: Accumulate,
) -> Result<()> {
    run(cuda, dy, matrix, Product::backward(matrix.orientation()), None, dx, accumulate)
}

fn run(
    cuda: &CudaDevice,
    x: &Tensor,
    matrix: &Matrix,
    product: Product,
    bias: Option<&Tensor>,
    y: &mut Tensor,
    accumulate: Accumulate,
) -> Result<()> {
    let rows = y.rows();
    if rows == 0 {
        return Ok(());
    }
    let resident = matrix.on(cuda, x.dtype())?;
    let widened;
    let weights = match &*resident {
        Resident::Plain(weights) => weights,
        Resident::Stored { bytes, format } => {
            let (rows, cols) = match matrix.orientation() {
                Orientation::RowPerOutput => (matrix.out_features(), matrix.in_features()),
                Orientation::RowPerInput => (matrix.in_features(), matrix.out_features()),
            };
            widened = widen(cuda, bytes, *format, 0..rows, cols, x.dtype())?;
            &widened
        }
    };
    let (x, weights) = (Block::rows(x, 0..rows), Block::rows(weights, 0..weights.rows()));
    // SAFETY: y is borrowed mutably, so nothing else uses its memory.
    unsafe { matmul(cuda, Block::whole_mut(y), accumulate, x, weights, product, bias) }
}

/// `dW (+)= dyᵀ x`, or `xᵀ dy` for a row per input.
pub(super) fn weight_gradient(
    cuda: &CudaDevice,
    x: &Tensor,
    dy: &Tensor,
    orientation: Orientation,
    dw: &mut Tensor,
    accumulate: Accumulate,
) -> Result<()> {
    let rows = dy.rows();
    let (x, dy) = (Block::rows(x, 0..rows), Block::rows(dy, 0..rows));
    let (left, right) = match orientation {
        Orientation::RowPerOutput => (dy, x),
        Orientation::RowPerInput => (x, dy),
    };
    // SAFETY: dw is borrowed mutably, so nothing else uses its memory.
    unsafe { weight_product(cuda, Block::whole_mut(dw), accumulate, left, right) }
}

/// `db (+)= Σ dy` over the rows.
pub(super) fn bias_gradient(cuda: &CudaDevice, dy: &Tensor, db: &mut Tensor, accumulate: Accumulate) -> Result<()> {
    columns::sum(cuda, dy, Some(Sum { out: db, accumulate }), None)
}
