//! `by_head`: each head's part of a row through its own part of a frozen matrix `W` `[heads · dim, width]`, of which `W_h` are
//! the rows of head `h`: out of the heads, `y_h = x_h W_h`, or into them, `y_h = x_h W_hᵀ`.
//!
//! With these two, attention to rows `e` needs neither `W_k e` nor `W_v e`: `q_h·(W_k e)_h = (q_h W_k,h)·e`, and
//! `Σ p (W_v e)_h = W_v,h (Σ p e)`. Where few rows ask of many, that is less.
//!
//! * saves: nothing
//! * backward: the other direction

use crate::device::{Device, Kind};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::ops::gemm::{Product, frozen_product, view, view_mut};
use crate::ops::wide::{round_to, widened};
use crate::tape::{Accumulate, Tape, Var};
use crate::tensor::{Tensor, with_element};
use crate::weights::{Matrix, Orientation};
use std::sync::Arc;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `[rows, heads · dim]` to `[rows, heads · width]`.
    OutOf,
    /// `[rows, heads · width]` to `[rows, heads · dim]`.
    Into,
}

impl Direction {
    fn reversed(self) -> Self {
        match self {
            Self::OutOf => Self::Into,
            Self::Into => Self::OutOf,
        }
    }
}

/// Sums of up to this many products are taken in f64, as those of `linear` are.
const SHORT: usize = 128;

/// `x` through `matrix`, head by head.
///
/// # Errors
/// [`Error::Op`] if the shapes do not fit, for a matrix that is trained or has a row per input, and on a GPU.
pub fn by_head(tape: &mut Tape, x: &Var, matrix: &Arc<Matrix>, heads: usize, direction: Direction) -> Result<Var> {
    let input = x.tensor();
    let (width, outputs) = (matrix.in_features(), matrix.out_features());
    let cols = if direction == Direction::OutOf { outputs } else { heads * width };
    if heads == 0 || !outputs.is_multiple_of(heads) || input.cols() != cols {
        return Err(Error::op("by_head", format!("[_, {cols}] of {heads} heads"), input.describe()));
    }
    if matrix.parameter().is_some() || matrix.orientation() != Orientation::RowPerOutput {
        return Err(Error::op("by_head", "a frozen matrix with a row per output", "another"));
    }
    let Device::Cpu(_) = input.device() else {
        return Err(Error::op("by_head", "a CPU", input.device().name()));
    };
    let output = apply(input, matrix, heads, direction, Kind::Workspace)?;
    let node = x.node();
    if !node.is_tracked() {
        return Ok(Var::constant(output));
    }
    let matrix = Arc::clone(matrix);
    Ok(tape.record(output, node.grad_rows(), move |dy, gradients| {
        gradients.add(node, apply(&dy, &matrix, heads, direction.reversed(), Kind::Gradients)?)
    }))
}

fn apply(x: &Tensor, matrix: &Matrix, heads: usize, direction: Direction, kind: Kind) -> Result<Tensor> {
    let (width, dim) = (matrix.in_features(), matrix.out_features() / heads);
    let (from, to) = if direction == Direction::OutOf { (dim, width) } else { (width, dim) };
    // The library adds up a product of one row in another order than one of several.
    let single = x.rows() == 1;
    let rows = if single { &Tensor::stacked(&[x, x], Kind::Workspace)? } else { x };
    let is_short = x.dtype() == DType::F32 && from <= SHORT;
    let rows = if is_short { &widened(rows) } else { rows };
    let mut y = Tensor::scratch(x.device(), rows.rows(), heads * to, rows.dtype(), Kind::Workspace);
    with_element!(rows.dtype(), E => products::<E>(rows, matrix, heads, direction, [from, to], &mut y)?);
    let mut output = Tensor::scratch(x.device(), x.rows(), heads * to, x.dtype(), kind);
    if is_short {
        let mut rounded = Tensor::scratch(x.device(), rows.rows(), heads * to, x.dtype(), Kind::Workspace);
        round_to(&mut rounded, &y);
        y = rounded;
    }
    output.copy_from_prefix(&y, x.rows())?;
    Ok(output)
}

fn products<E: Element>(
    x: &Tensor,
    matrix: &Matrix,
    heads: usize,
    direction: Direction,
    [from, to]: [usize; 2],
    y: &mut Tensor,
) -> Result<()> {
    let (device, rows, dim) = (x.device().clone(), x.rows(), matrix.out_features() / heads);
    let product = if direction == Direction::OutOf { Product::AsStored } else { Product::Transposed };
    let x = view::<E>(x.as_slice(), rows, heads * from);
    let mut y = view_mut::<E>(y.make_mut(), rows, heads * to);
    for head in 0..heads {
        let part = matrix.outputs(head * dim..(head + 1) * dim)?;
        let out = y.as_mut().subcols_mut(head * to, to);
        frozen_product(&device, out, Accumulate::Replace, x.subcols(head * from, from), &part, product, None);
    }
    Ok(())
}
