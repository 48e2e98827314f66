//! What each op launches, forward and backward, with the operations and the bytes at least moved: the formulas of
//! `kernels/*.cu`. An op stands here as it stands in `ops/`.

use super::Limit;
use super::trace::{Gradient, Trace, Var};
use crate::device::PRODUCT;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Segments;
use crate::ops::attention::cuda::Shape;
use crate::ops::attention::plan::{KeyPlan, QueryPlan};
use crate::ops::attention::{self, Heads};
use crate::ops::loss::cuda::plain_chunk;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Bytes of an `int` or a `float`.
const WORD: usize = 4;

/// A list of indices, uploaded when it is first needed.
#[derive(Clone)]
pub(super) struct Indices(Rc<(Vec<usize>, Cell<bool>)>);

impl Indices {
    pub(super) fn new(values: Vec<usize>) -> Self {
        Self(Rc::new((values, Cell::new(false))))
    }

    fn on_device(&self, trace: &mut Trace) {
        if !self.0.1.replace(true) {
            trace.upload(self.0.0.len() * WORD);
        }
    }
}

/// `[m, k]` times `[k, n]`, of which the result has elements of `y_size` bytes and may be added to.
fn product(trace: &mut Trace, m: usize, n: usize, k: usize, y_size: f64, adds: bool) {
    if m == 0 {
        return;
    }
    let (m, n, k) = (m as f64, n as f64, k as f64);
    let y_moves = if adds { 2.0 } else { 1.0 };
    let bytes = (m * k + n * k) * trace.size() + y_moves * m * n * y_size;
    trace.launch(PRODUCT.into(), Limit::Products, 2.0 * m * n * k, bytes);
}

pub(super) fn linear(trace: &mut Trace, x: Var, outputs: usize) -> Var {
    let (inputs, size) = (x.cols, trace.size());
    product(trace, x.rows, outputs, inputs, size, false);
    trace.record(x.rows, outputs, x.node.grad_rows, move |_, trace| {
        let adds = trace.accumulate(x.node, inputs);
        product(trace, x.node.grad_rows, inputs, outputs, size, adds);
    })
}

/// A norm's kernels, and what they compute of an element: forward, after an addition, backward.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    name: &'static str,
    forward: f64,
    add_forward: f64,
    backward: f64,
}

pub(super) const RMS_NORM: Norm = Norm { name: "rms_norm", forward: 4.0, add_forward: 5.0, backward: 9.0 };
pub(super) const LAYER_NORM: Norm = Norm { name: "layer_norm", forward: 8.0, add_forward: 9.0, backward: 14.0 };

impl Norm {
    pub(super) fn forward(self, trace: &mut Trace, x: Var) -> Var {
        trace.kernel(&format!("{}_forward", self.name), self.forward * x.len(), 2.0 * x.len() * trace.size());
        self.record(trace, x)
    }

    /// The sum of `x` and `residual`, and the sum normalised.
    pub(super) fn after_add(self, trace: &mut Trace, x: Var, residual: Var) -> (Var, Var) {
        let bytes = 4.0 * x.len() * trace.size();
        trace.kernel(&format!("{}_add_forward", self.name), self.add_forward * x.len(), bytes);
        let grad_rows = x.node.grad_rows.max(residual.node.grad_rows);
        let sum = trace.record(x.rows, x.cols, grad_rows, move |dy, trace| {
            trace.add(x.node, dy.clone());
            trace.add(residual.node, dy);
        });
        (sum, self.record(trace, sum))
    }

    fn record(self, trace: &mut Trace, x: Var) -> Var {
        if x.node.is_tracked() {
            trace.save_prefix(x.node.grad_rows, &x);
        }
        trace.record(x.rows, x.cols, x.node.grad_rows, move |_, trace| {
            let moves = if trace.accumulate(x.node, x.cols) { 4.0 } else { 3.0 };
            let elements = (x.node.grad_rows * x.cols) as f64;
            let bytes = moves * elements * trace.size();
            trace.kernel(&format!("{}_backward", self.name), self.backward * elements, bytes);
        })
    }
}

