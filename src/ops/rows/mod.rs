//! `rows`: `y[i] = x[index[i]]`, the rows that are scored.
//!
//! * saves: the indices
//! * backward: `dx[index[i]] += dy[i]`, in the order of `i`

#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use crate::device::{Device, Kind};
use crate::error::{Error, Result};
use crate::indices::Indices;
use crate::tape::{Accumulate, Tape, Var};
use crate::tensor::{Tensor, with_element};

/// The rows `index` of `x`, `[index.len(), cols]`. A row may be taken more than once.
///
/// # Errors
/// [`Error::Op`] for an index out of bounds.
pub fn rows(tape: &mut Tape, x: &Var, index: &Indices) -> Result<Var> {
    let input = x.tensor();
    if let Some(&out) = index.iter().find(|&&row| row >= input.rows()) {
        return Err(Error::op("rows", format!("an index below {}", input.rows()), out.to_string()));
    }
    let cols = input.cols();
    let mut output = Tensor::scratch(input.device(), index.len(), cols, input.dtype(), Kind::Workspace);
    match input.device() {
        Device::Cpu(_) => with_element!(input.dtype(), E => {
        let target = output.make_mut::<E>();
        for (position, &row) in index.iter().enumerate() {
            target[position * cols..(position + 1) * cols].copy_from_slice(input.row(row));
        }
        }),
        Device::Cuda(cuda) => cuda::forward(cuda, input, index, &mut output)?,
    }

    let node = x.node();
    // Gradient rows are a prefix: up to the last taken row that can carry any.
    let grad_rows = index.iter().rposition(|&row| row < node.grad_rows()).map_or(0, |last| last + 1);
    if grad_rows == 0 {
        return Ok(Var::constant(output));
    }
    let index = index.clone();
    Ok(tape.record(output, grad_rows, move |dy, gradients| {
        gradients.accumulate(node, cols, &dy, |dx, accumulate| {
            match dy.device() {
                Device::Cpu(_) => with_element!(dy.dtype(), E => {
                    scatter::<E>(dy.as_slice(), &index[..grad_rows], dx, accumulate);
                }),
                Device::Cuda(cuda) => cuda::backward(cuda, &dy, &index[..grad_rows], dx, accumulate)?,
            }
            Ok(())
        })
    }))
}

fn scatter<E: crate::dtype::Element>(dy: &[E], index: &[usize], dx: &mut Tensor, accumulate: Accumulate) {
    let (limit, cols) = (dx.rows(), dx.cols());
    let dx = dx.make_mut::<E>();
    if accumulate == Accumulate::Replace {
        dx.fill(E::ZERO);
    }
    for (position, &row) in index.iter().enumerate().filter(|&(_, &row)| row < limit) {
        let from = &dy[position * cols..(position + 1) * cols];
        crate::ops::simd::add_assign(&mut dx[row * cols..(row + 1) * cols], from);
    }
}
