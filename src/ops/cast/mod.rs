//! `cast`: the same numbers in another type: a prompt, kept in f32, on its way into a bf16 model.
//!
//! * saves: nothing
//! * backward: `dx` is `dy` in the type of `x`

#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use crate::device::{Device, Kind};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `x` in `dtype`; itself where it has that type.
///
/// # Errors
/// [`Error::Op`] for a type that the device does not compute in.
pub fn cast(tape: &mut Tape, x: &Var, dtype: DType) -> Result<Var> {
    let (input, node) = (x.tensor(), x.node());
    let from = input.dtype();
    if from == dtype {
        return Ok(x.clone());
    }
    let output = convert(input, dtype, Kind::Workspace)?;
    if !node.is_tracked() {
        return Ok(Var::constant(output));
    }
    Ok(tape.record(output, node.grad_rows(), move |dy, gradients| {
        gradients.add(node, convert(&dy, from, Kind::Gradients)?)
    }))
}

fn convert(x: &Tensor, dtype: DType, kind: Kind) -> Result<Tensor> {
    match x.device() {
        Device::Cpu(_) => Err(Error::op("cast", format!("{} on a CPU", x.dtype()), dtype.to_string())),
        Device::Cuda(cuda) => cuda::convert(cuda, x, dtype, kind),
    }
}
