//! The tape: what the forward pass leaves behind so that the prompt's gradient can be found.
//!
//! Two rules make the savings, and no model knows of them:
//!
//! * **Gradient rows.** A [`Var`] is a tensor and `grad_rows`, the number of its leading rows that can carry gradient.
//!   Rows that do always form a prefix, because prompt rows stand first in the stream. Constants have none. At the
//!   embedding these are the prompt's rows; the first attention spreads them to every row. An op on operands without
//!   gradient rows records nothing, and a backward step works on gradient rows only.
//! * **An operand is saved only if the other side is tracked.** Weights are frozen, so a linear saves nothing.
//!
//! Accumulation: a variable's gradient is the sum of what its readers contribute, added in the reverse order of the
//! recording. The first contribution is moved in, later ones are added in place. The order never depends on threads, so
//! neither do the bits. Each record is consumed as it is used, and what it saved is freed.

use crate::device::Kind;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// A tensor in a computation, and which of its rows can carry gradient.
#[derive(Debug, Clone)]
pub struct Var {
    tensor: Tensor,
    node: Node,
}

/// A variable as a backward step refers to it: without the tensor, which need not live so long.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    slot: usize,
    grad_rows: usize,
}

impl Node {
    /// How many leading rows can carry gradient; 0 for a constant.
    pub fn grad_rows(self) -> usize {
        self.grad_rows
    }

    /// Whether any row can carry gradient.
    pub fn is_tracked(self) -> bool {
        self.grad_rows > 0
    }
}

impl Var {
    /// A tensor that no gradient is wanted of.
    pub fn constant(tensor: Tensor) -> Self {
        Self { tensor, node: Node { slot: usize::MAX, grad_rows: 0 } }
    }

    /// The value.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The value, taken out: its memory may then be written by an op that works in place.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }

    /// The variable as a backward step refers to it.
    pub fn node(&self) -> Node {
        self.node
    }

    /// How many leading rows can carry gradient; 0 for a constant.
    pub fn grad_rows(&self) -> usize {
        self.node.grad_rows
    }

    /// Whether any row can carry gradient.
    pub fn is_tracked(&self) -> bool {
        self.node.is_tracked()
    }
}

type Backward = Box<dyn FnOnce(Tensor, &mut Gradients) -> Result<()> + Send>;

struct Record {
    output: Node,
    backward: Backward,
}

/// The records of one forward pass.
#[derive(Default)]
pub struct Tape {
    records: Vec<Record>,
    slots: usize,
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    /// A variable whose gradient is wanted: every row of it.
    pub fn leaf(&mut self, tensor: Tensor) -> Var {
        let grad_rows = tensor.rows();
        Var { tensor, node: self.node(grad_rows) }
    }

    fn node(&mut self, grad_rows: usize) -> Node {
        self.slots += 1;
        Node { slot: self.slots - 1, grad_rows }
    }

    /// The output of an op with its backward step, which gets the gradient of the first `grad_rows` rows of the output.
    /// Call it only if `grad_rows` > 0.
    pub fn record(
        &mut self,
        tensor: Tensor,
        grad_rows: usize,
        backward: impl FnOnce(Tensor, &mut Gradients) -> Result<()> + Send + 'static,
    ) -> Var {
        debug_assert!(grad_rows > 0 && grad_rows <= tensor.rows());
        let output = self.node(grad_rows);
        self.records.push(Record { output, backward: Box::new(backward) });
        Var { tensor, node: output }
    }

    /// The sum of two variables, whose gradient goes to both as it is.
    pub fn record_sum(&mut self, sum: Tensor, left: Node, right: Node) -> Var {
        let grad_rows = left.grad_rows().max(right.grad_rows());
        if grad_rows == 0 {
            return Var::constant(sum);
        }
        self.record(sum, grad_rows, move |dy, gradients| {
            gradients.add(left, dy.clone())?;
            gradients.add(right, dy)
        })
    }

