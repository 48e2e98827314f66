//! `attention` on the CPU: small products per tile, tiles spread over threads.

use super::tile::{Scratch, Span, Tile, tile_rows};
use super::{Heads, Saved};
use crate::dtype::{DType, Element};
use crate::layout::{Segment, Segments};
use crate::ops::gemm::{gemm, view, view_mut};
use crate::ops::simd::{add_assign, dot, max, sum, vectorised};
use crate::ops::wide::{round_to, widened};
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use faer::MatMut;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Groups of one prompt's segments that a backward pass works on side by side; each has sums of its own for the context keys.
const GROUPS: usize = 32;

/// Heads of up to this many elements are worked on in f64: see [`crate::ops::wide`].
const SHORT: usize = 16;

pub(super) fn forward<E: Element>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    segments: &Segments,
    output: &mut Tensor,
    lse: &mut Tensor,
) {
    if E::DTYPE == DType::F32 && heads.dim <= SHORT {
        let (mut wide, mut wide_lse) = (widened(output), widened(lse));
        forward::<f64>(&widened(q), &widened(k), &widened(v), heads, segments, &mut wide, &mut wide_lse);
        round_to(output, &wide);
        return round_to(lse, &wide_lse);
    }
    let scratch = Scratch(q.device());
    let (mut output, mut lse) = (output.make_mut::<E>(), lse.make_mut::<E>());
    let mut tasks = Vec::new();
    for segment in segments.as_slice() {
        let mut start = segment.queries.start;
        while start < segment.queries.end {
            let rows = start..(start + tile_rows(heads)).min(segment.queries.end);
            let (mine, rest) = output.split_at_mut(rows.len() * heads.queries * heads.dim);
            let (my_lse, rest_lse) = lse.split_at_mut(rows.len() * heads.queries);
            (output, lse, start) = (rest, rest_lse, rows.end);
            tasks.push((segment, rows, mine, my_lse));
        }
    }
    tasks.into_par_iter().for_each(|(segment, rows, output, lse)| {
        for key_head in 0..heads.keys {
            let tile = Tile::new(heads, key_head, rows.clone(), segments);
            forward_tile::<E>(&tile, segment, q.as_slice(), k.as_slice(), v.as_slice(), &scratch, output, lse);
        }
    });
}

fn forward_tile<E: Element>(
    tile: &Tile<'_>,
    segment: &Segment,
    q: &[E],
    k: &[E],
    v: &[E],
    scratch: &Scratch<'_>,
    output: &mut [E],
    lse: &mut [E],
) {
    let (queries, dim) = (tile.queries(), tile.heads.dim);
    let spans = tile.spans(segment);
    let keys: usize = spans.iter().map(|span| span.keys.len()).sum();
    let (mut stacked, mut scores, mut sums) =
        (scratch.matrix::<E>(queries, dim), scratch.matrix::<E>(queries, keys), scratch.matrix::<E>(queries, 1));
    let (stacked, scores, sums) = (stacked.make_mut::<E>(), scores.make_mut::<E>(), sums.make_mut::<E>());

    tile.gather(q, E::from_f64(tile.heads.scale), stacked);
    let mut first = 0;
    for span in &spans {
        let columns = span_columns(scores, queries, keys, first, span);
        gemm(
            columns,
            Accumulate::Replace,
            view(stacked, queries, dim),
            tile.key_view(k, &span.keys).transpose(),
            E::ONE,
        );
        first += span.keys.len();
    }
    softmax(tile, &spans, scores, keys, sums);
    // The queries are done with: their memory takes the output.
    let (mut first, mut accumulate) = (0, Accumulate::Replace);
    for span in &spans {
        let weights = view(scores, queries, keys).subcols(first, span.keys.len());
        gemm(view_mut(stacked, queries, dim), accumulate, weights, tile.key_view(v, &span.keys), E::ONE);
        first += span.keys.len();
        accumulate = Accumulate::Add;
    }
    tile.scatter(stacked, dim, output);
    tile.scatter(sums, 1, lse);
}

fn span_columns<'a, E: Element>(
    scores: &'a mut [E],
    queries: usize,
    keys: usize,
    first: usize,
    span: &Span,
) -> MatMut<'a, E> {
    view_mut(scores, queries, keys).subcols_mut(first, span.keys.len())
}

