//! The layers of a causal model: attention and an MLP, each behind a norm and added to the stream. What differs between
//! families is which parts there are.

use super::Step;
use crate::error::Result;
use crate::indices::Indices;
use crate::layout::{Layout, Segments};
use crate::nn::{Linear, Norm, RotaryTable};
use crate::ops::{self, Activation, Positions, attention::Heads, rope::Rotation};
use crate::tape::{Tape, Var};
use crate::weights::Matrix;
use std::sync::Arc;

/// What of a layer is computed again in the backward pass rather than kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// The MLP and the norm in front of it: only its input row is kept.
    Mlp,
    /// The whole layer: only its input row is kept.
    Layer,
}

impl Recompute {
    /// All policies, from the fastest to the smallest.
    pub const ALL: [Self; 3] = [Self::None, Self::Mlp, Self::Layer];

    /// The policy of that name: `none`, `mlp` or `layer`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mlp => "mlp",
            Self::Layer => "layer",
        }
    }
}

/// A causal model from token ids to the last hidden rows.
#[derive(Debug)]
pub(super) struct Decoder {
    pub(super) embedding: Arc<Matrix>,
    /// Learned position embeddings.
    pub(super) positions: Option<Arc<Matrix>>,
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) norm: Norm,
    pub(super) rotary: Option<RotaryTable>,
    pub(super) heads: Heads,
    pub(super) activation: Activation,
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Norm,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) mlp_norm: Norm,
    /// The gate of a gated MLP.
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// What the layers share in one forward pass.
struct Pass {
    rotation: Option<Arc<Rotation>>,
    positions: Indices,
    scored: Indices,
    scored_positions: Indices,
    all: Arc<Segments>,
    trimmed: Arc<Segments>,
    heads: Heads,
    activation: Activation,
}

impl Decoder {
    /// The last hidden rows, after the final norm, of the rows of `layout` that are scored; `prompt` stands first in the
    /// stream.
    pub(super) fn hidden(
        &self,
        tape: &mut Tape,
        prompt: &Var,
        layout: &Layout,
        mut step: Option<Step<'_>>,
        recompute: Recompute,
    ) -> Result<Var> {
        let pass = Arc::new(self.pass(layout)?);
        let places = self.positions.as_ref().map(|table| Positions { table, of_row: &layout.positions });
        let mut x = ops::embedding(tape, prompt, &self.embedding, &layout.ids, places)?;
        // What is still to be added to the stream: the sum and the next norm are one pass.
        let mut branch = None;
        for (index, layer) in self.layers.iter().enumerate() {
            let is_last = index + 1 == self.layers.len();
            // The backward pass begins with the last layer, so to compute that again would save nothing.
            let recompute = if is_last || step.is_some() { Recompute::None } else { recompute };
            let (again, shared) = (Arc::clone(layer), Arc::clone(&pass));
            if recompute == Recompute::Layer {
                x = tape.recompute(&x, move |tape, x| again.forward(tape, &shared, x))?;
                continue;
            }
            let (stream, normed) = layer.attention_norm.join(tape, x, branch)?;
            let cache = step.as_mut().map(|step| (step, index));
            let (stream, attended) = layer.attend(tape, &pass, stream, normed, is_last, cache)?;
            let out;
            (x, out) = if recompute == Recompute::Mlp {
                let stream = ops::add(tape, &stream, attended)?;
                let out = tape.recompute(&stream, move |tape, x| {
                    let normed = again.mlp_norm.forward(tape, x)?;
                    again.mlp(tape, &shared, normed)
                })?;
                (stream, out)
            } else {
                let (stream, normed) = layer.mlp_norm.after_add(tape, &stream, attended)?;
                (stream, layer.mlp(tape, &pass, normed)?)
            };
            branch = Some(out);
        }
        Ok(self.norm.join(tape, x, branch)?.1)
    }

    fn pass(&self, layout: &Layout) -> Result<Pass> {
        let positions = Indices::from(layout.positions.as_slice());
        let scored = Indices::from(layout.scored_rows.as_slice());
        let furthest = positions.iter().max().map_or(0, |last| last + 1);
        Ok(Pass {
            rotation: self.rotary.as_ref().map(|rotary| rotary.up_to(furthest)).transpose()?,
            scored_positions: scored.iter().map(|&row| positions[row]).collect(),
            positions,
            scored,
            all: Arc::new(layout.all.clone()),
            trimmed: Arc::new(layout.scored.clone()),
            heads: self.heads,
            activation: self.activation,
        })
    }
}

impl Layer {
    /// The stream behind the layer, where that is not the last.
    fn forward(&self, tape: &mut Tape, pass: &Pass, x: &Var) -> Result<Var> {
        let normed = self.attention_norm.forward(tape, x)?;
        let (x, attended) = self.attend(tape, pass, x.clone(), normed, false, None)?;
        let (x, normed) = self.mlp_norm.after_add(tape, &x, attended)?;
        let out = self.mlp(tape, pass, normed)?;
        ops::add(tape, &x, out)
    }

    /// The rows of the stream `x` that ask, and what attention adds to them. `normed` is the stream behind the norm.
    fn attend(
        &self,
        tape: &mut Tape,
        pass: &Pass,
        mut x: Var,
        normed: Var,
        is_last: bool,
        cache: Option<(&mut Step<'_>, usize)>,
    ) -> Result<(Var, Var)> {
        let rotate = |tape: &mut Tape, x: Var, positions| match &pass.rotation {
            Some(rotation) => ops::rope(tape, x, rotation, positions),
            None => Ok(x),
        };
        let key = self.key.forward(tape, &normed)?;
        let mut key = rotate(tape, key, &pass.positions)?;
        let mut value = self.value.forward(tape, &normed)?;
        if let Some((step, index)) = cache {
            (key, value) = step.extend(index, &key, &value)?;
        }
        // Only scored rows are read after the last layer, so only they ask.
        let (asking, positions, segments) = if is_last {
            x = ops::rows(tape, &x, &pass.scored)?;
            (ops::rows(tape, &normed, &pass.scored)?, &pass.scored_positions, &pass.trimmed)
        } else {
            (normed, &pass.positions, &pass.all)
        };
        let query = self.query.forward(tape, &asking)?;
        drop(asking);
        let query = rotate(tape, query, positions)?;
        let attended = ops::attention(tape, &query, &key, &value, pass.heads, segments)?;
        drop((query, key, value));
        Ok((x, self.output.forward(tape, &attended)?))
    }

    /// What the MLP adds to the stream, which is `normed` behind the norm.
    fn mlp(&self, tape: &mut Tape, pass: &Pass, normed: Var) -> Result<Var> {
        let gate = self.gate.as_ref().map(|gate| gate.forward(tape, &normed)).transpose()?;
        let up = self.up.forward(tape, &normed)?;
        drop(normed);
        let inner = match &gate {
            Some(gate) => ops::gated(tape, gate, &up, pass.activation)?,
            None => ops::activation(tape, &up, pass.activation)?,
        };
        drop((gate, up));
        self.down.forward(tape, &inner)
    }
}
