//! The moments of a step at which most is held, as formulas. Symbols are those of [`crate::profile`].

use super::sizes::{Method, Parameters, Setup, Stream, Widths};
use super::t5;
use crate::device::Kind;
use crate::dtype::DType;
use crate::models::Recompute;

/// What is held at one moment of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Which one it is.
    pub name: &'static str,
    /// The layer, counted from 0, if it is of one.
    pub layer: Option<usize>,
    bytes: [u128; 5],
}

impl Moment {
    pub(super) fn new(name: &'static str, bytes: [u128; 5]) -> Self {
        Self { name, layer: None, bytes }
    }

    /// Bytes held for `kind`.
    pub fn bytes(&self, kind: Kind) -> u64 {
        saturated(self.bytes[kind as usize])
    }

    /// Bytes held in all.
    pub fn total(&self) -> u64 {
        saturated(self.bytes.iter().fold(0, |sum, &bytes| sum.saturating_add(bytes)))
    }
}

fn saturated(bytes: u128) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// The moments of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// All that were looked at, in their order.
    pub moments: Vec<Moment>,
    peak: usize,
}

impl Prediction {
    /// The moment at which most is held.
    pub fn peak(&self) -> &Moment {
        &self.moments[self.peak]
    }

    /// The most bytes that are held for `kind` at any moment.
    pub fn most(&self, kind: Kind) -> u64 {
        self.moments.iter().map(|moment| moment.bytes(kind)).max().unwrap_or(0)
    }

    /// Bytes at the peak.
    pub fn total(&self) -> u64 {
        self.peak().total()
    }
}

/// Predicts the memory of one step, its optimizer's included.
pub fn predict(setup: &Setup, stream: &Stream, recompute: Recompute) -> Prediction {
    let moments = match &setup.config.encoder_decoder {
        Some(more) => t5::moments(setup, more, stream, recompute),
        None => Step::new(setup, stream, recompute).moments(),
    };
    let peak = (0..moments.len()).rev().max_by_key(|&index| moments[index].total()).unwrap_or(0);
    Prediction { moments, peak }
}

/// Bytes by what they are held for, beside weights and optimizer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Held {
    pub(super) saved: u128,
    pub(super) workspace: u128,
    pub(super) gradients: u128,
}

impl std::ops::Add for Held {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            saved: self.saved + other.saved,
            workspace: self.workspace + other.workspace,
            gradients: self.gradients + other.gradients,
        }
    }
}

pub(super) fn saved(bytes: u128) -> Held {
    Held { saved: bytes, ..Held::default() }
}

pub(super) fn workspace(bytes: u128) -> Held {
    Held { workspace: bytes, ..Held::default() }
}

pub(super) fn gradients(bytes: u128) -> Held {
    Held { gradients: bytes, ..Held::default() }
}

/// One step, in symbols.
pub(super) struct Step<'a> {
    pub(super) setup: &'a Setup,
    pub(super) recompute: Recompute,
    pub(super) count: Parameters,
    pub(super) w: Widths,
    pub(super) prompt: u128,
    pub(super) rows: u128,
    pub(super) scored: u128,
    pub(super) examples: u128,
    pub(super) longest: u128,
    pub(super) e: u128,
    pub(super) a: u128,
    /// Whether weights are trained.
    pub(super) trains: bool,
}

/// One layer, in symbols.
pub(super) struct Layer {
    pub(super) index: u128,
    pub(super) is_last: bool,
    /// b
    pub(super) before: u128,
    /// r
    pub(super) asking: u128,
    /// The policy that holds in it.
    pub(super) recompute: Recompute,
}

impl<'a> Step<'a> {
    fn new(setup: &'a Setup, stream: &Stream, recompute: Recompute) -> Self {
        let [rows, scored, examples, longest] =
            [stream.rows, stream.scored, stream.examples, stream.longest].map(|count| count as u128);
        Self {
            setup,
            recompute,
            count: Parameters::of(&setup.config),
            w: Widths::of(&setup.config),
            prompt: stream.prompt_rows as u128,
            rows,
            scored,
            examples,
            longest,
            e: setup.dtype.size() as u128,
            a: setup.dtype.accumulator().size() as u128,
            trains: setup.method == Method::Full,
        }
    }

    fn layer(&self, index: u128) -> Layer {
        let is_last = index + 1 == self.w.n;
        Layer {
            index,
            is_last,
            before: if index == 0 && !self.trains { self.prompt } else { self.rows },
            asking: if is_last { self.scored } else { self.rows },
            recompute: if is_last { Recompute::None } else { self.recompute },
        }
    }

    /// `bytes` if weights are trained.
    fn if_trained(&self, bytes: u128) -> u128 {
        if self.trains { bytes } else { 0 }
    }

