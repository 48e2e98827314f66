//! `add` on a GPU: `kernels/add.cu`.

use crate::device::{Arg, CudaDevice, Grid};
use crate::error::Result;
use crate::tensor::Tensor;

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