/// Softmax of each row of `scores` over the keys its query sees, 0 for the others; `lse` gets the log-sum-exp.
fn softmax<E: Element>(tile: &Tile<'_>, spans: &[Span], scores: &mut [E], keys: usize, lse: &mut [E]) {
    vectorised(
        #[inline(always)]
        || {
            for (position, (row, lse)) in scores.chunks_exact_mut(keys).zip(lse).enumerate() {
                // The own span stands last, so what is not seen is the end of the row.
                let hidden: usize = spans.iter().map(|span| span.keys.len() - tile.seen(span, position)).sum();
                let (row, masked) = row.split_at_mut(keys - hidden);
                masked.fill(E::ZERO);
                let top = max(row);
                for x in row.iter_mut() {
                    *x = (*x - top).exp();
                }
                let total = sum(row);
                let inverse = E::ONE / total;
                for x in row.iter_mut() {
                    *x *= inverse;
                }
                *lse = top + Element::ln(total);
            }
        },
    );
}

/// What a group of segments adds to the gradients of keys outside their own spans.
struct ContextSums {
    rows: Range<usize>,
    dk: Tensor,
    dv: Tensor,
}

/// A segment with the parts of the gradients that nothing else writes.
struct Task<'a, E> {
    segment: &'a Segment,
    dq: &'a mut [E],
    dk: &'a mut [E],
    dv: &'a mut [E],
}

/// `dq`, `dk` and `dv` are zero on entry.
pub(super) fn backward<E: Element>(
    saved: &Saved,
    d_output: &Tensor,
    heads: Heads,
    segments: &Segments,
    dq: &mut Tensor,
    dk: &mut Tensor,
    dv: &mut Tensor,
) {
    if E::DTYPE == DType::F32 && heads.dim <= SHORT {
        let saved = Saved {
            q: widened(&saved.q),
            k: widened(&saved.k),
            v: widened(&saved.v),
            o: widened(&saved.o),
            lse: widened(&saved.lse),
            o_low: None,
            ..*saved
        };
        let mut wide = [&*dq, &*dk, &*dv].map(widened);
        let [wide_dq, wide_dk, wide_dv] = &mut wide;
        backward::<f64>(&saved, &widened(d_output), heads, segments, wide_dq, wide_dk, wide_dv);
        return [dq, dk, dv].into_iter().zip(&wide).for_each(|(gradient, wide)| round_to(gradient, wide));
    }
    let key_width = heads.keys * heads.dim;
    let mut groups = grouped(split::<E>(saved, heads, segments, d_output.rows(), dq, dk, dv));
    let sums: Vec<Option<ContextSums>> = groups
        .par_iter_mut()
        .map(|group| {
            let mut sums = context_sums::<E>(group, saved, key_width);
            for task in group {
                backward_segment(saved, d_output, heads, segments, task, sums.as_mut());
            }
            sums
        })
        .collect();
    drop(groups);
    for ContextSums { rows, dk: group_dk, dv: group_dv } in sums.into_iter().flatten() {
        let range = rows.start * key_width..rows.end * key_width;
        add_assign(&mut dk.make_mut::<E>()[range.clone()], group_dk.as_slice());
        add_assign(&mut dv.make_mut::<E>()[range], group_dv.as_slice());
    }
}

/// Hands every segment its own rows of the gradients. Own spans without gradient rows get nothing.
fn split<'a, E: Element>(
    saved: &Saved,
    heads: Heads,
    segments: &'a Segments,
    output_rows: usize,
    dq: &'a mut Tensor,
    dk: &'a mut Tensor,
    dv: &'a mut Tensor,
) -> Vec<Task<'a, E>> {
    let (query_width, key_width) = (heads.queries * heads.dim, heads.keys * heads.dim);
    let (mut dq, mut dk, mut dv) = (dq.make_mut::<E>(), dk.make_mut::<E>(), dv.make_mut::<E>());
    let mut next_key = 0;
    let mut tasks = Vec::with_capacity(segments.as_slice().len());
    for segment in segments.as_slice() {
        let queries = segment.queries.end.min(saved.query_grad_rows).saturating_sub(segment.queries.start);
        let (my_dq, rest) = dq.split_at_mut(queries * query_width);
        dq = rest;
        let (start, end) = (segment.own.start.max(next_key), segment.own.end.min(saved.key_grad_rows));
        let (mut my_dk, mut my_dv): (&mut [E], &mut [E]) = (&mut [], &mut []);
        if !segment.own.is_empty() && start < end {
            let (skip, take) = ((start - next_key) * key_width, (end - start) * key_width);
            (my_dk, dk) = dk[skip..].split_at_mut(take);
            (my_dv, dv) = dv[skip..].split_at_mut(take);
            next_key = end;
        }
        // Queries past the gradient rows of the output send nothing back.
        if segment.queries.start < output_rows {
            tasks.push(Task { segment, dq: my_dq, dk: my_dk, dv: my_dv });
        }
    }
    tasks
}