pub(super) fn rope(trace: &mut Trace, x: Var, positions: &Indices) -> Var {
    fn rotate(trace: &mut Trace, elements: f64, positions: &Indices) {
        positions.on_device(trace);
        trace.kernel("rope_rotate", 3.0 * elements, 2.0 * elements * trace.size());
    }
    rotate(trace, x.len(), positions);
    let positions = positions.clone();
    trace.record(x.rows, x.cols, x.node.grad_rows, move |dy, trace| {
        let dy = trace.make_mut(dy);
        rotate(trace, (dy.rows * dy.cols) as f64, &positions);
        trace.add(x.node, dy);
    })
}

pub(super) fn rows(trace: &mut Trace, x: Var, index: &Indices) -> Var {
    let (cols, size, count) = (x.cols, trace.size(), index.0.0.len());
    index.on_device(trace);
    trace.kernel("rows_forward", 0.0, 2.0 * (count * cols) as f64 * size);
    let with_gradient = |&row: &usize| row < x.node.grad_rows;
    let grad_rows = index.0.0.iter().rposition(with_gradient).map_or(0, |last| last + 1);
    let taken = index.0.0[..grad_rows].iter().filter(|row| with_gradient(row)).count();
    trace.record(count, cols, grad_rows, move |_, trace| {
        let limit = x.node.grad_rows;
        let adds = trace.accumulate(x.node, cols);
        trace.upload((limit + 1) * WORD);
        trace.upload(taken * WORD);
        let rows = (taken + if adds { 2 * limit } else { limit }) as f64;
        trace.kernel("rows_backward", (taken * cols) as f64, rows * cols as f64 * size);
    })
}

pub(super) fn activation(trace: &mut Trace, x: Var, function: &'static str) -> Var {
    let size = trace.size();
    trace.kernel(&format!("activation_{function}_forward"), 20.0 * x.len(), 2.0 * x.len() * size);
    if x.node.is_tracked() {
        trace.save_prefix(x.node.grad_rows, &x);
    }
    trace.record(x.rows, x.cols, x.node.grad_rows, move |dy, trace| {
        let dy = trace.make_mut(dy);
        let elements = (dy.rows * dy.cols) as f64;
        trace.kernel(&format!("activation_{function}_backward"), 20.0 * elements, 3.0 * elements * size);
        trace.add(x.node, dy);
    })
}

pub(super) fn gated(trace: &mut Trace, gate: Var, up: Var, function: &'static str) -> Var {
    let size = trace.size();
    trace.kernel(&format!("gated_{function}_forward"), 20.0 * gate.len(), 3.0 * gate.len() * size);
    if gate.node.is_tracked() {
        trace.save_prefix(gate.node.grad_rows, &gate);
        trace.save_prefix(up.node.grad_rows, &up);
    }
    trace.record(gate.rows, gate.cols, gate.node.grad_rows, move |dy, trace| {
        let dy = trace.make_mut(dy);
        let du = Gradient::new(dy.rows, dy.cols);
        let elements = (dy.rows * dy.cols) as f64;
        trace.kernel(&format!("gated_{function}_backward"), 20.0 * elements, 5.0 * elements * size);
        trace.add(gate.node, dy);
        trace.add(up.node, du);
    })
}

/// `ids` are the rows behind the prompt's; with `positions` each row has a learned one.
pub(super) fn embedding(trace: &mut Trace, prompt: Var, ids: usize, positions: bool) -> Var {
    let rows = prompt.rows + ids;
    trace.upload(ids * WORD);
    if positions {
        trace.upload(rows * WORD);
    }
    let moves = if positions { 3.0 } else { 2.0 };
    let elements = (rows * prompt.cols) as f64;
    trace.kernel("embedding_forward", 0.0, moves * elements * trace.size());
    trace.record(rows, prompt.cols, prompt.node.grad_rows, move |dy, trace| trace.add(prompt.node, dy))
}

/// The prompt, kept in f32, in the type computed in.
pub(super) fn cast(trace: &mut Trace, x: Var) -> Var {
    let dtype = trace.dtype;
    if dtype == DType::F32 {
        return x;
    }
    let bytes = x.len() * (trace.size() + WORD as f64);
    trace.launch(format!("cast_f32_{dtype}"), Limit::Cores, 0.0, bytes);
    trace.record(x.rows, x.cols, x.node.grad_rows, move |_, trace| {
        trace.launch(format!("cast_{dtype}_f32"), Limit::Cores, 0.0, bytes);
        trace.add(x.node, Gradient::new(x.rows, x.cols));
    })
}

