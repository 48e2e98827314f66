//! `attention`: `oᵢ = Σⱼ softmaxⱼ(scale · qᵢ·kⱼ) vⱼ` over the keys that query `i` sees, head by head; several query heads
//! may share a key head (grouped queries, Ainslie et al. 2023). Which keys a query sees is said by
//! [`Segments`]: spans of context in full, then the first of its own span. A [`PositionBias`] is added to the scores.
//!
//! * saves: `q`, `k`, `v`, `o` and the log-sum-exp of each query and head (Dao et al. 2022). Of `k` and `v` only the rows
//!   that the backward step reads: those that carry gradient, and those seen by queries that do. Of `o` in bf16 also the
//!   next 8 bits, for `δ`
//! * backward: with `pᵢⱼ = exp(scale qᵢ·kⱼ − lseᵢ)`, `δᵢ = doᵢ·oᵢ` and `dsᵢⱼ = pᵢⱼ (doᵢ·vⱼ − δᵢ)`:
//!   `dvⱼ = Σᵢ pᵢⱼ doᵢ`, `dkⱼ = scale Σᵢ dsᵢⱼ qᵢ`, `dqᵢ = scale Σⱼ dsᵢⱼ kⱼ`. Keys or queries without gradient rows are
//!   left out. A bias that is trained gets `Σ dsᵢⱼ` of its distance. Sums over segments are added up in one fixed order.

mod bias;
mod cpu;
#[allow(unsafe_code, reason = "kernel launches")]
pub(crate) mod cuda;
pub(crate) mod plan;
mod tile;

pub use bias::PositionBias;

use crate::device::{Buffer, Device, Kind};
use crate::error::{Error, Result};
use crate::layout::Segments;
use crate::tape::{Node, Tape, Var};
use crate::tensor::{Tensor, with_element};
use std::sync::Arc;

/// The sizes of the heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Elements of a head.
    pub dim: usize,
    /// What scores are multiplied by: `1/√dim`, or 1 in T5.
    pub scale: f64,
}

impl Heads {
    /// Whether queries of `rows` rows that see so many `pairs` with `encoded` rows of width d had better ask of these as they
    /// are, head by head (see [`crate::ops::by_head()`]), than of keys and values made of them all. With H heads and
    /// q = H · dim, the one takes `rows q d + pairs H d` products, the other `encoded d q + pairs q`; the first are narrow,
    /// and must be half as many.
    pub(crate) fn asks_by_head(&self, width: usize, rows: usize, pairs: usize, encoded: usize) -> bool {
        let [width, heads, rows, pairs, encoded] =
            [width, self.queries, rows, pairs, encoded].map(|count| count as f64);
        let all = heads * self.dim as f64;
        2.0 * (rows * all * width + pairs * heads * width) < encoded * width * all + pairs * all
    }
}

/// What the backward step needs of the forward pass, gradient rows included.
pub(crate) struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    /// The bits that bf16 leaves out of `o`.
    o_low: Option<Buffer>,
    lse: Tensor,
    bias: Option<PositionBias>,
    /// Leading query rows, and key or value rows, whose gradient is wanted.
    query_grad_rows: usize,
    key_grad_rows: usize,
}

