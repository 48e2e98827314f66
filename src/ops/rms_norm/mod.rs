//! `rms_norm`: `y = w ∘ x / √(mean(x²) + ε)`, row by row (Zhang & Sennrich 2019).
//!
//! * saves: the gradient rows of `x`; the scale of a row is computed again
//! * backward: with `r = 1/√(mean(x²) + ε)` and `g = w ∘ dy`: `dx = r g − x r³ mean(g ∘ x)`; if `w` is trained,
//!   `dw = Σ r x ∘ dy` over the rows

mod cpu;
#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use crate::device::{Device, Kind};
use crate::error::{Error, Result};
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, with_element};

/// Normalises the rows of `x` `[rows, d]` and scales them by `weight` `[1, d]`.
///
/// # Errors
/// [`Error::Op`] if the shapes do not fit.
pub fn rms_norm(tape: &mut Tape, x: &Var, weight: &Var, epsilon: f64) -> Result<Var> {
    let (input, scale) = (x.tensor(), weight.tensor());
    check(input, scale)?;
    let mut output = Tensor::scratch(input.device(), input.rows(), input.cols(), input.dtype(), Kind::Workspace);
    match input.device() {
        Device::Cpu(_) => with_element!(input.dtype(), E => cpu::forward::<E>(input, scale, epsilon, &mut output)),
        Device::Cuda(cuda) => cuda::forward(cuda, input, scale, epsilon, &mut output)?,
    }
    Ok(record(tape, x, output, weight, epsilon))
}

/// The sum of `x` and `residual`, and [`rms_norm`] of it: on a GPU in one pass. The memory of `residual` is used for the
/// sum if nothing else holds it.
///
/// # Errors
/// As [`rms_norm`].
pub fn add_rms_norm(tape: &mut Tape, x: &Var, residual: Var, weight: &Var, epsilon: f64) -> Result<(Var, Var)> {
    let (left, right) = (x.node(), residual.node());
    let (input, mut sum, scale) = (x.tensor(), residual.into_tensor(), weight.tensor());
    check(input, scale)?;
    if (sum.rows(), sum.cols(), sum.dtype()) != (input.rows(), input.cols(), input.dtype()) {
        return Err(Error::op("rms_norm", input.describe(), sum.describe()));
    }
    let mut output = Tensor::scratch(input.device(), input.rows(), input.cols(), input.dtype(), Kind::Workspace);
    match input.device() {
        Device::Cpu(_) => {
            sum.add_assign(input)?;
            with_element!(input.dtype(), E => cpu::forward::<E>(&sum, scale, epsilon, &mut output));
        }
        Device::Cuda(cuda) => cuda::add_forward(cuda, input, &mut sum, scale, epsilon, &mut output)?,
    }
    let sum = tape.record_sum(sum, left, right);
    let output = record(tape, &sum, output, weight, epsilon);
    Ok((sum, output))
}

fn check(input: &Tensor, weight: &Tensor) -> Result<()> {
    if (weight.rows(), weight.cols(), weight.dtype()) == (1, input.cols(), input.dtype()) {
        return Ok(());
    }
    let expected = format!("a weight [1, {}] {}", input.cols(), input.dtype());
    Err(Error::op("rms_norm", expected, weight.describe()))
}

fn record(tape: &mut Tape, x: &Var, output: Tensor, weight: &Var, epsilon: f64) -> Var {
    let (node, weight_node) = (x.node(), weight.node());
    // A weight that is trained sees every row.
    let grad_rows = if weight_node.is_tracked() { x.tensor().rows() } else { node.grad_rows() };
    if grad_rows == 0 {
        return Var::constant(output);
    }
    let saved = tape.save_prefix(x.tensor(), grad_rows);
    let weight = weight.tensor().clone();
    tape.record(output, grad_rows, move |dy, gradients| {
        gradients.accumulate(weight_node, saved.cols(), &dy, |dw, accumulate| {
            match dy.device() {
                Device::Cpu(_) => {
                    with_element!(dy.dtype(), E => cpu::weight_gradient::<E>(&dy, &saved, epsilon, dw, accumulate));
                }
                Device::Cuda(cuda) => cuda::weight_gradient(cuda, &dy, &saved, epsilon, dw, accumulate)?,
            }
            Ok(())
        })?;
        gradients.accumulate(node, saved.cols(), &dy, |dx, accumulate| {
            match dy.device() {
                Device::Cpu(_) => {
                    with_element!(dy.dtype(), E => cpu::backward::<E>(&dy, &saved, &weight, epsilon, dx, accumulate))
                }
                Device::Cuda(cuda) => cuda::backward(cuda, &dy, &saved, &weight, epsilon, dx, accumulate)?,
            }
            Ok(())
        })
    })
}
