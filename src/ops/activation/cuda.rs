//! `activation` on a GPU: `kernels/activation.cu`.

use super::Activation;
use crate::device::{Arg, CudaDevice, Grid};
use crate::error::Result;
use crate::tensor::Tensor;

pub(super) fn forward(cuda: &CudaDevice, function: Activation, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let kernel = cuda.kernel("activation", &format!("activation_{}_forward", function.kernel_name()), x.dtype())?;
    let (grid, count) = (Grid::elements(x.len(), x.dtype()), x.len());
    let args = [
        Arg::tensor(x),     // const T* x
        Arg::tensor_mut(y), // T* y
        Arg::long(count),   // long long count
    ];
    // SAFETY: x and y hold `count` elements of one type.
    unsafe { kernel.run(grid, &args) }
}

pub(super) fn backward(cuda: &CudaDevice, function: Activation, dy: &mut Tensor, x: &Tensor) -> Result<()> {
    let kernel = cuda.kernel("activation", &format!("activation_{}_backward", function.kernel_name()), x.dtype())?;
    let (grid, count) = (Grid::elements(dy.len(), dy.dtype()), dy.len());
    let args = [
        Arg::tensor_mut(dy), // T* dy
        Arg::tensor(x),      // const T* x
        Arg::long(count),    // long long count
    ];
    // SAFETY: dy and x hold `count` elements of one type.
    unsafe { kernel.run(grid, &args) }
}