/// Attends with `q` `[queries, heads.queries · dim]` to `k` and `v` `[keys, heads.keys · dim]`:
/// `[queries, heads.queries · dim]`. `k` and `v` must carry gradient in the same rows: they are projections of one input.
///
/// # Errors
/// [`Error::Op`] if the shapes do not fit the heads or the segments, or the bias does not fit either.
pub fn attention(
    tape: &mut Tape,
    q: &Var,
    k: &Var,
    v: &Var,
    heads: Heads,
    segments: &Arc<Segments>,
    bias: Option<&PositionBias>,
) -> Result<Var> {
    check(q, k, v, heads, segments)?;
    bias.map_or(Ok(()), |bias| bias.check(heads.queries, q.tensor().dtype(), segments))?;
    let input = q.tensor();
    let new = |cols, dtype| Tensor::scratch(input.device(), input.rows(), cols, dtype, Kind::Workspace);
    let mut output = new(heads.queries * heads.dim, input.dtype());
    let mut lse = new(heads.queries, input.dtype().accumulator());
    // Operands may carry gradient in rows that no query sees.
    let d_table = bias.map_or(Node::CONSTANT, |bias| bias.table.node());
    let grad_rows = match d_table.is_tracked() {
        true => segments.query_rows(),
        false => grad_rows(segments, q.grad_rows(), k.grad_rows()),
    };
    let mut o_low = None;
    match input.device() {
        Device::Cpu(_) => with_element!(input.dtype(), E => {
            cpu::forward::<E>(input, k.tensor(), v.tensor(), heads, segments, bias, &mut output, &mut lse);
        }),
        Device::Cuda(cuda) => {
            o_low = if grad_rows > 0 { cuda::output_low(cuda, &output) } else { None };
            let low = o_low.as_mut();
            cuda::forward(cuda, input, k.tensor(), v.tensor(), heads, segments, bias, &mut output, low, &mut lse)?;
        }
    }
    if grad_rows == 0 {
        return Ok(Var::constant(output));
    }

    let needed = match d_table.is_tracked() {
        true => segments.key_rows(),
        false => keys_needed(segments, q.grad_rows(), k.grad_rows()),
    };
    let saved = Saved {
        q: tape.save(input),
        k: tape.save_prefix(k.tensor(), needed),
        v: tape.save_prefix(v.tensor(), needed),
        o: tape.save(&output),
        o_low,
        lse: tape.save(&lse),
        bias: bias.cloned(),
        query_grad_rows: q.grad_rows(),
        key_grad_rows: k.grad_rows(),
    };
    let (q, k, v) = (q.node(), k.node(), v.node());
    let segments = Arc::clone(segments);
    Ok(tape.record(output, grad_rows, move |d_output, gradients| {
        let (dtype, kind) = (d_output.dtype(), Kind::Gradients);
        let zeros = |rows, of: &Tensor| Tensor::zeros(of.device(), rows, of.cols(), of.dtype(), kind);
        let scratch = |rows, of: &Tensor| Tensor::scratch(of.device(), rows, of.cols(), of.dtype(), kind);
        let (query_rows, key_rows) = (saved.query_grad_rows, saved.key_grad_rows);
        let (mut dq, mut dk, mut dv, mut d_bias);
        let table = saved.bias.as_ref().map(|bias| bias.table.tensor()).filter(|_| d_table.is_tracked());
        match d_output.device() {
            Device::Cpu(_) => {
                dq = zeros(query_rows, &saved.q);
                (dk, dv) = (zeros(key_rows, &saved.k), zeros(key_rows, &saved.v));
                d_bias = table.map(|table| zeros(table.rows(), table));
                with_element!(dtype, E => {
                    let gradients = [&mut dq, &mut dk, &mut dv];
                    cpu::backward::<E>(&saved, &d_output, heads, &segments, gradients, d_bias.as_mut());
                });
            }
            Device::Cuda(cuda) => {
                dq = scratch(query_rows, &saved.q);
                (dk, dv) = (scratch(key_rows, &saved.k), scratch(key_rows, &saved.v));
                d_bias = table.map(|table| scratch(table.rows(), table));
                let gradients = [&mut dq, &mut dk, &mut dv];
                cuda::backward(cuda, &saved, &d_output, heads, &segments, gradients, d_bias.as_mut())?;
            }
        }
        drop((saved, d_output));
        if let Some(d_bias) = d_bias {
            gradients.add(d_table, d_bias)?;
        }
        gradients.add(q, dq)?;
        gradients.add(k, dk)?;
        gradients.add(v, dv)
    }))
}

fn check(q: &Var, k: &Var, v: &Var, heads: Heads, segments: &Segments) -> Result<()> {
    let Heads { queries, keys, dim, .. } = heads;
    if queries == 0 || keys == 0 || dim == 0 || !queries.is_multiple_of(keys) {
        return Err(Error::op("attention", "key heads that divide the query heads", format!("{heads:?}")));
    }
    let wanted = [
        (q, segments.query_rows(), queries * dim),
        (k, segments.key_rows(), keys * dim),
        (v, segments.key_rows(), keys * dim),
    ];
    for (operand, rows, cols) in wanted {
        let tensor = operand.tensor();
        if (tensor.rows(), tensor.cols(), tensor.dtype()) != (rows, cols, q.tensor().dtype()) {
            return Err(Error::op("attention", format!("[{rows}, {cols}]"), tensor.describe()));
        }
    }
    if k.grad_rows() != v.grad_rows() {
        let got = format!("{} and {}", k.grad_rows(), v.grad_rows());
        return Err(Error::op("attention", "keys and values with the same gradient rows", got));
    }
    Ok(())
}

/// How many leading query rows of the output can carry gradient: up to the last that sees a key that does, or does
/// itself.
pub(crate) fn grad_rows(segments: &Segments, query_grad_rows: usize, key_grad_rows: usize) -> usize {
    let reached = segments.as_slice().iter().rev().find(|segment| {
        !segment.queries.is_empty()
            && (segment.queries.start < query_grad_rows
                || segment.own.start < key_grad_rows
                || segment.context.iter().any(|span| span.start < key_grad_rows))
    });
    reached.map_or(0, |segment| segment.queries.end)
}

/// How many leading rows of `k` and `v` the backward step reads.
pub(crate) fn keys_needed(segments: &Segments, query_grad_rows: usize, key_grad_rows: usize) -> usize {
    let seen = segments
        .as_slice()
        .iter()
        .filter(|segment| segment.queries.start < query_grad_rows && !segment.queries.is_empty())
        .flat_map(|segment| segment.context.iter().map(|span| span.end).chain([segment.own.end]));
    seen.max().unwrap_or(0).max(key_grad_rows)
}