/// The groups of the tasks. Those of a prompt depend on its own segments alone, so that the bits of its gradient do not
/// depend on what else is in the stream.
fn grouped<E>(tasks: Vec<Task<'_, E>>) -> Vec<Vec<Task<'_, E>>> {
    let mut of_prompts: BTreeMap<usize, Vec<Task<'_, E>>> = BTreeMap::new();
    for task in tasks {
        let Segment { context, own, .. } = task.segment;
        let first_key = context.first().map_or(own.start, |span| span.start);
        of_prompts.entry(first_key).or_default().push(task);
    }
    let mut groups = Vec::new();
    for tasks in of_prompts.into_values() {
        let size = tasks.len().div_ceil(GROUPS);
        let mut tasks = tasks.into_iter().peekable();
        while tasks.peek().is_some() {
            groups.push(tasks.by_ref().take(size).collect());
        }
    }
    groups
}

/// Zeroed sums over the context keys with gradient that a group's segments see.
fn context_sums<E: Element>(group: &[Task<'_, E>], saved: &Saved, key_width: usize) -> Option<ContextSums> {
    let spans = group
        .iter()
        .filter(|task| !task.segment.queries.is_empty())
        .flat_map(|task| &task.segment.context)
        .filter(|span| span.start < saved.key_grad_rows && !span.is_empty());
    let (start, end) = spans.fold((usize::MAX, 0), |(start, end), span| (start.min(span.start), end.max(span.end)));
    let rows = start..end.min(saved.key_grad_rows);
    (start < end).then(|| {
        let new = || Tensor::zeros(saved.k.device(), rows.len(), key_width, E::DTYPE, crate::device::Kind::Workspace);
        ContextSums { dk: new(), dv: new(), rows: rows.clone() }
    })
}

fn backward_segment<E: Element>(
    saved: &Saved,
    d_output: &Tensor,
    heads: Heads,
    segments: &Segments,
    task: &mut Task<'_, E>,
    mut sums: Option<&mut ContextSums>,
) {
    let query_width = heads.queries * heads.dim;
    let queries = task.segment.queries.start..task.segment.queries.end.min(d_output.rows());
    let mut start = queries.start;
    while start < queries.end {
        let rows = start..(start + tile_rows(heads)).min(queries.end);
        let offset = (rows.start - queries.start) * query_width;
        for key_head in 0..heads.keys {
            let tile = Tile::new(heads, key_head, rows.clone(), segments);
            let dq = task.dq.get_mut(offset..).unwrap_or_default();
            let mut target = Target { dq, dk: &mut *task.dk, dv: &mut *task.dv, sums: sums.as_deref_mut() };
            backward_tile(saved, d_output, &tile, task.segment, &mut target);
        }
        start = rows.end;
    }
}

/// Where a tile's gradients go: its own query rows, its segment's own keys, the group's sums for context keys.
struct Target<'a, E> {
    dq: &'a mut [E],
    dk: &'a mut [E],
    dv: &'a mut [E],
    sums: Option<&'a mut ContextSums>,
}

impl<E: Element> Target<'_, E> {
    /// The tile's head in the gradients of the keys of `span`, those of them that carry any.
    fn keys<'b>(&'b mut self, tile: &Tile<'_>, span: &Span) -> Option<(MatMut<'b, E>, MatMut<'b, E>)> {
        let (dim, width) = (tile.heads.dim, tile.heads.keys * tile.heads.dim);
        let column = tile.key_head * dim;
        let (dk, dv, first) = if span.is_own {
            (&mut *self.dk, &mut *self.dv, 0)
        } else {
            let sums = self.sums.as_deref_mut()?;
            let first = span.keys.start.checked_sub(sums.rows.start)?;
            (sums.dk.make_mut::<E>(), sums.dv.make_mut::<E>(), first)
        };
        let available = (dk.len() / width).saturating_sub(first).min(span.keys.len());
        if available == 0 {
            return None;
        }
        let whole = |slice: &'b mut [E]| {
            let rows = slice.len() / width;
            view_mut(slice, rows, width).submatrix_mut(first, column, available, dim)
        };
        Some((whole(dk), whole(dv)))
    }
}

