//! `kernels/columns.cu`: the gradients of biases and of norms' weights. Rows are added in parts, and the parts in their
//! order.

use crate::device::{Arg, Buffer, CudaDevice, Device, Grid, Kind};
use crate::error::Result;
use crate::tape::Accumulate;
use crate::tensor::Tensor;

const THREADS: u32 = 256;
/// Parts that rows are divided into, at most: with the strips of columns they fill a GPU.
const MAX_PARTS: usize = 64;
/// Rows of a part, at least: each of a block's warps has 8 of them.
const MIN_SPAN: usize = 64;

/// What a column's sum goes to.
pub(crate) struct Sum<'a> {
    /// `[1, cols]`
    pub(crate) out: &'a mut Tensor,
    pub(crate) accumulate: Accumulate,
}

/// Rows before they were normalised, with the mean and the scale of each, two floats a row.
#[derive(Clone, Copy)]
pub(crate) struct Normed<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) moments: &'a Buffer,
}

/// Memory for the moments of so many rows.
pub(crate) fn moments(cuda: &CudaDevice, rows: usize) -> Buffer {
    Device::Cuda(cuda.clone()).allocate(rows * 2 * size_of::<f32>(), Kind::Workspace)
}

/// `plain (+)= Σ dy` and `along.1 (+)= Σ dy ∘ x̂` over the rows, of what is wanted. `x` has the shape and type of `dy`.
///
/// # Errors
/// [`crate::Error::Device`] where the GPU fails.
pub(crate) fn sum(
    cuda: &CudaDevice,
    dy: &Tensor,
    plain: Option<Sum<'_>>,
    along: Option<(Normed<'_>, Sum<'_>)>,
) -> Result<()> {
    let (rows, cols, dtype) = (dy.rows(), dy.cols(), dy.dtype());
    let span = rows.div_ceil(MAX_PARTS).max(MIN_SPAN);
    let parts = rows.div_ceil(span);
    let width = 16 / dtype.size();
    let strips = cols.div_ceil(32 * if cols.is_multiple_of(width) { width } else { 1 });
    let device = Device::Cuda(cuda.clone());
    let new = || device.allocate(parts * cols * size_of::<f32>(), Kind::Workspace);
    let (sums, inner) = (plain.as_ref().map(|_| new()), along.as_ref().map(|_| new()));
    let normed = along.as_ref().map(|(normed, _)| *normed);
    let args = [
        Arg::tensor(dy),                                            // const T* dy
        normed.map_or(Arg::null(), |normed| Arg::tensor(normed.x)), // const T* x
        normed.map_or(Arg::null(), |of| Arg::buffer(of.moments)),   // const Moments* moments
        sums.as_ref().map_or(Arg::null(), Arg::buffer),             // float* sums
        inner.as_ref().map_or(Arg::null(), Arg::buffer),            // float* along
        Arg::int(rows),                                             // int rows
        Arg::int(cols),                                             // int cols
        Arg::int(span),                                             // int span
    ];
    let grid = Grid::new_3d([strips, parts, 1], THREADS);
    // SAFETY: dy and x hold rows · cols elements, `moments` two floats for each row; the results, which are fresh memory,
    // hold `cols` floats for each of `parts` parts, and so many rows of blocks run.
    unsafe { cuda.kernel("columns", "columns_sum", dtype)?.run(grid, &args) }?;
    let results = [(sums, plain), (inner, along.map(|(_, sum)| sum))];
    for (parts_of, Sum { out, accumulate }) in results.into_iter().filter_map(|(parts, sum)| parts.zip(sum)) {
        debug_assert_eq!((out.rows(), out.cols(), out.dtype()), (1, cols, dtype));
        let args = [
            Arg::buffer(&parts_of),                           // const float* parts
            Arg::tensor_mut(out),                             // T* out
            Arg::int(parts),                                  // int count
            Arg::int(cols),                                   // int cols
            Arg::int((accumulate == Accumulate::Add).into()), // int add
        ];
        // SAFETY: `parts` holds `count` rows of `cols` floats, the result `cols` elements.
        unsafe { cuda.kernel("columns", "columns_join", dtype)?.run(Grid::new(strips, THREADS), &args) }?;
    }
    Ok(())
}
