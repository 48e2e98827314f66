//! `cross_entropy` on the CPU: a chunk of the vocabulary after another, each as two parallel products.

use crate::device::{Device, Kind};
use crate::dtype::Element;
use crate::error::Result;
use crate::ops::gemm::{product, view, view_mut, weight_product};
use crate::ops::simd::{max, sum, vectorised};
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use crate::weights::{Axis, Matrix, Panel};
use rayon::prelude::*;
use std::ops::Range;

/// Logits held at once, at most, unless a chunk of [`MIN_CHUNK`] tokens has more.
const MAX_LOGITS: usize = 4 * 1024 * 1024;
const MAX_CHUNK: usize = 4032;
const MIN_CHUNK: usize = 192;

/// The running softmax of one row.
#[derive(Clone, Copy)]
struct Running<E> {
    max: E,
    /// `Σ exp(logit − max)`
    total: f64,
}

/// Negative log-likelihoods of the `wanted` (row, token) pairs. If there are `scales`, `wanted` names every row once, in
/// order, and the gradient of `Σ scale · nll` is found too.
pub(super) fn forward<E: Element>(
    hidden: &Tensor,
    head: &Matrix,
    wanted: &[(usize, u32)],
    scales: Option<&[f64]>,
) -> Result<(Vec<f64>, Option<Tensor>)> {
    if let (Some(&[scale]), &[first]) = (scales, wanted) {
        // As in `linear`: a single row with a gradient is taken as two, whose sums are in the order of those of many.
        let twice = Tensor::stacked(&[hidden, hidden], Kind::Workspace)?;
        let (mut nll, gradient) = forward_rows::<E>(&twice, head, &[first, (1, first.1)], Some(&[scale, scale]));
        nll.truncate(1);
        return Ok((nll, gradient.map(|both| both.copy_rows(1, Kind::Workspace))));
    }
    Ok(forward_rows::<E>(hidden, head, wanted, scales))
}

fn forward_rows<E: Element>(
    hidden: &Tensor,
    head: &Matrix,
    wanted: &[(usize, u32)],
    scales: Option<&[f64]>,
) -> (Vec<f64>, Option<Tensor>) {
    let (device, rows, width, vocabulary) = (hidden.device(), hidden.rows(), hidden.cols(), head.out_features());
    let h = view::<E>(hidden.as_slice(), rows, width);
    let mut gradient = scales.map(|_| Tensor::zeros(device, rows, width, E::DTYPE, Kind::Workspace));
    let mut running = vec![Running { max: E::NEG_INFINITY, total: 0.0 }; rows];
    let mut picked = vec![E::ZERO; wanted.len()];
    let chunk = (MAX_LOGITS / rows.max(1)).clamp(MIN_CHUNK, MAX_CHUNK);

    let mut start = 0;
    while start < vocabulary && rows > 0 {
        let tokens = start..(start + chunk).min(vocabulary);
        let panel = widen_in_parallel::<E>(head, tokens.clone(), device);
        let mut logits = Tensor::scratch(device, rows, tokens.len(), E::DTYPE, Kind::Workspace);
        let logits = logits.make_mut::<E>();
        product(view_mut(logits, rows, tokens.len()), Accumulate::Replace, h, panel.view().transpose());
        for (picked, &(row, token)) in picked.iter_mut().zip(wanted) {
            if tokens.contains(&(token as usize)) {
                *picked = logits[row * tokens.len() + token as usize - tokens.start];
            }
        }
        let sums = gradient.as_mut().map(|gradient| gradient.make_mut::<E>());
        normalise(logits, tokens.len(), &mut running, sums, width);
        if let Some(gradient) = &mut gradient {
            let sums = view_mut(gradient.make_mut::<E>(), rows, width);
            product(sums, Accumulate::Add, view(logits, rows, tokens.len()), panel.view());
        }
        start = tokens.end;
    }

    if let (Some(gradient), Some(scales)) = (&mut gradient, scales) {
        finish(gradient.make_mut::<E>(), head, wanted, scales, &running);
    }
    let nll = wanted
        .iter()
        .zip(picked)
        .map(|(&(row, _), logit)| running[row].total.ln() + Element::to_f64(running[row].max) - Element::to_f64(logit));
    (nll.collect(), gradient)
}

