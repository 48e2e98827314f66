//! `linear`: `y = x W (+ bias)` with a frozen `W`.
//!
//! * saves: nothing — the input would only be needed for the gradient of `W`
//! * backward: `dx = dy Wᵀ`, for the gradient rows of `x`

mod cpu;
#[allow(unsafe_code, reason = "launches kernels")]
mod cuda;

use crate::device::{Device, Kind};
use crate::error::{Error, Result};
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, with_element};
use crate::weights::Matrix;
use std::sync::Arc;

/// `x` `[rows, in]` times `matrix`, plus `bias` `[1, out]`: `[rows, out]`.
///
/// # Errors
/// [`Error::Op`] if the shapes do not fit.
pub fn linear(tape: &mut Tape, x: &Var, matrix: &Arc<Matrix>, bias: Option<&Tensor>) -> Result<Var> {
    let input = x.tensor();
    let (in_features, out_features) = (matrix.in_features(), matrix.out_features());
    if input.cols() != in_features {
        return Err(Error::op("linear", format!("[_, {in_features}]"), input.describe()));
    }
    if let Some(bias) = bias
        && (bias.rows(), bias.cols(), bias.dtype()) != (1, out_features, input.dtype())
    {
        return Err(Error::op("linear", format!("a bias [1, {out_features}] {}", input.dtype()), bias.describe()));
    }
    let mut output = Tensor::scratch(input.device(), input.rows(), out_features, input.dtype(), Kind::Workspace);
    match input.device() {
        Device::Cpu(_) => with_element!(input.dtype(), E => cpu::forward::<E>(input, matrix, bias, &mut output)),
        Device::Cuda(cuda) => cuda::forward(cuda, input, matrix, bias, &mut output)?,
    }

    let node = x.node();
    if !node.is_tracked() {
        return Ok(Var::constant(output));
    }
    let matrix = Arc::clone(matrix);
    Ok(tape.record(output, node.grad_rows(), move |dy, gradients| {
        gradients.accumulate(node, in_features, &dy, |dx, accumulate| {
            match dy.device() {
                Device::Cpu(_) => with_element!(dy.dtype(), E => cpu::backward::<E>(&dy, &matrix, dx, accumulate)),
                Device::Cuda(cuda) => cuda::backward(cuda, &dy, &matrix, dx, accumulate)?,
            }
            Ok(())
        })
    }))
}
