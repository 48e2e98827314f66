//! A stack of layers: attention and an MLP, each behind a norm and added to the stream; in the decoder of an encoder–decoder
//! attention to the encoder's rows between them. What differs between families is which parts there are.

use super::Step;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::indices::Indices;
use crate::layout::{CrossLayout, EncoderLayout, Layout, Segments};
use crate::nn::{Linear, Norm, RelativeBias, RotaryTable};
use crate::ops::{self, Activation, Direction, PositionBias, Positions, attention::Heads, rope::Rotation};
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

/// From token ids to hidden rows behind the final norm.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) embedding: Arc<Matrix>,
    /// Learned position embeddings.
    pub(super) positions: Option<Arc<Matrix>>,
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) norm: Norm,
    pub(super) rotary: Option<RotaryTable>,
    pub(super) bias: Option<RelativeBias>,
    pub(super) heads: Heads,
    pub(super) activation: Activation,
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention: Attention,
    /// Attention to the encoder's rows.
    pub(super) cross: Option<Attention>,
    pub(super) mlp: Arc<Mlp>,
}

/// The norm in front of attention, and its projections.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) norm: Norm,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
}

/// The norm in front of an MLP, and its matrices.
#[derive(Debug)]
pub(super) struct Mlp {
    pub(super) norm: Norm,
    /// The gate of a gated MLP.
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// A stream as a stack reads it.
pub(super) struct Stream<'a> {
    ids: &'a [u32],
    positions: &'a [usize],
    all: &'a Segments,
    cross: Option<&'a CrossLayout>,
    /// The rows that are read behind the last layer, and what these see; none where all are.
    scored: Option<(&'a [usize], &'a Segments)>,
}

impl<'a> Stream<'a> {
    /// What an encoder reads.
    pub(super) fn of_encoder(layout: &'a EncoderLayout) -> Self {
        Self { ids: &layout.ids, positions: &layout.positions, all: &layout.all, cross: None, scored: None }
    }

    /// What a causal model, or a decoder, reads.
    pub(super) fn of_decoder(layout: &'a Layout) -> Self {
        Self {
            ids: &layout.ids,
            positions: &layout.positions,
            all: &layout.all,
            cross: layout.cross.as_ref(),
            scored: Some((&layout.scored_rows, &layout.scored)),
        }
    }
}

/// What some rows ask, and of which keys.
struct Asking {
    positions: Indices,
    segments: Arc<Segments>,
    cross: Option<Cross>,
}

/// Which rows of the encoder some rows ask of, and how.
struct Cross {
    segments: Arc<Segments>,
    /// Whether they ask of them as they are, rather than of keys and values made of them.
    by_head: bool,
}

/// What the layers share in one forward pass.
struct Pass {
    rotation: Option<Arc<Rotation>>,
    key_positions: Indices,
    all: Asking,
    /// The rows that ask in the last layer, where these are not all.
    scored: Option<(Indices, Asking)>,
    /// The column of distance 0 in the table of biases.
    bias_offset: usize,
    heads: Heads,
    activation: Activation,
}

/// What every layer reads beside the stream.
#[derive(Clone, Default)]
struct Beside {
    /// The encoder's rows.
    encoded: Option<Var>,
    /// The table of biases by distance.
    bias: Option<Var>,
}

impl Beside {
    fn vars(&self) -> impl Iterator<Item = &Var> {
        self.encoded.iter().chain(&self.bias)
    }

    /// The same with other variables, in the order of [`Beside::vars`].
    fn with(&self, vars: &[Var]) -> Self {
        let mut vars = vars.iter().cloned();
        let mut take = |is_there: bool| if is_there { vars.next() } else { None };
        Self { encoded: take(self.encoded.is_some()), bias: take(self.bias.is_some()) }
    }
}

