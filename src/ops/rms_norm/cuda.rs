//! `rms_norm` on a GPU: `kernels/rms_norm.cu`.

use crate::device::{Arg, CudaDevice, Grid};
use crate::error::Result;
use crate::ops::columns::{self, Normed, Sum};
use crate::tape::Accumulate;
use crate::tensor::Tensor;

pub(super) fn forward(cuda: &CudaDevice, x: &Tensor, weight: &Tensor, epsilon: f64, y: &mut Tensor) -> Result<()> {
    let kernel = cuda.kernel("rms_norm", "rms_norm_forward", x.dtype())?;
    let args = [
        Arg::tensor(x),      // const T* x
        Arg::tensor(weight), // const T* weight
        Arg::tensor_mut(y),  // T* y
        Arg::int(x.rows()),  // int rows
        Arg::int(x.cols()),  // int cols
        Arg::float(epsilon), // float epsilon
    ];
    // SAFETY: x and y hold rows · cols elements, weight cols of the same type.
    unsafe { kernel.run(Grid::rows(x.rows(), x.cols()), &args) }
}

/// `sum += x`, and the norm of it in `y`.
pub(super) fn add_forward(
    cuda: &CudaDevice,
    x: &Tensor,
    sum: &mut Tensor,
    weight: &Tensor,
    epsilon: f64,
    y: &mut Tensor,
) -> Result<()> {
    let kernel = cuda.kernel("rms_norm", "rms_norm_add_forward", x.dtype())?;
    // What is added to is written over, in the same places.
    let sum = Arg::tensor_mut(sum);
    let args = [
        Arg::tensor(x),      // const T* x
        sum,                 // const T* b
        Arg::tensor(weight), // const T* weight
        sum,                 // T* s
        Arg::tensor_mut(y),  // T* y
        Arg::int(x.rows()),  // int rows
        Arg::int(x.cols()),  // int cols
        Arg::float(epsilon), // float epsilon
    ];
    // SAFETY: x, sum and y hold rows · cols elements, weight cols of the same type. The kernel takes b and s for the
    // same memory: each thread writes the elements that it has read.
    unsafe { kernel.run(Grid::rows(x.rows(), x.cols()), &args) }
}

pub(super) fn backward(
    cuda: &CudaDevice,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    epsilon: f64,
    dx: &mut Tensor,
    accumulate: Accumulate,
) -> Result<()> {
    let kernel = cuda.kernel("rms_norm", "rms_norm_backward", x.dtype())?;
    let (rows, cols) = (dx.rows(), dx.cols());
    let args = [
        Arg::tensor(dy),                                  // const T* dy
        Arg::tensor(x),                                   // const T* x
        Arg::tensor(weight),                              // const T* weight
        Arg::tensor_mut(dx),                              // T* dx
        Arg::int(rows),                                   // int rows
        Arg::int(cols),                                   // int cols
        Arg::float(epsilon),                              // float epsilon
        Arg::int((accumulate == Accumulate::Add).into()), // int add
    ];
    // SAFETY: dy, x and dx hold at least rows · cols elements, weight cols of the same type.
    unsafe { kernel.run(Grid::rows(rows, cols), &args) }
}

/// `dw (+)= Σ r x ∘ dy` over the rows.
pub(super) fn weight_gradient(
    cuda: &CudaDevice,
    dy: &Tensor,
    x: &Tensor,
    epsilon: f64,
    dw: &mut Tensor,
    accumulate: Accumulate,
) -> Result<()> {
    let mut moments = columns::moments(cuda, x.rows());
    let args = [
        Arg::tensor(x),                // const T* x
        Arg::buffer_mut(&mut moments), // float2* moments
        Arg::int(x.rows()),            // int rows
        Arg::int(x.cols()),            // int cols
        Arg::float(epsilon),           // float epsilon
    ];
    // SAFETY: x holds rows · cols elements, `moments` two floats for each row.
    unsafe { cuda.kernel("rms_norm", "rms_norm_moments", x.dtype())?.run(Grid::rows(x.rows(), x.cols()), &args) }?;
    columns::sum(cuda, dy, None, Some((Normed { x, moments: &moments }, Sum { out: dw, accumulate })))
}
