//! `embedding`: the stream's first rows are the prompt, the others rows of the embedding table, plus learned position
//! embeddings where the model has them.
//!
//! * saves: nothing
//! * backward: the prompt's gradient is the gradient of its rows; a trained table's is the sum of those of the rows that
//!   show its row, in the order of the stream

#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use crate::device::{Device, Kind};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::ops::simd::add_assign;
use crate::tape::{Accumulate, Tape, Var};
use crate::tensor::{Tensor, with_element};
use crate::weights::{Matrix, Orientation};

/// A table of learned position embeddings `[positions, d]`, with the position of every row of the stream.
#[derive(Debug, Clone, Copy)]
pub struct Positions<'a> {
    /// The table.
    pub table: &'a Matrix,
    /// The position of each row, prompt rows included.
    pub of_row: &'a [usize],
}

/// The stream `[prompt rows + ids.len(), d]`: `prompt` `[P, d]`, then the rows `ids` of `table` `[vocabulary, d]`.
///
/// # Errors
/// [`Error::Op`] if shapes do not fit, or a token or position is not in its table.
pub fn embedding(
    tape: &mut Tape,
    prompt: &Var,
    table: &Matrix,
    ids: &[u32],
    positions: Option<Positions<'_>>,
) -> Result<Var> {
    let (value, width) = (prompt.tensor(), table.in_features());
    let rows = value.rows() + ids.len();
    if value.cols() != width || table.orientation() != Orientation::RowPerOutput {
        return Err(Error::op("embedding", format!("a prompt [_, {width}]"), value.describe()));
    }
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= table.out_features()) {
        return Err(Error::op("embedding", format!("tokens below {}", table.out_features()), id.to_string()));
    }
    if let Some(Positions { table, of_row }) = positions {
        if of_row.len() != rows || table.in_features() != width {
            return Err(Error::op("embedding", format!("{rows} positions"), of_row.len().to_string()));
        }
        if let Some(far) = of_row.iter().find(|&&position| position >= table.out_features()) {
            let expected = format!("positions below {}, the most this model has", table.out_features());
            return Err(Error::op("embedding", expected, far.to_string()));
        }
    }
    let mut output = Tensor::scratch(value.device(), rows, width, value.dtype(), Kind::Workspace);
    match value.device() {
        Device::Cpu(_) => with_element!(value.dtype(), E => {
            fill::<E>(value.as_slice(), table, ids, positions, output.make_mut());
        }),
        Device::Cuda(cuda) => cuda::fill(cuda, value, table, ids, positions, &mut output)?,
    }
    let node = prompt.node();
    let mut trained = Vec::new();
    let mut note = |table: &Matrix, of_row: Vec<Option<usize>>| {
        let id = table.parameter().map(|parameter| parameter.id());
        let node = tape.parameter(id, table.out_features());
        if node.is_tracked() {
            trained.push((node, of_row));
        }
    };
    let prompt_rows = value.rows();
    let of_row = std::iter::repeat_n(None, prompt_rows).chain(ids.iter().map(|&id| Some(id as usize)));
    note(table, of_row.collect());
    if let Some(Positions { table, of_row }) = positions {
        note(table, of_row.iter().copied().map(Some).collect());
    }
    let grad_rows = if trained.is_empty() { node.grad_rows() } else { rows };
    if grad_rows == 0 {
        return Ok(Var::constant(output));
    }
    Ok(tape.record(output, grad_rows, move |dy, gradients| {
        for (node, of_row) in trained {
            gradients.accumulate(node, width, &dy, |sums, accumulate| {
                match dy.device() {
                    Device::Cpu(_) => with_element!(dy.dtype(), E => scatter::<E>(&dy, &of_row, sums, accumulate)),
                    Device::Cuda(cuda) => cuda::scatter(cuda, &dy, &of_row, sums, accumulate)?,
                }
                Ok(())
            })?;
        }
        gradients.add(node, dy)
    }))
}

/// Row `of_row[i]` of the sums gets row `i` of `dy`.
fn scatter<E: Element>(dy: &Tensor, of_row: &[Option<usize>], sums: &mut Tensor, accumulate: Accumulate) {
    let cols = dy.cols();
    let sums = sums.make_mut::<E>();
    if accumulate == Accumulate::Replace {
        sums.fill(E::ZERO);
    }
    for (row, target) in of_row.iter().enumerate() {
        if let Some(target) = target {
            add_assign(&mut sums[target * cols..(target + 1) * cols], dy.row::<E>(row));
        }
    }
}

fn fill<E: Element>(prompt: &[E], table: &Matrix, ids: &[u32], positions: Option<Positions<'_>>, stream: &mut [E]) {
    let width = table.in_features();
    stream[..prompt.len()].copy_from_slice(prompt);
    for (row, &id) in stream[prompt.len()..].chunks_exact_mut(width).zip(ids) {
        table.widen_row(id as usize, row);
    }
    if let Some(Positions { table, of_row }) = positions {
        let mut embedded = vec![E::ZERO; width];
        for (row, &position) in stream.chunks_exact_mut(width).zip(of_row) {
            table.widen_row(position, &mut embedded);
            add_assign(row, &embedded);
        }
    }
}