fn backward_tile<E: Element>(
    saved: &Saved,
    d_output: &Tensor,
    tile: &Tile<'_>,
    segment: &Segment,
    target: &mut Target<'_, E>,
) {
    let scratch = Scratch(d_output.device());
    let (queries, dim, scale) = (tile.queries(), tile.heads.dim, E::from_f64(tile.heads.scale));
    let spans = tile.spans(segment);
    let keys = spans.iter().map(|span| span.keys.len()).max().unwrap_or(0);
    let mut small = [(); 3].map(|()| scratch.matrix::<E>(queries, dim));
    let [q, d_o, dq] = &mut small;
    let (q, d_o, dq) = (q.make_mut::<E>(), d_o.make_mut::<E>(), dq.make_mut::<E>());
    let mut scalars = [(); 2].map(|()| scratch.matrix::<E>(queries, 1));
    let [lse, delta] = &mut scalars;
    let (lse, delta) = (lse.make_mut::<E>(), delta.make_mut::<E>());
    let mut scores = [(); 2].map(|()| scratch.matrix::<E>(queries, keys));
    let [p, ds] = &mut scores;
    let (p, ds) = (p.make_mut::<E>(), ds.make_mut::<E>());

    // dq's memory first holds the output, to find δ.
    tile.gather(saved.o.as_slice(), E::ONE, dq);
    tile.gather(d_output.as_slice(), E::ONE, d_o);
    tile.gather(saved.q.as_slice(), scale, q);
    tile.gather_scalars(saved.lse.as_slice(), lse);
    vectorised(
        #[inline(always)]
        || {
            for ((delta, o), d_o) in delta.iter_mut().zip(dq.chunks_exact(dim)).zip(d_o.chunks_exact(dim)) {
                *delta = dot(o, d_o);
            }
        },
    );

    let wants_dq = !target.dq.is_empty();
    let mut accumulate = Accumulate::Replace;
    for span in &spans {
        let gradients = target.keys(tile, span);
        let with_gradient = gradients.as_ref().map_or(0, |(dk, _)| dk.nrows());
        // Without dq only the keys with gradient are read, and only those were saved.
        let count = if wants_dq { span.keys.len() } else { with_gradient };
        if count == 0 {
            continue;
        }
        let span = &Span { keys: span.keys.start..span.keys.start + count, is_own: span.is_own };
        let (k, v) =
            (tile.key_view::<E>(saved.k.as_slice(), &span.keys), tile.key_view(saved.v.as_slice(), &span.keys));
        let (q_view, d_o_view) = (view(q, queries, dim), view(d_o, queries, dim));
        gemm(view_mut(p, queries, count), Accumulate::Replace, q_view, k.transpose(), E::ONE);
        gemm(view_mut(ds, queries, count), Accumulate::Replace, d_o_view, v.transpose(), E::ONE);
        scores_backward(tile, span, p, ds, lse, delta);
        let (p_view, ds_view) = (view(p, queries, count), view(ds, queries, count));
        if let Some((dk, dv)) = gradients {
            let (p_view, ds_view) = (p_view.subcols(0, with_gradient), ds_view.subcols(0, with_gradient));
            gemm(dv, Accumulate::Add, p_view.transpose(), d_o_view, E::ONE);
            gemm(dk, Accumulate::Add, ds_view.transpose(), q_view, E::ONE);
        }
        if wants_dq {
            gemm(view_mut(dq, queries, dim), accumulate, ds_view, k, scale);
            accumulate = Accumulate::Add;
        }
    }
    if wants_dq {
        tile.scatter(dq, dim, target.dq);
    }
}

/// Turns scores into probabilities in `p`, and `do·v` into `p (do·v − δ)` in `ds`; both 0 where a key is not seen.
fn scores_backward<E: Element>(tile: &Tile<'_>, span: &Span, p: &mut [E], ds: &mut [E], lse: &[E], delta: &[E]) {
    let count = span.keys.len();
    vectorised(
        #[inline(always)]
        || {
            for (position, (p, ds)) in
                p.chunks_exact_mut(count).zip(ds.chunks_exact_mut(count)).take(lse.len()).enumerate()
            {
                let seen = tile.seen(span, position);
                let (lse, delta) = (lse[position], delta[position]);
                for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                    *p = (*p - lse).exp();
                    *ds = *p * (*ds - delta);
                }
                p[seen..].fill(E::ZERO);
                ds[seen..].fill(E::ZERO);
            }
        },
    );
}
