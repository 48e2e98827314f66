//! `scale`: `y = factor · x`.
//!
//! * saves: nothing
//! * backward: `dx = factor · dy`, in place

#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use crate::device::Device;
use crate::error::Result;
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, with_element};

/// `factor · x`. The memory of `x` is used for the result if nothing else holds it.
///
/// # Errors
/// None but those of the device.
pub fn scale(tape: &mut Tape, x: Var, factor: f64) -> Result<Var> {
    let node = x.node();
    let output = scaled(x.into_tensor(), factor)?;
    if !node.is_tracked() {
        return Ok(Var::constant(output));
    }
    Ok(tape.record(output, node.grad_rows(), move |dy, gradients| gradients.add(node, scaled(dy, factor)?)))
}

fn scaled(mut x: Tensor, factor: f64) -> Result<Tensor> {
    match x.device().clone() {
        Device::Cpu(_) => with_element!(x.dtype(), E => {
            let factor = <E as crate::dtype::Element>::from_f64(factor);
            x.make_mut::<E>().iter_mut().for_each(|x| *x *= factor);
            Ok(x)
        }),
        Device::Cuda(cuda) => cuda::scaled(&cuda, &x, factor),
    }
}
