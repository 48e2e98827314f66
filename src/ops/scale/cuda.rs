//! `scale` on a GPU: `kernels/scale.cu`.

use crate::device::{Arg, CudaDevice, Grid, Kind};
use crate::error::Result;
use crate::tensor::Tensor;

/// `factor · x`.
pub(super) fn scaled(cuda: &CudaDevice, x: &Tensor, factor: f64) -> Result<Tensor> {
    let kernel = cuda.kernel("scale", "scale_forward", x.dtype())?;
    let mut y = Tensor::scratch(x.device(), x.rows(), x.cols(), x.dtype(), Kind::Workspace);
    let args = [
        Arg::tensor_mut(&mut y), // T* y
        Arg::tensor(x),          // const T* x
        Arg::float(factor),      // float factor
        Arg::long(x.len()),      // long long count
    ];
    // SAFETY: both hold `count` elements of one type.
    unsafe { kernel.run(Grid::elements(x.len(), x.dtype()), &args) }?;
    Ok(y)
}
