//! `rope` on a GPU: `kernels/rope.cu`.

use super::{Pairing, Rotation};
use crate::device::{Arg, CudaDevice, Grid};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::indices::Indices;
use crate::tensor::Tensor;

pub(super) fn rotate(
    cuda: &CudaDevice,
    x: &mut Tensor,
    rotation: &Rotation,
    positions: &Indices,
    direction: i32,
) -> Result<()> {
    let (rows, half) = (x.rows(), rotation.cos.cols());
    if rotation.cos.dtype() != DType::F32 || rotation.sin.dtype() != DType::F32 {
        return Err(Error::op("rope", "cosines and sines in f32", rotation.cos.describe()));
    }
    let pairs = x.len() / 2;
    if i32::try_from(pairs).is_err() {
        return Err(Error::op("rope", "fewer than 2^31 pairs", pairs.to_string()));
    }
    let kernel = cuda.kernel("rope", "rope_rotate", x.dtype())?;
    // Pairs of a thread: as many as 16 bytes hold elements, or one.
    let width = 16 / x.dtype().size();
    let units = if half.is_multiple_of(width) { pairs / width } else { pairs };
    let heads = x.cols() / (2 * half);
    let positions = positions.on(cuda)?;
    let args = [
        Arg::tensor_mut(x),                                         // T* x
        Arg::tensor(&rotation.cos),                                 // const float* cos
        Arg::tensor(&rotation.sin),                                 // const float* sin
        Arg::buffer(&positions),                                    // const int* positions
        Arg::int(rows),                                             // int rows
        Arg::int(heads),                                            // int heads
        Arg::int(half),                                             // int half
        Arg::int((rotation.pairing == Pairing::Neighbours).into()), // int neighbours
        Arg::float(f64::from(direction)),                           // float direction
    ];
    // SAFETY: x holds rows · heads · 2 half elements; there are at least `rows` positions, each below the rows of the
    // two tables, which have `half` columns.
    unsafe { kernel.run(Grid::cover(units, 256), &args) }
}