    /// Keeps a tensor for the backward pass: it is counted as a saved activation until its record is consumed.
    pub fn save(&self, tensor: &Tensor) -> Tensor {
        tensor.retag(Kind::SavedActivations);
        tensor.clone()
    }

    /// Keeps the first `rows` rows of a tensor, in memory of their own where that is less than the whole.
    pub fn save_prefix(&self, tensor: &Tensor, rows: usize) -> Tensor {
        if rows == tensor.rows() { self.save(tensor) } else { tensor.copy_rows(rows, Kind::SavedActivations) }
    }

    /// Walks the records backwards from `output`, whose gradient is 1 in every element, and returns the gradient of
    /// `leaf`: zeros where nothing reached it.
    ///
    /// # Errors
    /// What an op's backward step reports.
    pub fn backward(self, output: &Var, leaf: &Var) -> Result<Tensor> {
        let (value, rows) = (&output.tensor, output.grad_rows());
        let seed = Tensor::full(value.device(), rows, value.cols(), value.dtype(), 1.0, Kind::Gradients)?;
        let mut gradients = Gradients { slots: vec![None; self.slots] };
        gradients.add(output.node, seed)?;
        for record in self.records.into_iter().rev() {
            if let Some(gradient) = gradients.take(record.output) {
                (record.backward)(gradient, &mut gradients)?;
            }
        }
        Ok(gradients.take(leaf.node).unwrap_or_else(|| {
            let value = &leaf.tensor;
            Tensor::zeros(value.device(), leaf.grad_rows(), value.cols(), value.dtype(), Kind::Gradients)
        }))
    }
}

/// Whether a result replaces what a buffer holds or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// The buffer's contents are unspecified; every element is written.
    Replace,
    /// The result is added.
    Add,
}

/// The gradients on their way back, one of each variable that has been reached and not yet used.
pub struct Gradients {
    slots: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Adds `gradient` to what `node` has; surplus rows past its gradient rows are left out. Nothing is done for a
    /// constant.
    ///
    /// # Errors
    /// [`Error::Op`] if the gradient has too few rows, or other columns than an earlier contribution.
    pub fn add(&mut self, node: Node, gradient: Tensor) -> Result<()> {
        if !node.is_tracked() {
            return Ok(());
        }
        if gradient.rows() < node.grad_rows {
            return Err(Error::op("gradient", format!("{} rows", node.grad_rows), gradient.describe()));
        }
        let mut gradient = if gradient.rows() > node.grad_rows {
            gradient.copy_rows(node.grad_rows, Kind::Gradients)
        } else {
            gradient
        };
        let slot = &mut self.slots[node.slot];
        *slot = Some(match slot.take() {
            None => gradient,
            // a + b and b + a have the same bits: add into whichever memory is free to be written.
            Some(earlier) if gradient.is_unique() && !earlier.is_unique() => {
                gradient.add_assign(&earlier)?;
                gradient
            }
            Some(mut earlier) => {
                earlier.add_assign(&gradient)?;
                earlier
            }
        });
        Ok(())
    }

    /// Lets `write` put its contribution straight into the gradient of `node`, `[grad_rows, cols]` of the type and on
    /// the device of `like`. Nothing is done for a constant.
    ///
    /// # Errors
    /// What `write` reports.
    pub fn accumulate(
        &mut self,
        node: Node,
        cols: usize,
        like: &Tensor,
        write: impl FnOnce(&mut Tensor, Accumulate) -> Result<()>,
    ) -> Result<()> {
        if !node.is_tracked() {
            return Ok(());
        }
        let slot = &mut self.slots[node.slot];
        let (mut gradient, accumulate) = match slot.take() {
            Some(gradient) => (gradient, Accumulate::Add),
            None => {
                let fresh = Tensor::scratch(like.device(), node.grad_rows, cols, like.dtype(), Kind::Gradients);
                (fresh, Accumulate::Replace)
            }
        };
        write(&mut gradient, accumulate)?;
        *slot = Some(gradient);
        Ok(())
    }

    fn take(&mut self, node: Node) -> Option<Tensor> {
        self.slots.get_mut(node.slot)?.take()
    }
}
