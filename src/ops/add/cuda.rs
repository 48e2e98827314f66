//! `add` on a GPU: `kernels/add.cu`.

use crate::device::{Arg, CudaDevice, Grid, Kind};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// `a + b`, both of one shape.
///
/// # Errors
/// [`Error::Op`] if the types differ; [`Error::Device`] where the GPU fails.
pub(super) fn forward(cuda: &CudaDevice, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dtype() != b.dtype() {
        return Err(Error::op("add", a.describe(), b.describe()));
    }
    let kernel = cuda.kernel("add", "add_forward", a.dtype())?;
    let mut y = Tensor::scratch(a.device(), a.rows(), a.cols(), a.dtype(), Kind::Workspace);
    let args = [
        Arg::tensor_mut(&mut y), // T* y
        Arg::tensor(a),          // const T* a
        Arg::tensor(b),          // const T* b
        Arg::long(a.len()),      // long long count
    ];
    // SAFETY: all three hold `count` elements of one type.
    unsafe { kernel.run(Grid::elements(a.len(), a.dtype()), &args) }?;
    Ok(y)
}

/// `y += x`, both of one shape and type.
pub(crate) fn add_assign(cuda: &CudaDevice, y: &mut Tensor, x: &Tensor) -> Result<()> {
    let kernel = cuda.kernel("add", "add_assign", y.dtype())?;
    let (grid, count) = (Grid::elements(y.len(), y.dtype()), y.len());
    let args = [
        Arg::tensor_mut(y), // T* y
        Arg::tensor(x),     // const T* x
        Arg::long(count),   // long long count
    ];
    // SAFETY: y and x hold `count` elements of one type; y is not shared, so they do not overlap.
    unsafe { kernel.run(grid, &args) }
}