impl Stack {
    /// Hidden rows behind the final norm: of all rows of `stream`, or of those that are scored. `prompt` stands first in it;
    /// `encoded` are the encoder's rows, where there is one and the cache of `step` has nothing of them.
    pub(super) fn forward(
        &self,
        tape: &mut Tape,
        prompt: &Var,
        stream: &Stream<'_>,
        encoded: Option<Var>,
        mut step: Option<Step<'_>>,
        recompute: Recompute,
    ) -> Result<Var> {
        let value = prompt.tensor();
        let furthest = stream.positions.iter().max().map_or(0, |last| last + 1);
        let mut beside = Beside { encoded, bias: None };
        let mut bias_offset = 0;
        if let Some(bias) = &self.bias {
            let (offset, table) = bias.up_to(tape, furthest, value.device(), value.dtype())?;
            (bias_offset, beside.bias) = (offset, Some(table));
        }
        let noted = step.as_mut().filter(|_| self.bias.is_some());
        let key_positions = noted.map(|step| step.note(stream.positions));
        let pass = Arc::new(self.pass(stream, key_positions, furthest, bias_offset)?);
        let places = self.positions.as_ref().map(|table| Positions { table, of_row: stream.positions });
        let mut x = ops::embedding(tape, prompt, &self.embedding, stream.ids, places)?;
        // What is still to be added to the stream: the sum and the next norm are one pass.
        let mut branch = None;
        for (index, layer) in self.layers.iter().enumerate() {
            // The backward pass begins with the last layer of a decoder, so to compute that again would save nothing.
            let is_end = index + 1 == self.layers.len() && stream.scored.is_some();
            let recompute = if is_end || step.is_some() { Recompute::None } else { recompute };
            if recompute == Recompute::Layer {
                let (again, pass, kept) = (Arc::clone(layer), Arc::clone(&pass), beside.clone());
                let inputs: Vec<&Var> = std::iter::once(&x).chain(beside.vars()).collect();
                x = tape.recompute(&inputs, move |tape, vars| {
                    let beside = kept.with(&vars[1..]);
                    let (x, attended) = again.attend(tape, &pass, vars[0].clone(), None, &beside, false, None)?;
                    let (x, out) = again.think(tape, &pass, x, attended, Recompute::None)?;
                    ops::add(tape, &x, out)
                })?;
                continue;
            }
            let cache = step.as_mut().map(|step| (step, index));
            let (stream, attended) = layer.attend(tape, &pass, x, branch, &beside, is_end, cache)?;
            let (stream, out) = layer.think(tape, &pass, stream, attended, recompute)?;
            (x, branch) = (stream, Some(out));
        }
        Ok(self.norm.join(tape, x, branch)?.1)
    }

    fn pass(
        &self,
        stream: &Stream<'_>,
        key_positions: Option<Indices>,
        furthest: usize,
        bias_offset: usize,
    ) -> Result<Pass> {
        let positions = Indices::from(stream.positions);
        let scored = stream.scored.map(|(rows, segments)| {
            let rows = Indices::from(rows);
            let asking = Asking {
                positions: rows.iter().map(|&row| positions[row]).collect(),
                segments: Arc::new(segments.clone()),
                cross: stream.cross.map(|cross| self.cross(&cross.scored)),
            };
            (rows, asking)
        });
        Ok(Pass {
            rotation: self.rotary.as_ref().map(|rotary| rotary.up_to(furthest)).transpose()?,
            key_positions: key_positions.unwrap_or_else(|| positions.clone()),
            all: Asking {
                positions,
                segments: Arc::new(stream.all.clone()),
                cross: stream.cross.map(|cross| self.cross(&cross.all)),
            },
            scored,
            bias_offset,
            heads: self.heads,
            activation: self.activation,
        })
    }

    fn cross(&self, segments: &Segments) -> Cross {
        let (rows, pairs, encoded) = (segments.query_rows(), segments.pairs(), segments.key_rows());
        let by_head = self.heads.asks_by_head(self.embedding.in_features(), rows, pairs, encoded);
        Cross { segments: Arc::new(segments.clone()), by_head }
    }

    /// Keys and values that every layer makes of the encoder's rows.
    pub(super) fn cross_keys(&self, encoded: &Var) -> Result<Vec<(Var, Var)>> {
        let of_layer = |layer: &Arc<Layer>| {
            let Some(cross) = &layer.cross else {
                return Err(Error::op("cross_keys", "a decoder that sees an encoder", "none"));
            };
            let tape = &mut Tape::new();
            Ok((cross.key.forward(tape, encoded)?, cross.value.forward(tape, encoded)?))
        };
        self.layers.iter().map(of_layer).collect()
    }
}