    /// Weights and tables: frozen ones as they are stored or as a GPU holds them, with biases and norms once more in the
    /// working type; trained ones in the working type.
    fn weights(&self) -> u128 {
        let Self { setup, count, e, .. } = self;
        let stored = |numbers: u128| (numbers as f64 * setup.stored_bits / 8.0).round() as u128;
        let matrices = count.total - count.vectors;
        let positions = (self.prompt + self.longest).next_power_of_two().max(128);
        let has_rotation = setup.config.family != crate::models::Family::Gpt2;
        let rotation = if has_rotation { positions * (self.w.dim / 2) * 2 * self.a } else { 0 };
        let weights = if self.trains {
            count.total * e
        } else if setup.on_gpu {
            let is_wide = setup.is_direct();
            (if is_wide { matrices * e } else { stored(matrices) }) + count.vectors * e
        } else {
            let is_copied = setup.widened && setup.stored_bits != (8 * e) as f64;
            stored(count.total) + count.vectors * e + if is_copied { matrices * e } else { 0 }
        };
        weights + rotation
    }

    /// What is trained, where that is a prompt, and AdamW's two moments of it.
    fn optimizer(&self) -> u128 {
        match self.setup.method {
            Method::Prompt => 3 * self.prompt * self.w.d * self.a,
            Method::Full => self.setup.state_of(self.count.total),
        }
    }

    /// Kept by a layer's attention, its norm included.
    fn attention_kept(&self, layer: &Layer) -> u128 {
        let Self { w, e, a, .. } = self;
        let (b, r) = (layer.before, layer.asking);
        // On a GPU the bits that bf16 leaves out of the output are kept too.
        let low = if self.setup.dtype == DType::BF16 { 1 } else { 0 };
        let inputs = self.rows * w.d * e + if layer.is_last { self.scored * w.d * e } else { 0 };
        b * (w.d + 2 * w.k) * e + r * (2 * w.q * e + w.h * a + w.q * low) + self.if_trained(inputs)
    }

    /// Kept by a layer's MLP, its norm included, where it is not computed again.
    fn mlp_kept(&self, layer: &Layer) -> u128 {
        let Self { w, e, .. } = self;
        layer.asking * (w.d + w.g * w.f) * e + self.if_trained(layer.asking * (w.d + w.f) * e)
    }

    fn kept(&self, layer: &Layer) -> u128 {
        match layer.recompute {
            Recompute::None => self.attention_kept(layer) + self.mlp_kept(layer),
            Recompute::Mlp => self.attention_kept(layer) + layer.asking * self.w.d * self.e,
            Recompute::Layer => self.rows * self.w.d * self.e,
        }
    }

    /// The moments of a layer's forward pass, given what it holds beside it. `keeps` is whether the tape records it.
    fn forward(&self, layer: &Layer, keeps: bool) -> Vec<(&'static str, Held)> {
        let Self { w, e, .. } = self;
        let (b, r, s, rows) = (layer.before, layer.asking, self.scored, self.rows);
        let (d, f, g, q) = (w.d, w.f, w.g, w.q);
        if !keeps {
            // Of a layer that is computed again nothing is kept but its input.
            let x = rows * d * e;
            let attended = rows * (2 * q * e + w.h * self.a + 2 * w.k * e) + self.attention_scratch(layer);
            let norm = self.product(rows, d, f);
            return vec![
                ("forward: attention", saved(x) + workspace(attended)),
                ("forward: gate and up", saved(x) + workspace(rows * (2 * d + g * f) * e + norm)),
                ("forward: activation", saved(x) + workspace(rows * (d + (g + 1) * f) * e)),
                ("forward: down", saved(x) + workspace(rows * (2 * d + f) * e + self.product(rows, f, d))),
            ];
        }
        // The first layer's input carries gradient in the prompt's rows alone, and only these are kept of it.
        let partly = if b < rows { rows * d * e } else { 0 };
        let stream = partly + if layer.is_last { s * d * e } else { 0 };
        let normed = if layer.is_last && !self.trains { rows * d * e } else { 0 };
        let attention = self.attention_kept(layer);
        let keys = if b < rows { 2 * rows * w.k * e } else { 0 };
        let behind = attention + r * d * e + self.if_trained(r * d * e);
        let untrained = |bytes| if self.trains { 0 } else { bytes };
        let mlp = match layer.recompute {
            Recompute::Mlp => r * d * e,
            _ => self.mlp_kept(layer),
        };
        vec![
            (
                "forward: attention",
                saved(attention) + workspace(stream + normed + keys + self.attention_scratch(layer)),
            ),
            (
                "forward: attention's output",
                saved(attention) + workspace(stream + normed + r * d * e + self.product(r, q, d)),
            ),
            (
                "forward: gate and up",
                saved(behind) + workspace(stream + untrained(r * d * e) + g * r * f * e + self.product(r, d, f)),
            ),
            ("forward: activation", saved(behind) + workspace(stream + (g + 1) * r * f * e)),
            (
                "forward: down",
                saved(attention + mlp) + workspace(stream + untrained(r * f * e) + r * d * e + self.product(r, f, d)),
            ),
        ]
    }

