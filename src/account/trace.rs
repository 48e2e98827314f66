//! A tape without numbers: the rules of `tape.rs` on shapes alone, so that what a step launches can be listed without a
//! GPU.

use super::{Launch, Limit};
use crate::device::{COPY, DOWNLOAD, FILL, UPLOAD};
use crate::dtype::DType;
use std::rc::Rc;

/// A variable's shape, and which of its rows carry gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Var {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) node: Node,
}

impl Var {
    pub(super) fn len(&self) -> f64 {
        (self.rows * self.cols) as f64
    }
}

/// See [`crate::tape::Node`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    slot: usize,
    pub(super) grad_rows: usize,
}

impl Node {
    pub(super) fn is_tracked(self) -> bool {
        self.grad_rows > 0
    }
}

/// A gradient's shape. Clones share memory, and memory that is shared is copied before it is written.
#[derive(Debug, Clone)]
pub(super) struct Gradient {
    pub(super) rows: usize,
    pub(super) cols: usize,
    memory: Rc<()>,
}

impl Gradient {
    pub(super) fn new(rows: usize, cols: usize) -> Self {
        Self { rows, cols, memory: Rc::new(()) }
    }

    fn is_unique(&self) -> bool {
        Rc::strong_count(&self.memory) == 1
    }
}

type Backward = Box<dyn FnOnce(Gradient, &mut Trace)>;

/// What has been launched so far, and what the backward pass is to launch.
pub(super) struct Trace {
    /// The type computed in.
    pub(super) dtype: DType,
    pub(super) launches: Vec<Launch>,
    records: Vec<(Node, Backward)>,
    slots: Vec<Option<Gradient>>,
}

impl Trace {
    pub(super) fn new(dtype: DType) -> Self {
        Self { dtype, launches: Vec::new(), records: Vec::new(), slots: Vec::new() }
    }

    /// Bytes of an element.
    pub(super) fn size(&self) -> f64 {
        self.dtype.size() as f64
    }

    pub(super) fn launch(&mut self, name: String, limit: Limit, flops: f64, bytes: f64) {
        self.launches.push(Launch { name, limit, flops, bytes });
    }

    /// Launches `<name>_<dtype>`, a kernel that computes on the ordinary cores.
    pub(super) fn kernel(&mut self, name: &str, flops: f64, bytes: f64) {
        let name = format!("{name}_{}", self.dtype);
        self.launch(name, Limit::Cores, flops, bytes);
    }

    /// A copy to the GPU; it does not go through the GPU's memory alone, so no time is counted for it.
    pub(super) fn upload(&mut self, bytes: usize) {
        if bytes > 0 {
            self.launch(UPLOAD.into(), Limit::Host, 0.0, bytes as f64);
        }
    }

    pub(super) fn download(&mut self, bytes: usize) {
        self.launch(DOWNLOAD.into(), Limit::Host, 0.0, bytes as f64);
    }

    pub(super) fn fill(&mut self, bytes: usize) {
        self.launch(FILL.into(), Limit::Cores, 0.0, bytes as f64);
    }

    /// A copy of so many elements of `size` bytes.
    pub(super) fn copy(&mut self, elements: usize, size: f64) {
        if elements > 0 {
            self.launch(COPY.into(), Limit::Cores, 0.0, 2.0 * elements as f64 * size);
        }
    }

    /// See [`crate::tensor::Tensor::stacked`]: a copy of each part, in the type of prompts, where there are several.
    pub(super) fn copy_each(&mut self, rows: &[usize], cols: usize) {
        if rows.len() > 1 {
            rows.iter().for_each(|rows| self.copy(rows * cols, size_of::<f32>() as f64));
        }
    }

    fn node(&mut self, grad_rows: usize) -> Node {
        self.slots.push(None);
        Node { slot: self.slots.len() - 1, grad_rows }
    }

    /// See [`crate::tape::Tape::leaf`].
    pub(super) fn leaf(&mut self, rows: usize, cols: usize) -> Var {
        Var { rows, cols, node: self.node(rows) }
    }

    /// See [`crate::tape::Tape::record`]; without gradient rows a constant.
    pub(super) fn record(
        &mut self,
        rows: usize,
        cols: usize,
        grad_rows: usize,
        backward: impl FnOnce(Gradient, &mut Self) + 'static,
    ) -> Var {
        let node = self.node(grad_rows);
        if node.is_tracked() {
            self.records.push((node, Box::new(backward)));
        }
        Var { rows, cols, node }
    }

    /// See [`crate::tape::Tape::save_prefix`].
    pub(super) fn save_prefix(&mut self, rows: usize, var: &Var) {
        if rows != var.rows {
            self.copy(rows * var.cols, self.size());
        }
    }

    /// See [`crate::tape::Tape::backward`]: from the loss, one number in f32.
    pub(super) fn backward(&mut self, loss: Var) {
        self.fill(size_of::<f32>());
        self.add(loss.node, Gradient::new(1, 1));
        while let Some((node, backward)) = self.records.pop() {
            if let Some(gradient) = self.slots[node.slot].take() {
                backward(gradient, self);
            }
        }
    }

    /// Has `gradient` written in place.
    pub(super) fn make_mut(&mut self, gradient: Gradient) -> Gradient {
        if gradient.is_unique() {
            return gradient;
        }
        self.copy(gradient.rows * gradient.cols, self.size());
        Gradient::new(gradient.rows, gradient.cols)
    }

    /// See [`crate::tape::Gradients::add`].
    pub(super) fn add(&mut self, node: Node, mut gradient: Gradient) {
        if !node.is_tracked() {
            return;
        }
        if gradient.rows > node.grad_rows {
            self.copy(node.grad_rows * gradient.cols, self.size());
            gradient = Gradient::new(node.grad_rows, gradient.cols);
        }
        let sum = match self.slots[node.slot].take() {
            None => gradient,
            Some(earlier) => {
                let into = if gradient.is_unique() && !earlier.is_unique() { gradient } else { self.make_mut(earlier) };
                let elements = (into.rows * into.cols) as f64;
                self.kernel("add_assign", elements, 3.0 * elements * self.size());
                into
            }
        };
        self.slots[node.slot] = Some(sum);
    }

    /// See [`crate::tape::Gradients::accumulate`]: whether what is written is added to what is there.
    pub(super) fn accumulate(&mut self, node: Node, cols: usize) -> bool {
        let (gradient, adds) = match self.slots[node.slot].take() {
            Some(gradient) => (self.make_mut(gradient), true),
            None => (Gradient::new(node.grad_rows, cols), false),
        };
        self.slots[node.slot] = Some(gradient);
        adds
    }
}
