//! `linear`: `y = x W (+ b)`.
//!
//! * saves: `x` if `W` is trained; of a frozen `W` nothing
//! * backward: `dx = dy Wᵀ`, for the gradient rows of `x`; if trained, `dW = xᵀ dy` and `db = Σ dy` over the rows

mod cpu;
#[allow(unsafe_code, reason = "launches kernels")]
mod cuda;

use crate::device::{Device, Kind};
use crate::error::{Error, Result};
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, with_element};
use crate::weights::{Matrix, Orientation};
use std::sync::Arc;

/// `x` `[rows, in]` times `matrix`, plus `bias` `[1, out]`: `[rows, out]`.
///
/// # Errors
/// [`Error::Op`] if the shapes do not fit.
pub fn linear(tape: &mut Tape, x: &Var, matrix: &Arc<Matrix>, bias: Option<&Var>) -> Result<Var> {
    let input = x.tensor();
    let (in_features, out_features) = (matrix.in_features(), matrix.out_features());
    if input.cols() != in_features {
        return Err(Error::op("linear", format!("[_, {in_features}]"), input.describe()));
    }
    if let Some(bias) = bias.map(Var::tensor)
        && (bias.rows(), bias.cols(), bias.dtype()) != (1, out_features, input.dtype())
    {
        return Err(Error::op("linear", format!("a bias [1, {out_features}] {}", input.dtype()), bias.describe()));
    }
    let (weight_rows, weight_cols) = match matrix.orientation() {
        Orientation::RowPerOutput => (out_features, in_features),
        Orientation::RowPerInput => (in_features, out_features),
    };
    let weight = tape.parameter(matrix.parameter().map(|parameter| parameter.id()), weight_rows);
    let shift = bias.map(Var::tensor);
    let (node, bias) = (x.node(), bias.map(Var::node).filter(|bias| bias.is_tracked()));
    // What is trained sees every row.
    let grad_rows = if weight.is_tracked() || bias.is_some() { input.rows() } else { node.grad_rows() };
    let mut output = Tensor::scratch(input.device(), input.rows(), out_features, input.dtype(), Kind::Workspace);
    match input.device() {
        Device::Cpu(_) => with_element!(input.dtype(), E => {
            cpu::forward::<E>(input, matrix, shift, &mut output, grad_rows > 0)?;
        }),
        Device::Cuda(cuda) => cuda::forward(cuda, input, matrix, shift, &mut output)?,
    }
    if grad_rows == 0 {
        return Ok(Var::constant(output));
    }
    let saved = weight.is_tracked().then(|| tape.save(input));
    let matrix = Arc::clone(matrix);
    Ok(tape.record(output, grad_rows, move |dy, gradients| {
        if let Some(bias) = bias {
            gradients.accumulate(bias, out_features, &dy, |db, accumulate| {
                match dy.device() {
                    Device::Cpu(_) => with_element!(dy.dtype(), E => cpu::bias_gradient::<E>(&dy, db, accumulate)),
                    Device::Cuda(cuda) => cuda::bias_gradient(cuda, &dy, db, accumulate)?,
                }
                Ok(())
            })?;
        }
        if let Some(x) = saved {
            let orientation = matrix.orientation();
            gradients.accumulate(weight, weight_cols, &dy, |dw, accumulate| {
                match dy.device() {
                    Device::Cpu(_) => {
                        with_element!(dy.dtype(), E => cpu::weight_gradient::<E>(&x, &dy, orientation, dw, accumulate));
                    }
                    Device::Cuda(cuda) => cuda::weight_gradient(cuda, &x, &dy, orientation, dw, accumulate)?,
                }
                Ok(())
            })?;
        }
        gradients.accumulate(node, in_features, &dy, |dx, accumulate| {
            match dy.device() {
                Device::Cpu(_) => with_element!(dy.dtype(), E => cpu::backward::<E>(&dy, &matrix, dx, accumulate)?),
                Device::Cuda(cuda) => cuda::backward(cuda, &dy, &matrix, dx, accumulate)?,
            }
            Ok(())
        })
    }))
}
