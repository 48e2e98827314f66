//! `position_bias` on a GPU: `kernels/position_bias.cu`.

use crate::device::{Arg, CudaDevice, Grid};
use crate::error::Result;
use crate::indices::Indices;
use crate::tape::Accumulate;
use crate::tensor::Tensor;

const THREADS: u32 = 256;

pub(super) fn forward(cuda: &CudaDevice, weight: &Tensor, buckets: &Indices, table: &mut Tensor) -> Result<()> {
    let (heads, columns, buckets) = (table.rows(), table.cols(), buckets.on(cuda)?);
    let grid = Grid::cover(table.len(), THREADS);
    let args = [
        Arg::tensor(weight),    // const T* w
        Arg::buffer(&buckets),  // const int* buckets
        Arg::tensor_mut(table), // float* table
        Arg::int(heads),        // int heads
        Arg::int(columns),      // int columns
    ];
    let kernel = cuda.kernel("position_bias", "position_bias_forward", weight.dtype())?;
    // SAFETY: the table has a column for each bucket, which is a row of the weight; the weight has `heads` columns.
    unsafe { kernel.run(grid, &args) }
}

pub(super) fn backward(
    cuda: &CudaDevice,
    d_table: &Tensor,
    buckets: &Indices,
    dw: &mut Tensor,
    accumulate: Accumulate,
) -> Result<()> {
    let (count, heads, columns, buckets) = (dw.rows(), dw.cols(), d_table.cols(), buckets.on(cuda)?);
    // A warp for each number of the weight.
    let grid = Grid::cover(dw.len() * 32, THREADS);
    let kernel = cuda.kernel("position_bias", "position_bias_backward", dw.dtype())?;
    let args = [
        Arg::tensor(d_table),                             // const float* d_table
        Arg::buffer(&buckets),                            // const int* buckets
        Arg::tensor_mut(dw),                              // T* dw
        Arg::int(count),                                  // int count
        Arg::int(heads),                                  // int heads
        Arg::int(columns),                                // int columns
        Arg::int((accumulate == Accumulate::Add).into()), // int add
    ];
    // SAFETY: d_table has `heads` rows of a column for each bucket, dw has `count` rows of `heads` columns.
    unsafe { kernel.run(grid, &args) }
}
