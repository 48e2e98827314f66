//! `rope`: rotary position embedding (Su et al. 2021), `(a, b) ← (a cos θ − b sin θ, a sin θ + b cos θ)` for each pair
//! of a head's elements, with `θ = position · frequency(pair)`.
//!
//! * saves: the positions
//! * backward: the inverse rotation, in place

#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

use crate::device::Device;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::indices::Indices;
use crate::ops::simd::{rows_per_task, vectorised};
use crate::tape::{Tape, Var};
use crate::tensor::{Tensor, with_element};
use rayon::prelude::*;
use std::sync::Arc;

/// Which elements of a head form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + head_dim/2`, as Hugging Face stores Llama.
    Halves,
    /// `2i` and `2i + 1`, as GGUF stores Llama: its query and key rows are permuted to suit.
    Neighbours,
}

/// Cosines and sines by position, `[positions, head_dim/2]` each, in f32 where heads are bf16.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Which elements are rotated together.
    pub pairing: Pairing,
    /// `cos θ`, a row per position.
    pub cos: Tensor,
    /// `sin θ`, a row per position.
    pub sin: Tensor,
}

/// Rotates every head of `x` `[rows, heads · head_dim]` to its row's position. The memory of `x` is used for the result
/// if nothing else holds it.
///
/// # Errors
/// [`Error::Op`] if the shapes do not fit or a position is not in the table.
pub fn rope(tape: &mut Tape, x: Var, rotation: &Arc<Rotation>, positions: &Indices) -> Result<Var> {
    let node = x.node();
    let mut output = x.into_tensor();
    let head_dim = 2 * rotation.cos.cols();
    if output.rows() != positions.len() || head_dim == 0 || !output.cols().is_multiple_of(head_dim) {
        let expected = format!("[{}, a multiple of {head_dim}]", positions.len());
        return Err(Error::op("rope", expected, output.describe()));
    }
    if let Some(far) = positions.iter().find(|&&position| position >= rotation.cos.rows()) {
        return Err(Error::op("rope", format!("positions below {}", rotation.cos.rows()), far.to_string()));
    }
    turn(&mut output, rotation, positions, 1)?;
    if !node.is_tracked() {
        return Ok(Var::constant(output));
    }
    let (rotation, positions) = (Arc::clone(rotation), positions.clone());
    Ok(tape.record(output, node.grad_rows(), move |mut dy, gradients| {
        turn(&mut dy, &rotation, &positions, -1)?;
        gradients.add(node, dy)
    }))
}

/// Rotates the rows of `x` by `direction · θ`; there may be fewer of them than positions.
fn turn(x: &mut Tensor, rotation: &Rotation, positions: &Indices, direction: i32) -> Result<()> {
    match x.device().clone() {
        Device::Cpu(_) => with_element!(x.dtype(), E => {
            rotate::<E>(x, rotation, positions, E::from_f64(f64::from(direction)));
        }),
        Device::Cuda(cuda) => cuda::rotate(&cuda, x, rotation, positions, direction)?,
    }
    Ok(())
}

/// The same on the CPU.
fn rotate<E: Element>(x: &mut Tensor, rotation: &Rotation, positions: &[usize], direction: E) {
    let (cols, half) = (x.cols(), rotation.cos.cols());
    let rows = rows_per_task(cols);
    x.make_mut::<E>().par_chunks_mut(rows * cols).zip(positions.par_chunks(rows)).for_each(|(x, positions)| {
        vectorised(
            #[inline(always)]
            || {
                for (row, &position) in x.chunks_exact_mut(cols).zip(positions) {
                    let (cos, sin) = (rotation.cos.row::<E>(position), rotation.sin.row::<E>(position));
                    for head in row.chunks_exact_mut(2 * half) {
                        match rotation.pairing {
                            Pairing::Halves => {
                                let (first, second) = head.split_at_mut(half);
                                for i in 0..half {
                                    let (a, b, s) = (first[i], second[i], direction * sin[i]);
                                    first[i] = a * cos[i] - b * s;
                                    second[i] = a * s + b * cos[i];
                                }
                            }
                            Pairing::Neighbours => {
                                for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                                    let (a, b, s) = (pair[0], pair[1], direction * sin[i]);
                                    pair[0] = a * cos[i] - b * s;
                                    pair[1] = a * s + b * cos[i];
                                }
                            }
                        }
                    }
                }
            },
        );
    });
}