/// Segments with the plans of them that are on the GPU already.
#[derive(Clone)]
pub(super) struct Seen {
    segments: Rc<Segments>,
    has_queries: Rc<Cell<bool>>,
    keys: Rc<RefCell<Vec<(usize, usize)>>>,
}

impl Seen {
    pub(super) fn new(segments: &Segments) -> Self {
        Self { segments: Rc::new(segments.clone()), has_queries: Rc::default(), keys: Rc::default() }
    }

    fn query_plan(&self, trace: &mut Trace, heads: Heads, tile: usize) -> QueryPlan {
        let plan = QueryPlan::new(&self.segments, heads.queries / heads.keys, tile);
        if !self.has_queries.replace(true) {
            let lists = [size_of_val(&plan.tiles[..]), size_of_val(&plan.spans[..]), size_of_val(&plan.limits[..])];
            lists.into_iter().for_each(|bytes| trace.upload(bytes));
        }
        plan
    }

    fn key_plan(&self, trace: &mut Trace, heads: Heads, tile: usize, outputs: usize, keys: usize) -> KeyPlan {
        let plan = KeyPlan::new(&self.segments, heads.queries / heads.keys, heads.keys, tile, outputs, keys);
        let mut known = self.keys.borrow_mut();
        if !known.contains(&(outputs, keys)) {
            known.push((outputs, keys));
            let lists = [size_of_val(&plan.tasks[..]), size_of_val(&plan.visits[..]), size_of_val(&plan.sums[..])];
            lists.into_iter().for_each(|bytes| trace.upload(bytes));
        }
        plan
    }

    /// Pairs of a query and a key that it sees, of the first `queries` and `keys`.
    pub(super) fn pairs(&self, queries: usize, keys: usize) -> f64 {
        let before = |start: usize, end: usize| end.min(keys).saturating_sub(start);
        let mut pairs = 0;
        for segment in self.segments.as_slice() {
            let context: usize = segment.context.iter().map(|span| before(span.start, span.end)).sum();
            let rows = segment.queries.start..segment.queries.end.min(queries);
            let own = segment.own.start;
            pairs += rows.map(|row| context + before(own, own + self.segments.visible()[row])).sum::<usize>();
        }
        pairs as f64
    }
}

pub(super) fn attention(trace: &mut Trace, q: Var, k: Var, v: Var, heads: Heads, seen: &Seen) -> Result<Var> {
    let shape = Shape::new(heads, trace.dtype)?;
    let dtype = trace.dtype;
    let named = |pass: &str| format!("{}_{dtype}", shape.kernel(pass));
    let names = [named("forward"), named("backward_queries"), named("backward_keys")];
    let (tile, size, word) = (shape.tile, trace.size(), WORD as f64);
    let (query_heads, width) = (heads.queries as f64, (heads.queries * heads.dim) as f64);
    let key_width = (heads.keys * heads.dim) as f64;
    let per_product = 2.0 * width;
    let limit = if dtype == DType::BF16 { Limit::Products } else { Limit::Cores };

    seen.query_plan(trace, heads, tile);
    let (queries, keys) = (q.rows as f64, k.rows as f64);
    let grad_rows = attention::grad_rows(&seen.segments, q.node.grad_rows, k.node.grad_rows);
    // In bf16 a gradient needs a byte more of each output.
    let low = if dtype == DType::BF16 { 1.0 } else { 0.0 };
    let low_written = if grad_rows > 0 { low } else { 0.0 };
    let bytes = 2.0 * (queries * width + keys * key_width) * size
        + queries * width * low_written
        + queries * query_heads * word;
    let [forward, backward_queries, backward_keys] = names;
    if queries > 0.0 {
        trace.launch(forward, limit, 2.0 * per_product * seen.pairs(q.rows, k.rows), bytes);
    }
    if grad_rows > 0 {
        let needed = attention::keys_needed(&seen.segments, q.node.grad_rows, k.node.grad_rows);
        trace.save_prefix(needed, &k);
        trace.save_prefix(needed, &v);
    }
    let seen = seen.clone();
    Ok(trace.record(q.rows, q.cols, grad_rows, move |dy, trace| {
        let (outputs, queries, keys) = (dy.rows as f64, q.node.grad_rows, k.node.grad_rows);
        let of_heads = outputs * query_heads;
        let bytes = outputs * width * (2.0 * size + low) + of_heads * word;
        trace.kernel("attention_delta", 2.0 * outputs * width, bytes);

        let plan = seen.query_plan(trace, heads, tile);
        if plan.tiles_before(queries, heads.queries / heads.keys) > 0 {
            let seen_keys = attention::keys_needed(&seen.segments, queries, 0) as f64;
            let rows = queries as f64;
            let bytes = (3.0 * rows * width + 2.0 * seen_keys * key_width) * size + 2.0 * rows * query_heads * word;
            trace.launch(backward_queries, limit, 3.0 * per_product * seen.pairs(queries, k.rows), bytes);
        }

        let plan = seen.key_plan(trace, heads, tile, dy.rows, keys);
        let partial = 2.0 * (plan.slots * tile) as f64 * key_width * word;
        if !plan.tasks.is_empty() {
            let bytes =
                (2.0 * outputs * width + 4.0 * keys as f64 * key_width) * size + 2.0 * of_heads * word + partial;
            trace.launch(backward_keys, limit, 4.0 * per_product * seen.pairs(dy.rows, keys), bytes);
        }
        if !plan.sums.is_empty() {
            let summed: usize = plan.sums.iter().map(|&[_, keys, ..]| keys as usize).sum();
            trace.kernel("attention_reduce", partial / word, partial + 2.0 * summed as f64 * key_width * size);
        }
        drop(dy);
        trace.add(q.node, Gradient::new(queries, q.cols));
        trace.add(k.node, Gradient::new(keys, k.cols));
        trace.add(v.node, Gradient::new(keys, v.cols));
    }))
}