/// Negative log-likelihoods of the labels, and the gradients of `Σ scale · nll` by `hidden` and by the head. Rows are taken
/// as many at a time as make `at_once` logits.
pub(super) fn forward_trained<E: Element>(
    hidden: &Tensor,
    head: &Matrix,
    labels: &[u32],
    scales: &[f64],
    at_once: usize,
) -> (Vec<f64>, Tensor, Tensor) {
    let (device, rows, width, vocabulary) = (hidden.device(), hidden.rows(), hidden.cols(), head.out_features());
    let new = |rows| Tensor::zeros(device, rows, width, E::DTYPE, Kind::Gradients);
    let (mut gradient, mut head_gradient) = (new(rows), new(vocabulary));
    let mut nll = vec![0.0; rows];
    let panel = widen_in_parallel::<E>(head, 0..vocabulary, device);
    let taken = (at_once / vocabulary.max(1)).clamp(1, rows.max(1));
    for start in (0..rows).step_by(taken) {
        let range = start..(start + taken).min(rows);
        let h = view(&hidden.as_slice::<E>()[start * width..], range.len(), width);
        let mut logits = Tensor::scratch(device, range.len(), vocabulary, E::DTYPE, Kind::Workspace);
        let logits = logits.make_mut::<E>();
        product(view_mut(logits, range.len(), vocabulary), Accumulate::Replace, h, panel.view().transpose());
        let labelled = nll[range.clone()].par_iter_mut().zip(&labels[range.clone()]).zip(&scales[range.clone()]);
        logits.par_chunks_mut(vocabulary).zip(labelled).for_each(|(logits, ((nll, &label), &scale))| {
            let picked = logits[label as usize];
            vectorised(
                #[inline(always)]
                || {
                    let largest = max(logits);
                    for x in logits.iter_mut() {
                        *x = (*x - largest).exp();
                    }
                    let total = Element::to_f64(sum(logits));
                    *nll = total.ln() + Element::to_f64(largest) - Element::to_f64(picked);
                    let by_total = E::from_f64(scale / total);
                    for x in logits.iter_mut() {
                        *x *= by_total;
                    }
                },
            );
            logits[label as usize] -= E::from_f64(scale);
        });
        let d_logits = view(logits, range.len(), vocabulary);
        let dh = view_mut(&mut gradient.make_mut::<E>()[start * width..], range.len(), width);
        product(dh, Accumulate::Replace, d_logits, panel.view());
        weight_product(view_mut(head_gradient.make_mut::<E>(), vocabulary, width), Accumulate::Add, d_logits, h);
    }
    (nll, gradient, head_gradient)
}

/// Rows `tokens` of the head, widened once for both products.
fn widen_in_parallel<'a, E: Element>(head: &'a Matrix, tokens: Range<usize>, device: &Device) -> Panel<'a, E> {
    if head.is_direct(E::DTYPE) {
        return head.panel(Axis::Rows, tokens, device);
    }
    let width = head.in_features();
    let mut panel = Tensor::scratch(device, tokens.len(), width, E::DTYPE, Kind::Workspace);
    panel.make_mut::<E>().par_chunks_mut(width.max(1)).zip(tokens).for_each(|(row, token)| head.widen_row(token, row));
    Panel::Widened(panel)
}

/// Turns logits into `exp(logit − max)` under the new running maximum, and scales what was summed under the old one.
fn normalise<E: Element>(
    logits: &mut [E],
    tokens: usize,
    running: &mut [Running<E>],
    sums: Option<&mut [E]>,
    width: usize,
) {
    let row = |row: &mut Running<E>, logits: &mut [E], sums: Option<&mut [E]>| {
        vectorised(
            #[inline(always)]
            || {
                let above = max(logits);
                if above > row.max {
                    let shrink = (row.max - above).exp();
                    row.max = above;
                    row.total *= Element::to_f64(shrink);
                    if let Some(sums) = sums {
                        sums.iter_mut().for_each(|x| *x *= shrink);
                    }
                }
                for x in logits.iter_mut() {
                    *x = (*x - row.max).exp();
                }
                row.total += Element::to_f64(sum(logits));
            },
        );
    };
    let rows = running.par_iter_mut().zip(logits.par_chunks_mut(tokens));
    match sums {
        Some(sums) => rows
            .zip(sums.par_chunks_mut(width.max(1)))
            .for_each(|((running, logits), sums)| row(running, logits, Some(sums))),
        None => rows.for_each(|(running, logits)| row(running, logits, None)),
    }
}

/// `scale · (Σ exp(logit − max) W / total − W_label)`
fn finish<E: Element>(
    gradient: &mut [E],
    head: &Matrix,
    wanted: &[(usize, u32)],
    scales: &[f64],
    running: &[Running<E>],
) {
    let width = head.in_features();
    let rows = gradient.par_chunks_mut(width.max(1)).zip(wanted).zip(scales).zip(running);
    rows.for_each(|(((gradient, &(_, label)), &scale), running)| {
        let mut target = vec![E::ZERO; width];
        head.widen_row(label as usize, &mut target);
        let (by_total, scale) = (E::from_f64(scale / running.total), E::from_f64(scale));
        vectorised(
            #[inline(always)]
            || {
                for (g, &w) in gradient.iter_mut().zip(&target) {
                    *g = *g * by_total - w * scale;
                }
            },
        );
    });
}