impl Layer {
    /// The rows of the stream that ask, and what attention adds to them. `branch` is still to be added to the stream `x`.
    fn attend(
        &self,
        tape: &mut Tape,
        pass: &Pass,
        x: Var,
        branch: Option<Var>,
        beside: &Beside,
        is_end: bool,
        mut cache: Option<(&mut Step<'_>, usize)>,
    ) -> Result<(Var, Var)> {
        let Attention { norm, query, key, value, output } = &self.attention;
        let (mut x, normed) = norm.join(tape, x, branch)?;
        let rotate = |tape: &mut Tape, x: Var, positions| match &pass.rotation {
            Some(rotation) => ops::rope(tape, x, rotation, positions),
            None => Ok(x),
        };
        let key = key.forward(tape, &normed)?;
        let mut key = rotate(tape, key, &pass.all.positions)?;
        let mut value = value.forward(tape, &normed)?;
        if let Some((step, index)) = &mut cache {
            (key, value) = step.extend(*index, &key, &value)?;
        }
        // Only scored rows are read after the last layer, so only they ask.
        let (rows, asking) = match &pass.scored {
            Some((rows, asking)) if is_end => {
                x = ops::rows(tape, &x, rows)?;
                (ops::rows(tape, &normed, rows)?, asking)
            }
            _ => (normed, &pass.all),
        };
        let query = query.forward(tape, &rows)?;
        drop(rows);
        let query = rotate(tape, query, &asking.positions)?;
        let bias = beside.bias.as_ref().map(|table| PositionBias {
            table: table.clone(),
            query_positions: asking.positions.clone(),
            key_positions: pass.key_positions.clone(),
            offset: pass.bias_offset,
        });
        let attended = ops::attention(tape, &query, &key, &value, pass.heads, &asking.segments, bias.as_ref())?;
        drop((query, key, value));
        let out = output.forward(tape, &attended)?;
        drop(attended);
        match (&self.cross, &asking.cross) {
            (Some(cross), Some(asking)) => {
                let (x, normed) = cross.norm.after_add(tape, &x, out)?;
                let cached = cache.as_ref().and_then(|(step, index)| step.cross(*index));
                Ok((x, cross.read(tape, pass, &normed, cached, beside.encoded.as_ref(), asking)?))
            }
            _ => Ok((x, out)),
        }
    }

    /// The stream, and what the MLP adds to it. `attended` is still to be added to the stream `x`.
    fn think(&self, tape: &mut Tape, pass: &Pass, x: Var, attended: Var, recompute: Recompute) -> Result<(Var, Var)> {
        if recompute == Recompute::None {
            let (x, normed) = self.mlp.norm.after_add(tape, &x, attended)?;
            return Ok((x, self.mlp.forward(tape, pass.activation, normed)?));
        }
        let x = ops::add(tape, &x, attended)?;
        let (again, activation) = (Arc::clone(&self.mlp), pass.activation);
        let out = tape.recompute(&[&x], move |tape, vars| {
            let normed = again.norm.forward(tape, &vars[0])?;
            again.forward(tape, activation, normed)
        })?;
        Ok((x, out))
    }
}

impl Attention {
    /// What attention to the encoder's rows, `encoded` or `cached` as keys and values, adds to those of `normed`.
    fn read(
        &self,
        tape: &mut Tape,
        pass: &Pass,
        normed: &Var,
        cached: Option<(Var, Var)>,
        encoded: Option<&Var>,
        Cross { segments, by_head }: &Cross,
    ) -> Result<Var> {
        let is_frozen = |linear: &Linear| linear.weight.parameter().is_none() && linear.bias.is_none();
        if let (None, Some(encoded), true) = (&cached, encoded, *by_head)
            && is_frozen(&self.key)
            && is_frozen(&self.value)
            && matches!(encoded.tensor().device(), Device::Cpu(_))
        {
            let (heads, width) = (pass.heads, encoded.tensor().cols());
            let query = self.query.forward(tape, normed)?;
            let query = ops::by_head(tape, &query, &self.key.weight, heads.queries, Direction::OutOf)?;
            let wide = Heads { keys: 1, dim: width, ..heads };
            let mixed = ops::attention(tape, &query, encoded, encoded, wide, segments, None)?;
            drop(query);
            let attended = ops::by_head(tape, &mixed, &self.value.weight, heads.queries, Direction::Into)?;
            drop(mixed);
            return self.output.forward(tape, &attended);
        }
        let (key, value) = match (cached, encoded) {
            (Some(cached), _) => cached,
            (None, Some(encoded)) => (self.key.forward(tape, encoded)?, self.value.forward(tape, encoded)?),
            (None, None) => return Err(Error::op("decoder", "the encoder's rows", "none")),
        };
        let query = self.query.forward(tape, normed)?;
        let attended = ops::attention(tape, &query, &key, &value, pass.heads, segments, None)?;
        drop((query, key, value));
        self.output.forward(tape, &attended)
    }
}

impl Mlp {
    /// What it adds to the stream, which is `normed` behind the norm.
    fn forward(&self, tape: &mut Tape, activation: Activation, normed: Var) -> Result<Var> {
        let gate = self.gate.as_ref().map(|gate| gate.forward(tape, &normed)).transpose()?;
        let up = self.up.forward(tape, &normed)?;
        drop(normed);
        let inner = match &gate {
            Some(gate) => ops::gated(tape, gate, &up, activation)?,
            None => ops::activation(tape, &up, activation)?,
        };
        drop((gate, up));
        self.down.forward(tape, &inner)
    }
}
