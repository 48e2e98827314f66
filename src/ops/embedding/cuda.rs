//! `embedding` on a GPU: `kernels/embedding.cu`.

use super::Positions;
use crate::device::{Arg, CudaDevice, Grid};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::indices;
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use crate::weights::{Format, Matrix, Resident};

pub(super) fn fill(
    cuda: &CudaDevice,
    prompt: &Tensor,
    table: &Matrix,
    ids: &[u32],
    positions: Option<Positions<'_>>,
    stream: &mut Tensor,
) -> Result<()> {
    let (dtype, rows, cols) = (stream.dtype(), stream.rows(), stream.cols());
    let kernel = cuda.kernel("embedding", "embedding_forward", dtype)?;
    let resident = table.on(cuda, dtype)?;
    let ids = indices::upload(cuda, &ids.iter().map(|&id| id as usize).collect::<Vec<_>>())?;
    let places = match positions {
        Some(Positions { table, of_row }) => Some((table.on(cuda, dtype)?, indices::upload(cuda, of_row)?)),
        None => None,
    };

    let (table, format, row_bytes) = describe(&resident, cols)?;
    let (place_table, place_format, place_row_bytes, of_row) = match &places {
        Some((resident, of_row)) => {
            let (table, format, row_bytes) = describe(resident, cols)?;
            (table, format, row_bytes, Arg::buffer(of_row))
        }
        None => (Arg::null(), 0, 0, Arg::null()),
    };
    let args = [
        Arg::tensor(prompt),        // const T* prompt
        Arg::int(prompt.rows()),    // int prompt_rows
        table,                      // const uint8_t* table
        Arg::int(format),           // int table_format
        Arg::long(row_bytes),       // long long table_row_bytes
        Arg::buffer(&ids),          // const int* ids
        place_table,                // const uint8_t* places
        Arg::int(place_format),     // int place_format
        Arg::long(place_row_bytes), // long long place_row_bytes
        of_row,                     // const int* positions
        Arg::tensor_mut(stream),    // T* y
        Arg::int(cols),             // int cols
    ];
    // SAFETY: the stream has `rows` rows: those of the prompt and one for each id. Ids and positions are rows of their
    // tables, and there is a position for each row of the stream, or no table of them.
    unsafe { kernel.run(Grid::new(rows, 128), &args) }
}

/// A table's memory, its format's code in `kernels/formats.cuh`, and the bytes of a row.
fn describe(table: &Resident, cols: usize) -> Result<(Arg<'_>, usize, usize)> {
    let (memory, format) = match table {
        Resident::Plain(tensor) => {
            let format = if tensor.dtype() == DType::BF16 { Format::BF16 } else { Format::F32 };
            (Arg::tensor(tensor), format)
        }
        Resident::Stored { bytes, format } => (Arg::buffer(bytes), *format),
    };
    let row_bytes = format.bytes(cols).ok_or_else(|| {
        let expected = format!("rows of whole {} blocks", format.name());
        Error::op("embedding", expected, format!("{cols} columns"))
    })?;
    Ok((memory, code(format)?, row_bytes))
}

fn code(format: Format) -> Result<usize> {
    Ok(match format {
        Format::F64 => return Err(Error::op("embedding", "a format that GPUs read", format.name())),
        Format::F32 => 1,
        Format::F16 => 2,
        Format::BF16 => 3,
        Format::Q8_0 => 4,
        Format::Q4_0 => 5,
        Format::Q4_1 => 6,
        Format::Q5_0 => 7,
        Format::Q5_1 => 8,
        Format::Q4K => 9,
        Format::Q6K => 10,
    })
}

/// Row `of_row[i]` of the sums gets row `i` of `dy`, those of one row in their order.
pub(super) fn scatter(
    cuda: &CudaDevice,
    dy: &Tensor,
    of_row: &[Option<usize>],
    sums: &mut Tensor,
    accumulate: Accumulate,
) -> Result<()> {
    let (rows, limit, cols) = (of_row.len(), sums.rows(), sums.cols());
    if accumulate == Accumulate::Replace {
        sums.buffer_mut().clear()?;
    }
    // Rows of no target behind all others.
    let target = |&row: &usize| of_row[row].unwrap_or(limit);
    let mut order: Vec<usize> = (0..rows).collect();
    order.sort_by_key(target);
    let targets: Vec<usize> = order.iter().map(target).collect();
    let (targets, order) = (indices::upload(cuda, &targets)?, indices::upload(cuda, &order)?);
    let args = [
        Arg::tensor(dy),       // const T* dy
        Arg::buffer(&targets), // const int* targets
        Arg::buffer(&order),   // const int* order
        Arg::tensor_mut(sums), // T* sums
        Arg::int(rows),        // int rows
        Arg::int(limit),       // int limit
        Arg::int(cols),        // int cols
    ];
    // SAFETY: `targets` and `order` have `rows` numbers, of which `order` names rows of dy and targets below `limit` rows
    // of the sums; all rows have `cols` elements. One block writes a row of the sums.
    unsafe { cuda.kernel("embedding", "embedding_scatter", dy.dtype())?.run(Grid::new(rows, 128), &args) }
}
