//! `cast` on a GPU: `kernels/cast.cu`.

use crate::device::{Arg, CudaDevice, Grid, Kind};
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

pub(super) fn convert(cuda: &CudaDevice, x: &Tensor, dtype: DType, kind: Kind) -> Result<Tensor> {
    let kernel = cuda.kernel("cast", &format!("cast_{}", x.dtype()), dtype)?;
    let mut y = Tensor::scratch(x.device(), x.rows(), x.cols(), dtype, kind);
    let args = [
        Arg::tensor(x),          // const From* x
        Arg::tensor_mut(&mut y), // To* y
        Arg::long(x.len()),      // long long count
    ];
    // SAFETY: x and y hold `count` elements of the types in the kernel's name. A thread has 8 of them.
    unsafe { kernel.run(Grid::cover(x.len().div_ceil(8), 256), &args) }?;
    Ok(y)
}
