//! `attention` on the CPU: small products per tile, tiles spread over threads.

use super::bias::Bias;
use super::tile::{Scratch, Span, Tile, tile_rows};
use super::{Heads, PositionBias, Saved};
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
    bias: Option<&PositionBias>,
    output: &mut Tensor,
    lse: &mut Tensor,
) {
    if E::DTYPE == DType::F32 && heads.dim <= SHORT {
        let (mut wide, mut wide_lse) = (widened(output), widened(lse));
        let bias = bias.map(PositionBias::widened);
        forward::<f64>(&widened(q), &widened(k), &widened(v), heads, segments, bias.as_ref(), &mut wide, &mut wide_lse);
        round_to(output, &wide);
        return round_to(lse, &wide_lse);
    }
    let scratch = Scratch(q.device());
    let bias = bias.map(Bias::<E>::new);
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
            let inputs = [q.as_slice::<E>(), k.as_slice(), v.as_slice()];
            forward_tile::<E>(&tile, segment, inputs, bias.as_ref(), &scratch, output, lse);
        }
    });
}

fn forward_tile<E: Element>(
    tile: &Tile<'_>,
    segment: &Segment,
    [q, k, v]: [&[E]; 3],
    bias: Option<&Bias<'_, E>>,
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
        if let Some(bias) = bias {
            bias.add(tile, &span.keys, &mut scores[first..], keys);
        }
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

/// What a group of segments adds to gradients that others add to as well.
struct GroupSums {
    /// Those of keys outside their own spans.
    context: Option<ContextSums>,
    /// Those of the bias table.
    bias: Option<Tensor>,
}

/// Sums over keys, which are some runs of rows without overlap.
struct ContextSums {
    runs: Vec<Range<usize>>,
    dk: Tensor,
    dv: Tensor,
}

impl ContextSums {
    /// Where the sums of key row `row` stand, if it has any.
    fn place(&self, row: usize) -> Option<usize> {
        let mut before = 0;
        for run in &self.runs {
            if run.contains(&row) {
                return Some(before + row - run.start);
            }
            before += run.len();
        }
        None
    }
}

/// A segment with the parts of the gradients that nothing else writes.
struct Task<'a, E> {
    segment: &'a Segment,
    dq: &'a mut [E],
    dk: &'a mut [E],
    dv: &'a mut [E],
}

/// `dq`, `dk`, `dv` and `d_bias` are zero on entry; `d_bias` is there if a gradient of the bias table is wanted.
pub(super) fn backward<E: Element>(
    saved: &Saved,
    d_output: &Tensor,
    heads: Heads,
    segments: &Segments,
    [dq, dk, dv]: [&mut Tensor; 3],
    mut d_bias: Option<&mut Tensor>,
) {
    if E::DTYPE == DType::F32 && heads.dim <= SHORT {
        let saved = Saved {
            q: widened(&saved.q),
            k: widened(&saved.k),
            v: widened(&saved.v),
            o: widened(&saved.o),
            lse: widened(&saved.lse),
            o_low: None,
            bias: saved.bias.as_ref().map(PositionBias::widened),
            ..*saved
        };
        let mut wide = [&*dq, &*dk, &*dv].map(widened);
        let mut wide_bias = d_bias.as_deref().map(widened);
        backward::<f64>(&saved, &widened(d_output), heads, segments, wide.each_mut(), wide_bias.as_mut());
        if let (Some(gradient), Some(wide)) = (d_bias, &wide_bias) {
            round_to(gradient, wide);
        }
        return [dq, dk, dv].into_iter().zip(&wide).for_each(|(gradient, wide)| round_to(gradient, wide));
    }
    let bias = saved.bias.as_ref().map(Bias::<E>::new);
    let table = saved.bias.as_ref().map(|bias| bias.table.tensor());
    let key_width = heads.keys * heads.dim;
    let mut groups = grouped(split::<E>(saved, heads, segments, d_output.rows(), dq, dk, dv));
    let wants_bias = d_bias.is_some();
    let sums: Vec<GroupSums> = groups
        .par_iter_mut()
        .map(|group| {
            let d_table = table.filter(|_| wants_bias).map(|table| {
                Tensor::zeros(table.device(), table.rows(), table.cols(), E::DTYPE, crate::device::Kind::Workspace)
            });
            let mut sums = GroupSums { context: context_sums::<E>(group, saved, key_width), bias: d_table };
            for task in group {
                backward_segment(saved, d_output, heads, segments, bias.as_ref(), task, &mut sums);
            }
            sums
        })
        .collect();
    drop(groups);
    for GroupSums { context, bias } in sums {
        if let (Some(d_bias), Some(group)) = (d_bias.as_deref_mut(), bias) {
            add_assign(d_bias.make_mut::<E>(), group.as_slice());
        }
        let Some(ContextSums { runs, dk: group_dk, dv: group_dv }) = context else { continue };
        let mut before = 0;
        for run in runs {
            let (to, from) = (run.start * key_width..run.end * key_width, before * key_width);
            add_assign(&mut dk.make_mut::<E>()[to.clone()], &group_dk.as_slice::<E>()[from..][..to.len()]);
            add_assign(&mut dv.make_mut::<E>()[to.clone()], &group_dv.as_slice::<E>()[from..][..to.len()]);
            before += run.len();
        }
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
    let mut spans: Vec<Range<usize>> = group
        .iter()
        .filter(|task| !task.segment.queries.is_empty())
        .flat_map(|task| &task.segment.context)
        .map(|span| span.start..span.end.min(saved.key_grad_rows))
        .filter(|span| !span.is_empty())
        .collect();
    spans.sort_unstable_by_key(|span| span.start);
    let mut runs: Vec<Range<usize>> = Vec::new();
    for span in spans {
        match runs.last_mut() {
            Some(run) if span.start <= run.end => run.end = run.end.max(span.end),
            _ => runs.push(span),
        }
    }
    let rows: usize = runs.iter().map(|run| run.len()).sum();
    let new = || Tensor::zeros(saved.k.device(), rows, key_width, E::DTYPE, crate::device::Kind::Workspace);
    (rows > 0).then(|| ContextSums { dk: new(), dv: new(), runs })
}

fn backward_segment<E: Element>(
    saved: &Saved,
    d_output: &Tensor,
    heads: Heads,
    segments: &Segments,
    bias: Option<&Bias<'_, E>>,
    task: &mut Task<'_, E>,
    sums: &mut GroupSums,
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
            let mut target = Target { dq, dk: &mut *task.dk, dv: &mut *task.dv, sums: &mut *sums };
            backward_tile(saved, d_output, &tile, task.segment, bias, &mut target);
        }
        start = rows.end;
    }
}

