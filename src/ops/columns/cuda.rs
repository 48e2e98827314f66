//! `kernels/columns.cu`: the gradients of biases and of norms' weights. Rows are added in parts, and the parts in their
//! order.

use crate::device::{Arg, Buffer, CudaDevice, Device, Grid, Kind};
use crate::dtype::DType;
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
    /// `[1, cols]`, or so many numbers of another shape.
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
    let new = || Tensor::scratch(dy.device(), parts, cols, DType::F32, Kind::Workspace);
    let (mut sums, mut inner) = (plain.as_ref().map(|_| new()), along.as_ref().map(|_| new()));
    let normed = along.as_ref().map(|(normed, _)| *normed);
    let args = [
        Arg::tensor(dy),                                            // const T* dy
        normed.map_or(Arg::null(), |normed| Arg::tensor(normed.x)), // const T* x
        normed.map_or(Arg::null(), |of| Arg::buffer(of.moments)),   // const Moments* moments
        sums.as_mut().map_or(Arg::null(), Arg::tensor_mut),         // float* sums
        inner.as_mut().map_or(Arg::null(), Arg::tensor_mut),        // float* along
        Arg::int(rows),                                             // int rows
        Arg::int(cols),                                             // int cols
        Arg::int(span),                                             // int span
    ];
    let grid = Grid::new_3d([strips(cols, dtype), parts, 1], THREADS);
    // SAFETY: dy and x hold rows · cols elements, `moments` two floats for each row; the results, which are fresh memory,
    // hold `cols` floats for each of `parts` parts, and so many rows of blocks run.
    unsafe { cuda.kernel("columns", "columns_sum", dtype)?.run(grid, &args) }?;
    let results = [(sums, plain), (inner, along.map(|(_, sum)| sum))];
    results.into_iter().filter_map(|(parts, sum)| parts.zip(sum)).try_for_each(|(parts, sum)| join(cuda, &parts, sum))
}

/// `sum (+)= Σ parts`, row after row of f32, rounded once.
///
/// # Errors
/// [`crate::Error::Device`] where the GPU fails.
pub(crate) fn join(cuda: &CudaDevice, parts: &Tensor, Sum { out, accumulate }: Sum<'_>) -> Result<()> {
    debug_assert_eq!((parts.cols(), parts.dtype()), (out.len(), DType::F32));
    let (cols, dtype) = (out.len(), out.dtype());
    let args = [
        Arg::tensor(parts),                               // const float* parts
        Arg::tensor_mut(out),                             // T* out
        Arg::int(parts.rows()),                           // int count
        Arg::int(cols),                                   // int cols
        Arg::int((accumulate == Accumulate::Add).into()), // int add
    ];
    let grid = Grid::new(strips(cols, dtype), THREADS);
    // SAFETY: `parts` holds `count` rows of `cols` floats, the result `cols` elements.
    unsafe { cuda.kernel("columns", "columns_join", dtype)?.run(grid, &args) }
}

/// Blocks that it takes for a row of `cols` elements.
fn strips(cols: usize, dtype: DType) -> usize {
    let width = 16 / dtype.size();
    cols.div_ceil(32 * if cols.is_multiple_of(width) { width } else { 1 })
}
