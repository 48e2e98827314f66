//! `gated`: `y = f(gate) ∘ up`, the middle of a gated MLP (Shazeer 2020).
//!
//! * saves: the gradient rows of `gate` and `up`
//! * backward: `d gate = dy ∘ up ∘ f'(gate)` in place, `d up = dy ∘ f(gate)`

#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use super::activation::{Activation, Function, with_function};
use crate::device::{Device, Kind};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::ops::simd::{CHUNK, vectorised};
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, with_element};
use rayon::prelude::*;

/// `function(gate) ∘ up`, both `[rows, d]`. Both must carry gradient in the same rows: they are two projections of one
/// input.
///
/// # Errors
/// [`Error::Op`] if shapes or gradient rows differ.
pub fn gated(tape: &mut Tape, gate: &Var, up: &Var, function: Activation) -> Result<Var> {
    let (g, u) = (gate.tensor(), up.tensor());
    if (g.rows(), g.cols(), gate.grad_rows()) != (u.rows(), u.cols(), up.grad_rows()) {
        let words = |var: &Var| format!("{} with {} gradient rows", var.tensor().describe(), var.grad_rows());
        return Err(Error::op("gated", words(gate), words(up)));
    }
    let mut output = Tensor::scratch(g.device(), g.rows(), g.cols(), g.dtype(), Kind::Workspace);
    match g.device() {
        Device::Cpu(_) => {
            with_element!(g.dtype(), E => with_function!(function, F => forward::<E, F>(g, u, &mut output)));
        }
        Device::Cuda(cuda) => cuda::forward(cuda, function, g, u, &mut output)?,
    }
    let (gate_node, up_node) = (gate.node(), up.node());
    if !gate_node.is_tracked() {
        return Ok(Var::constant(output));
    }
    let (g, u) = (tape.save_prefix(g, gate.grad_rows()), tape.save_prefix(u, up.grad_rows()));
    Ok(tape.record(output, gate_node.grad_rows(), move |mut dy, gradients| {
        let mut du = Tensor::scratch(dy.device(), dy.rows(), dy.cols(), dy.dtype(), Kind::Gradients);
        match dy.device().clone() {
            Device::Cpu(_) => {
                with_element!(dy.dtype(), E => with_function!(function, F => backward::<E, F>(&mut dy, &mut du, &g, &u)));
            }
            Device::Cuda(cuda) => cuda::backward(&cuda, function, &mut dy, &mut du, &g, &u)?,
        }
        gradients.add(gate_node, dy)?;
        gradients.add(up_node, du)
    }))
}

fn forward<E: Element, F: Function<E>>(g: &Tensor, u: &Tensor, y: &mut Tensor) {
    let inputs = g.as_slice::<E>().par_chunks(CHUNK).zip(u.as_slice::<E>().par_chunks(CHUNK));
    y.make_mut::<E>().par_chunks_mut(CHUNK).zip(inputs).for_each(|(y, (g, u))| {
        vectorised(
            #[inline(always)]
            || {
                for ((y, &g), &u) in y.iter_mut().zip(g).zip(u) {
                    *y = F::value(g) * u;
                }
            },
        );
    });
}

/// Turns `dy` into the gate's gradient and writes `du`.
fn backward<E: Element, F: Function<E>>(dy: &mut Tensor, du: &mut Tensor, g: &Tensor, u: &Tensor) {
    let inputs = g.as_slice::<E>().par_chunks(CHUNK).zip(u.as_slice::<E>().par_chunks(CHUNK));
    let outputs = dy.make_mut::<E>().par_chunks_mut(CHUNK).zip(du.make_mut::<E>().par_chunks_mut(CHUNK));
    outputs.zip(inputs).for_each(|((dy, du), (g, u))| {
        vectorised(
            #[inline(always)]
            || {
                for (((dy, du), &g), &u) in dy.iter_mut().zip(du).zip(g).zip(u) {
                    let (value, slope) = F::value_and_slope(g);
                    *du = *dy * value;
                    *dy = *dy * u * slope;
                }
            },
        );
    });
}
