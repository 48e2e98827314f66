//! `linear` on a GPU: one product with the matrix as it is held there, or with a widened copy that lives as long.

use crate::device::CudaDevice;
use crate::error::Result;
use crate::ops::gemm::Product;
use crate::ops::gemm::cuda::{Block, matmul, widen};
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

pub(super) fn weight_gradient(
    _cuda: &CudaDevice,
    _x: &Tensor,
    _dy: &Tensor,
    _orientation: Orientation,
    _dw: &mut Tensor,
    _accumulate: Accumulate,
) -> Result<()> {
    Err(crate::error::Error::op("linear", "a frozen weight on a GPU", "a trained one"))
}

pub(super) fn bias_gradient(_cuda: &CudaDevice, _dy: &Tensor, _db: &mut Tensor, _accumulate: Accumulate) -> Result<()> {
    Err(crate::error::Error::op("linear", "a frozen weight on a GPU", "a trained one"))
}