    /// The moments of a layer's backward pass, given what it holds beside it.
    fn backward(&self, layer: &Layer) -> Vec<(&'static str, Held)> {
        let Self { w, e, .. } = self;
        let (b, r, rows) = (layer.before, layer.asking, self.rows);
        let (d, f, g, q, k) = (w.d, w.f, w.g, w.q, w.k);
        let (attention, mlp) = (self.attention_kept(layer), self.mlp_kept(layer));
        let inner = self.if_trained(r * f * e);
        let weights = |count: u128| self.if_trained(count * e);
        // What a policy computes again: a forward pass that is recorded, beside the gradient of the stream.
        let mut moments = Vec::new();
        let mut base = Held::default();
        if layer.recompute != Recompute::None {
            let recorded = self.forward(&Layer { recompute: Recompute::None, ..*layer }, true);
            let of_mlp = layer.recompute == Recompute::Mlp;
            let again = recorded.into_iter().skip(if of_mlp { 2 } else { 0 });
            // The first layer's whole input is held while the layer is walked back, but not where that is its MLP alone.
            let input = if b < rows { rows * d * e } else { 0 };
            moments.extend(again.map(|(_, mut held)| {
                held.workspace -= input;
                held.saved += if of_mlp { 0 } else { input };
                ("backward: forward again", held + gradients(r * d * e))
            }));
            base = saved(if of_mlp { 0 } else { input });
        }
        let reached = self.reached(layer);
        let in_mlp = (g + 1) * f * d;
        let at_attention = r * d * e + r * q * e + (reached * q + 2 * b * k) * e;
        let of_normed = if layer.is_last { (b + rows.min(b)) * d * e } else { (r + b) * d * e };
        // `up` is walked back first, and its output's gradient let go.
        let of_projections = (g * r * f * e + weights(2 * f * d)).max(r * f * e + weights(in_mlp));
        let list = [
            (
                "backward: down",
                saved(attention + mlp - inner)
                    + gradients((r * d + r * f) * e + weights(f * d))
                    + workspace(self.product(r, d, f)),
            ),
            (
                "backward: activation",
                saved(attention + mlp - inner) + gradients((r * d + g * r * f) * e + weights(f * d)),
            ),
            (
                "backward: gate and up",
                saved(attention + r * d * e + self.if_trained(r * d * e))
                    + gradients(2 * r * d * e + of_projections)
                    + workspace(self.product(r, f, d)),
            ),
            (
                "backward: attention",
                saved(attention)
                    + gradients(at_attention + weights(in_mlp + q * d))
                    + workspace(self.attention_backward_scratch(layer)),
            ),
            (
                "backward: queries, keys and values",
                saved(b * d * e + self.if_trained(rows * d * e))
                    + gradients(of_normed + 2 * b * k * e + weights(self.count.layer - k * d))
                    + workspace(self.product(reached, q, d).max(self.product(b, k, d))),
            ),
        ];
        moments.extend(list.map(|(name, held)| (name, held + base)));
        moments
    }

    fn moments(&self) -> Vec<Moment> {
        let (weights, optimizer) = (self.weights(), self.optimizer());
        let mut moments = Vec::new();
        let mut add = |name, layer: Option<u128>, held: Held| {
            let bytes = [weights, held.saved, held.workspace, held.gradients, optimizer];
            moments.push(Moment { name, layer: layer.map(|index| index as usize), bytes });
        };
        let Self { w, e, .. } = self;
        // What is held changes by as much from each layer in the middle to the next, so the most is in the first or last of them.
        let mut looked_at = vec![0, 1, w.n.saturating_sub(2), w.n - 1];
        looked_at.retain(|&index| index < w.n);
        looked_at.sort_unstable();
        looked_at.dedup();
        let layers: Vec<Layer> = looked_at.into_iter().map(|index| self.layer(index)).collect();
        let middle = if w.n > 2 { self.kept(&self.layer(1)) } else { 0 };
        let first = self.kept(&self.layer(0));
        let before = |layer: &Layer| if layer.index == 0 { 0 } else { first + (layer.index - 1) * middle };
        for layer in &layers {
            for (name, held) in self.forward(layer, layer.recompute != Recompute::Layer) {
                add(name, Some(layer.index), saved(before(layer)) + held);
            }
        }
        let last = self.layer(w.n - 1);
        let kept = before(&last) + self.kept(&last);
        add("loss", None, saved(kept) + self.loss());

        let head = self.if_trained(w.v * w.d * e);
        let norm = 2 * self.scored * w.d * e;
        add("backward: loss", None, saved(kept + self.scored * w.d * e) + gradients(norm + head));
        for layer in layers.iter().rev() {
            // Gradients of the weights that the walk back has passed.
            let passed = head + self.if_trained((w.n - 1 - layer.index) * self.count.layer * e);
            for (name, held) in self.backward(layer) {
                add(name, Some(layer.index), saved(before(layer)) + gradients(passed) + held);
            }
        }
        if self.trains {
            let all = self.count.total * e;
            add("backward: embedding", None, gradients(all + self.rows * w.d * e));
            add("optimizer", None, gradients(all));
        } else {
            add("optimizer", None, gradients(self.prompt * w.d * self.a));
        }
        moments
    }
}
