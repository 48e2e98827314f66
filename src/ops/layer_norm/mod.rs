//! `layer_norm`: `y = w ∘ (x − mean(x)) / √(var(x) + ε) + b`, row by row (Ba et al. 2016).
//!
//! * saves: the gradient rows of `x`; mean and scale of a row are computed again
//! * backward: with `x̂` the normalised row, `r` its scale and `g = w ∘ dy`: `dx = r (g − mean(g) − x̂ mean(g ∘ x̂))`;
//!   if `w` and `b` are trained, `dw = Σ x̂ ∘ dy` and `db = Σ dy` over the rows

mod cpu;
#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use crate::device::{Device, Kind};
use crate::error::{Error, Result};
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, with_element};

/// Normalises the rows of `x` `[rows, d]`, scales them by `weight` and shifts them by `bias`, both `[1, d]`.
///
/// # Errors
/// [`Error::Op`] if the shapes do not fit.
pub fn layer_norm(tape: &mut Tape, x: &Var, weight: &Var, bias: &Var, epsilon: f64) -> Result<Var> {
    let (input, scale, shift) = (x.tensor(), weight.tensor(), bias.tensor());
    check(input, scale, shift)?;
    let mut output = Tensor::scratch(input.device(), input.rows(), input.cols(), input.dtype(), Kind::Workspace);
    match input.device() {
        Device::Cpu(_) => {
            with_element!(input.dtype(), E => cpu::forward::<E>(input, scale, shift, epsilon, &mut output))
        }
        Device::Cuda(cuda) => cuda::forward(cuda, input, scale, shift, epsilon, &mut output)?,
    }
    Ok(record(tape, x, output, weight, bias, epsilon))
}

/// The sum of `x` and `residual`, and [`layer_norm`] of it: on a GPU in one pass. The memory of `residual` is used for the
/// sum if nothing else holds it.
///
/// # Errors
/// As [`layer_norm`].
pub fn add_layer_norm(
    tape: &mut Tape,
    x: &Var,
    residual: Var,
    weight: &Var,
    bias: &Var,
    epsilon: f64,
) -> Result<(Var, Var)> {
    let (left, right) = (x.node(), residual.node());
    let (input, mut sum) = (x.tensor(), residual.into_tensor());
    let (scale, shift) = (weight.tensor(), bias.tensor());
    check(input, scale, shift)?;
    if (sum.rows(), sum.cols(), sum.dtype()) != (input.rows(), input.cols(), input.dtype()) {
        return Err(Error::op("layer_norm", input.describe(), sum.describe()));
    }
    let mut output = Tensor::scratch(input.device(), input.rows(), input.cols(), input.dtype(), Kind::Workspace);
    match input.device() {
        Device::Cpu(_) => {
            sum.add_assign(input)?;
            with_element!(input.dtype(), E => cpu::forward::<E>(&sum, scale, shift, epsilon, &mut output));
        }
        Device::Cuda(cuda) => cuda::add_forward(cuda, input, &mut sum, scale, shift, epsilon, &mut output)?,
    }
    let sum = tape.record_sum(sum, left, right);
    let output = record(tape, &sum, output, weight, bias, epsilon);
    Ok((sum, output))
}

fn check(input: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<()> {
    for parameter in [weight, bias] {
        if (parameter.rows(), parameter.cols(), parameter.dtype()) != (1, input.cols(), input.dtype()) {
            let expected = format!("weight and bias [1, {}] {}", input.cols(), input.dtype());
            return Err(Error::op("layer_norm", expected, parameter.describe()));
        }
    }
    Ok(())
}

fn record(tape: &mut Tape, x: &Var, output: Tensor, weight: &Var, bias: &Var, epsilon: f64) -> Var {
    let (node, weight_node, bias_node) = (x.node(), weight.node(), bias.node());
    let is_trained = weight_node.is_tracked() || bias_node.is_tracked();
    // What is trained sees every row.
    let grad_rows = if is_trained { x.tensor().rows() } else { node.grad_rows() };
    if grad_rows == 0 {
        return Var::constant(output);
    }
    let saved = tape.save_prefix(x.tensor(), grad_rows);
    let weight = weight.tensor().clone();
    tape.record(output, grad_rows, move |dy, gradients| {
        if is_trained {
            let new = || Tensor::scratch(dy.device(), 1, dy.cols(), dy.dtype(), Kind::Gradients);
            let (mut dw, mut db) = (new(), new());
            match dy.device() {
                Device::Cpu(_) => {
                    with_element!(dy.dtype(), E => cpu::weight_gradient::<E>(&dy, &saved, epsilon, &mut dw, &mut db));
                }
                Device::Cuda(cuda) => cuda::weight_gradient(cuda, &dy, &saved, epsilon, &mut dw, &mut db)?,
            }
            gradients.add(weight_node, dw)?;
            gradients.add(bias_node, db)?;
        }
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