/// Where a tile's gradients go: its own query rows, its segment's own keys, the group's sums for context keys and bias.
struct Target<'a, E> {
    dq: &'a mut [E],
    dk: &'a mut [E],
    dv: &'a mut [E],
    sums: &'a mut GroupSums,
}

impl<E: Element> Target<'_, E> {
    /// The tile's head in the gradients of the keys of `span`, those of them that carry any.
    fn keys<'b>(&'b mut self, tile: &Tile<'_>, span: &Span) -> Option<(MatMut<'b, E>, MatMut<'b, E>)> {
        let (dim, width) = (tile.heads.dim, tile.heads.keys * tile.heads.dim);
        let column = tile.key_head * dim;
        let (dk, dv, first) = if span.is_own {
            (&mut *self.dk, &mut *self.dv, 0)
        } else {
            let sums = self.sums.context.as_mut()?;
            let first = sums.place(span.keys.start)?;
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
    bias: Option<&Bias<'_, E>>,
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
        let wants_all = wants_dq || target.sums.bias.is_some();
        let gradients = target.keys(tile, span);
        let with_gradient = gradients.as_ref().map_or(0, |(dk, _)| dk.nrows());
        // Without dq or a bias to learn only the keys with gradient are read, and only those were saved.
        let count = if wants_all { span.keys.len() } else { with_gradient };
        if count == 0 {
            continue;
        }
        let span = &Span { keys: span.keys.start..span.keys.start + count, is_own: span.is_own };
        let (k, v) =
            (tile.key_view::<E>(saved.k.as_slice(), &span.keys), tile.key_view(saved.v.as_slice(), &span.keys));
        let (q_view, d_o_view) = (view(q, queries, dim), view(d_o, queries, dim));
        gemm(view_mut(p, queries, count), Accumulate::Replace, q_view, k.transpose(), E::ONE);
        gemm(view_mut(ds, queries, count), Accumulate::Replace, d_o_view, v.transpose(), E::ONE);
        if let Some(bias) = bias {
            bias.add(tile, &span.keys, p, count);
        }
        scores_backward(tile, span, p, ds, lse, delta);
        let (p_view, ds_view) = (view(p, queries, count), view(ds, queries, count));
        if let Some((dk, dv)) = gradients {
            let (p_view, ds_view) = (p_view.subcols(0, with_gradient), ds_view.subcols(0, with_gradient));
            gemm(dv, Accumulate::Add, p_view.transpose(), d_o_view, E::ONE);
            gemm(dk, Accumulate::Add, ds_view.transpose(), q_view, E::ONE);
        }
        if let (Some(bias), Some(d_table)) = (bias, &mut target.sums.bias) {
            bias.add_gradient(tile, &span.keys, &ds[..queries * count], d_table.make_mut());
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
