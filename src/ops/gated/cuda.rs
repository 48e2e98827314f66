//! `gated` on a GPU: `kernels/gated.cu`.

use crate::device::{Arg, CudaDevice, Grid};
use crate::error::Result;
use crate::ops::activation::Activation;
use crate::tensor::Tensor;

pub(super) fn forward(
    cuda: &CudaDevice,
    function: Activation,
    gate: &Tensor,
    up: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    let kernel = cuda.kernel("gated", &format!("gated_{}_forward", function.kernel_name()), gate.dtype())?;
    let (grid, count) = (Grid::elements(gate.len(), gate.dtype()), gate.len());
    let args = [
        Arg::tensor(gate),  // const T* gate
        Arg::tensor(up),    // const T* up
        Arg::tensor_mut(y), // T* y
        Arg::long(count),   // long long count
    ];
    // SAFETY: all three hold `count` elements of one type.
    unsafe { kernel.run(grid, &args) }
}

pub(super) fn backward(
    cuda: &CudaDevice,
    function: Activation,
    dy: &mut Tensor,
    du: &mut Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<()> {
    let kernel = cuda.kernel("gated", &format!("gated_{}_backward", function.kernel_name()), gate.dtype())?;
    let (grid, count) = (Grid::elements(dy.len(), dy.dtype()), dy.len());
    let args = [
        Arg::tensor_mut(dy), // T* dy
        Arg::tensor_mut(du), // T* du
        Arg::tensor(gate),   // const T* gate
        Arg::tensor(up),     // const T* up
        Arg::long(count),    // long long count
    ];
    // SAFETY: all four hold `count` elements of one type.
    unsafe { kernel.run(grid, &args) }
}
