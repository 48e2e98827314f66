//! `rows` on a GPU: `kernels/rows.cu`.

use crate::device::{Arg, CudaDevice, Grid};
use crate::error::Result;
use crate::indices::{self, Indices};
use crate::tape::Accumulate;
use crate::tensor::Tensor;

/// A thread has 16 bytes of a row, or an element where rows are not multiples of 16 bytes.
fn grid(tensor: &Tensor) -> Grid {
    let width = 16 / tensor.dtype().size();
    Grid::cover(if tensor.cols().is_multiple_of(width) { tensor.len() / width } else { tensor.len() }, 256)
}

pub(super) fn forward(cuda: &CudaDevice, x: &Tensor, index: &Indices, y: &mut Tensor) -> Result<()> {
    let kernel = cuda.kernel("rows", "rows_forward", x.dtype())?;
    let (grid, rows, index) = (grid(y), y.rows(), index.on(cuda)?);
    let args = [
        Arg::tensor(x),      // const T* x
        Arg::buffer(&index), // const int* index
        Arg::tensor_mut(y),  // T* y
        Arg::int(rows),      // int rows
        Arg::int(x.cols()),  // int cols
    ];
    // SAFETY: y has a row for each of the `rows` indices, which are below the rows of x; both have `cols` columns.
    unsafe { kernel.run(grid, &args) }
}

pub(super) fn backward(
    cuda: &CudaDevice,
    dy: &Tensor,
    index: &[usize],
    dx: &mut Tensor,
    accumulate: Accumulate,
) -> Result<()> {
    let kernel = cuda.kernel("rows", "rows_backward", dy.dtype())?;
    let (grid, limit, cols) = (grid(dx), dx.rows(), dx.cols());
    let (starts, order) = by_target(index, limit);
    let (starts, order) = (indices::upload(cuda, &starts)?, indices::upload(cuda, &order)?);
    let args = [
        Arg::tensor(dy),                                  // const T* dy
        Arg::buffer(&starts),                             // const int* starts
        Arg::buffer(&order),                              // const int* order
        Arg::tensor_mut(dx),                              // T* dx
        Arg::int(limit),                                  // int limit
        Arg::int(cols),                                   // int cols
        Arg::int((accumulate == Accumulate::Add).into()), // int add
    ];
    // SAFETY: dx has `limit` rows; `starts` has one number more, the last the length of `order`, whose entries are rows
    // of dy; both tensors have `cols` columns.
    unsafe { kernel.run(grid, &args) }
}

/// For each target row below `limit` the places of `index` that name it, in their order: those of row r are
/// `order[starts[r]..starts[r + 1]]`.
fn by_target(index: &[usize], limit: usize) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..index.len()).filter(|&place| index[place] < limit).collect();
    order.sort_by_key(|&place| index[place]);
    let starts = (0..=limit).map(|row| order.partition_point(|&place| index[place] < row)).collect();
    (starts, order)
}

#[cfg(test)]
mod tests {
    use super::by_target;

    #[test]
    fn places_are_listed_by_their_target_in_order() {
        let (starts, order) = by_target(&[2, 0, 5, 2, 0, 2], 4);
        assert_eq!(starts, [0, 2, 2, 5, 5]);
        assert_eq!(order, [1, 4, 0, 3, 5]);
        assert_eq!(by_target(&[], 2), (vec![0, 0, 0], vec![]));
    }
}