/// The loss of every row of `hidden`, with its gradient.
pub(super) fn cross_entropy(trace: &mut Trace, hidden: Var, vocabulary: usize) -> Var {
    let (rows, width, size, word) = (hidden.rows, hidden.cols, trace.size(), WORD as f64);
    trace.upload(rows * WORD); // labels
    trace.upload(rows * WORD); // scales
    let chunk = plain_chunk(rows, vocabulary);
    for start in (0..if rows == 0 { 0 } else { vocabulary }).step_by(chunk) {
        let tokens = chunk.min(vocabulary - start);
        let logits = (rows * tokens) as f64;
        product(trace, rows, tokens, width, word, false);
        trace.kernel("loss_chunk", 20.0 * logits, logits * (word + size));
        product(trace, rows, width, tokens, word, start > 0);
    }
    trace.fill(WORD);
    let of_rows = rows as f64;
    trace.launch("loss_nll".into(), Limit::Cores, 20.0 * of_rows, of_rows * 28.0);
    trace.kernel("loss_finish", 3.0 * hidden.len(), hidden.len() * (word + 2.0 * size));
    trace.save_prefix(hidden.node.grad_rows, &hidden);
    trace.record(1, 1, usize::from(hidden.node.is_tracked()), move |_, trace| {
        let elements = (hidden.node.grad_rows * width) as f64;
        trace.kernel("loss_scale", elements, 2.0 * elements * size);
        trace.add(hidden.node, Gradient::new(hidden.node.grad_rows, width));
    })
}

/// What a step of training does when the gradient is there: clips it, moves the prompt by AdamW, and checks the prompt, of
/// which a copy is kept until then. All of it is f32.
pub(super) fn adamw(trace: &mut Trace, rows: usize, cols: usize) {
    let count = (rows * cols) as f64;
    let mut kernel = |name: &str, flops: f64, bytes: f64| {
        trace.launch(format!("{name}_f32"), Limit::Cores, flops, bytes);
    };
    let partial = 8.0 * (rows * cols).div_ceil(1024).clamp(1, 1024) as f64;
    for pass in ["clip", "check"] {
        kernel("gradient_norm", 2.0 * count, 4.0 * count + partial);
        kernel("gradient_norm_finish", partial / 8.0, partial);
        if pass == "clip" {
            kernel("gradient_norm_clip", count, 8.0 * count);
            kernel("adamw", 14.0 * count, 28.0 * count);
        }
    }
    trace.download(8);
    trace.download(8);
    trace.copy(rows * cols, WORD as f64);
}
