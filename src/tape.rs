//! The tape: what the forward pass leaves behind so that the prompt's gradient can be found.
//!
//! Two rules make the savings, and no model knows of them:
//!
//! * **Gradient rows.** A [`Var`] is a tensor and `grad_rows`, the number of its leading rows that can carry gradient.
//!   Rows that do always form a prefix, because prompt rows stand first in the stream. Constants have none. At the
//!   embedding these are the prompt's rows; the first attention spreads them to every row. An op on operands without
//!   gradient rows records nothing, and a backward step works on gradient rows only.
//! * **An operand is saved only if the other side is tracked.** A linear with a frozen weight saves nothing; one whose
//!   weight is a parameter of the tape saves its input, and nothing but that flag differs.
//!
//! Parameters are what is trained besides a leaf: weights, known by a number. The tape gives a parameter one variable,
//! however often it is used, so the gradient of a tied embedding is a sum like any other.
//!
//! A stretch of the computation may be [recomputed](Tape::recompute): only its input is kept.
//!
//! Accumulation: a variable's gradient is the sum of what its readers contribute, added in the reverse order of the
//! recording. The first contribution is moved in, later ones are added in place. The order never depends on threads, so
//! neither do the bits. Each record is consumed as it is used, and what it saved is freed.

use crate::device::Kind;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

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
    /// The node of every constant.
    pub const CONSTANT: Self = Self { slot: usize::MAX, grad_rows: 0 };

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
        Self { tensor, node: Node::CONSTANT }
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
    parameters: BTreeMap<usize, Node>,
    /// Whether records are dropped as they come: only what carries gradient is found out.
    forgets: bool,
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    /// A variable whose gradient is wanted: every row of it.
    pub fn leaf(&mut self, tensor: Tensor) -> Var {
        let grad_rows = tensor.rows();
        self.leaf_rows(tensor, grad_rows)
    }

    /// A variable of which the gradient of the first `grad_rows` rows is wanted.
    fn leaf_rows(&mut self, tensor: Tensor, grad_rows: usize) -> Var {
        Var { tensor, node: self.node(grad_rows) }
    }

    /// The variable of a parameter, `rows` rows that are all trained; of none, a constant's. A number always has the same
    /// variable.
    pub fn parameter(&mut self, id: Option<usize>, rows: usize) -> Node {
        let Some(id) = id.filter(|_| rows > 0) else { return Node::CONSTANT };
        if let Some(&node) = self.parameters.get(&id) {
            return node;
        }
        let node = self.node(rows);
        self.parameters.insert(id, node);
        node
    }

    /// A tensor as the variable of a parameter, or as a constant: see [`Tape::parameter`].
    pub fn parameter_var(&mut self, id: Option<usize>, tensor: Tensor) -> Var {
        Var { node: self.parameter(id, tensor.rows()), tensor }
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
        if !self.forgets {
            self.records.push(Record { output, backward: Box::new(backward) });
        }
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
        if !self.forgets {
            tensor.retag(Kind::SavedActivations);
        }
        tensor.clone()
    }

    /// Keeps the first `rows` rows of a tensor, in memory of their own where that is less than the whole.
    pub fn save_prefix(&self, tensor: &Tensor, rows: usize) -> Tensor {
        match rows == tensor.rows() {
            true => self.save(tensor),
            false if self.forgets => tensor.prefix(rows),
            false => tensor.copy_rows(rows, Kind::SavedActivations),
        }
    }

    /// What `work` makes of `inputs`, keeping nothing but these: it is done once more when the backward pass gets there. It
    /// must do the same both times.
    ///
    /// # Errors
    /// What `work` reports.
    pub fn recompute(
        &mut self,
        inputs: &[&Var],
        work: impl Fn(&mut Tape, &[Var]) -> Result<Var> + Send + 'static,
    ) -> Result<Var> {
        let mut first = Tape { forgets: true, ..Tape::new() };
        let leaves: Vec<Var> = inputs.iter().map(|x| first.leaf_rows(x.tensor.clone(), x.grad_rows())).collect();
        let output = work(&mut first, &leaves)?;
        drop(leaves);
        let grad_rows = output.grad_rows();
        if grad_rows == 0 {
            return Ok(Var::constant(output.tensor));
        }
        // The parameters have variables of their own on the inner tape, which are part of those here.
        let outer: BTreeMap<usize, Node> =
            first.parameters.iter().map(|(&id, node)| (id, self.parameter(Some(id), node.grad_rows))).collect();
        // A constant is kept by whoever it belongs to.
        let keep = |x: &&Var| (x.node, if x.is_tracked() { self.save(&x.tensor) } else { x.tensor.clone() });
        let (nodes, saved): (Vec<Node>, Vec<Tensor>) = inputs.iter().map(keep).unzip();
        Ok(self.record(output.tensor, grad_rows, move |dy, gradients| {
            let mut tape = Tape::new();
            let leaves = nodes.iter().zip(saved).map(|(node, saved)| tape.leaf_rows(saved, node.grad_rows));
            let leaves: Vec<Var> = leaves.collect();
            let output = work(&mut tape, &leaves)?.node;
            let parameters = tape.parameters.iter().filter_map(|(id, &inner)| Some((inner, *outer.get(id)?)));
            let pairs: Vec<(Node, Node)> = leaves
                .iter()
                .map(Var::node)
                .zip(nodes)
                .chain(parameters)
                .filter(|(_, node)| node.is_tracked())
                .collect();
            drop(leaves);
            // What is there is added to in its place, as where nothing is computed again: the bits are the same.
            let earlier = pairs.iter().filter_map(|&(inner, outer)| Some((inner, gradients.take(outer)?))).collect();
            let mut found = tape.walk(output, dy, earlier)?;
            for (inner, outer) in pairs {
                if let Some(gradient) = found.take(inner) {
                    gradients.add(outer, gradient)?;
                }
            }
            Ok(())
        }))
    }

    /// Walks the records backwards from `output`, whose gradient is 1 in every element, and returns the gradient of
    /// `leaf`: zeros where nothing reached it.
    ///
    /// # Errors
    /// What an op's backward step reports.
    pub fn backward(self, output: &Var, leaf: &Var) -> Result<Tensor> {
        let seed = ones_like(output)?;
        let mut gradients = self.walk(output.node, seed, Vec::new())?;
        Ok(gradients.take(leaf.node).unwrap_or_else(|| {
            let value = &leaf.tensor;
            Tensor::zeros(value.device(), leaf.grad_rows(), value.cols(), value.dtype(), Kind::Gradients)
        }))
    }

    /// Like [`Tape::backward`], for the gradients of the parameters, by number; of those that nothing reached there is none.
    /// What `earlier` holds of a parameter's gradient is added to, in its memory.
    ///
    /// # Errors
    /// What an op's backward step reports.
    pub fn backward_to_parameters(
        mut self,
        output: &Var,
        earlier: BTreeMap<usize, Tensor>,
    ) -> Result<BTreeMap<usize, Tensor>> {
        let earlier = earlier.into_iter().map(|(id, gradient)| (self.parameter(Some(id), gradient.rows()), gradient));
        let earlier = earlier.collect();
        let parameters = self.parameters.clone();
        let seed = ones_like(output)?;
        let mut gradients = self.walk(output.node, seed, earlier)?;
        let found = parameters.into_iter().filter_map(|(id, node)| Some((id, gradients.take(node)?)));
        Ok(found.collect())
    }

    /// `earlier` are gradients that are there already.
    fn walk(self, output: Node, seed: Tensor, earlier: Vec<(Node, Tensor)>) -> Result<Gradients> {
        let mut gradients = Gradients { slots: vec![None; self.slots] };
        for (node, gradient) in earlier {
            gradients.add(node, gradient)?;
        }
        gradients.add(output, seed)?;
        for record in self.records.into_iter().rev() {
            if let Some(gradient) = gradients.take(record.output) {
                (record.backward)(gradient, &mut gradients)?;
            }
        }
        Ok(gradients)
    }
}

fn ones_like(output: &Var) -> Result<Tensor> {
    let (value, rows) = (&output.tensor, output.grad_rows());
    Tensor::full(value.device(), rows, value.cols(), value.dtype(), 1.0, Kind::Gradients)
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
