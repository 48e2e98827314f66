//! The moments of a step at which most is held, as formulas. Symbols are those of [`crate::profile`].

use super::sizes::{Method, Parameters, Setup, Stream, Widths};
use crate::device::Kind;
use crate::dtype::DType;
use crate::models::Recompute;
use crate::ops::loss::TRAINED_LOGITS;

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
    /// Bytes held for `kind`.
    pub fn bytes(&self, kind: Kind) -> u64 {
        saturated(self.bytes[kind as usize])
    }

    /// Bytes held in all.
    pub fn total(&self) -> u64 {
        saturated(self.bytes.iter().sum())
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
    let moments = Step::new(setup, stream, recompute).moments();
    let peak = (0..moments.len()).rev().max_by_key(|&index| moments[index].total()).unwrap_or(0);
    Prediction { moments, peak }
}

/// Output columns of a panel of weights that a thread widens: `PANEL` in `ops/gemm/cpu.rs`.
const PANEL: u128 = 96;
/// Sums of at most so many products are taken in f64 on the CPU: `SHORT` in `ops/linear/cpu.rs`.
const NARROW: u128 = 128;
/// Heads of at most so many elements are worked on in f64 on the CPU: `SHORT` in `ops/attention/cpu.rs`.
const NARROW_HEAD: u128 = 16;
/// Groups of segments that have sums of their own: `GROUPS` in `ops/attention/cpu.rs`.
const GROUPS: u128 = 32;
/// Queries in a tile of attention on the CPU: `TILE_QUERIES` in `ops/attention/tile.rs`.
const TILE: u128 = 192;
/// Keys of a tile on a GPU, and the partial sums of one, at most: `tile` and `TASKS_PER_TILE` in `ops/attention`.
const GPU_TILE: u128 = 64;
const GPU_PARTS: u128 = 32;
/// Logits at once, at most, and the bounds of a chunk of the vocabulary: `ops/loss/cpu.rs` and `cuda.rs`.
const LOGITS: u128 = 4 * 1024 * 1024;
const CHUNK: (u128, u128) = (192, 4032);
const GPU_CHUNK: (u128, u128) = (512, 16 * 1024);
const GPU_WIDENED: u128 = 16 * 1024 * 1024;

/// Bytes by what they are held for, beside weights and optimizer.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    saved: u128,
    workspace: u128,
    gradients: u128,
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

fn saved(bytes: u128) -> Held {
    Held { saved: bytes, ..Held::default() }
}

fn workspace(bytes: u128) -> Held {
    Held { workspace: bytes, ..Held::default() }
}

fn gradients(bytes: u128) -> Held {
    Held { gradients: bytes, ..Held::default() }
}

/// One step, in symbols.
struct Step<'a> {
    setup: &'a Setup,
    recompute: Recompute,
    count: Parameters,
    w: Widths,
    prompt: u128,
    rows: u128,
    scored: u128,
    examples: u128,
    longest: u128,
    e: u128,
    a: u128,
    /// Whether weights are trained.
    trains: bool,
}

/// One layer, in symbols.
struct Layer {
    index: u128,
    is_last: bool,
    /// b
    before: u128,
    /// r
    asking: u128,
    /// The policy that holds in it.
    recompute: Recompute,
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

    /// What is trained, where that is a prompt, and AdamW's two moments of it. In bf16 trained weights have a copy in f32.
    fn optimizer(&self) -> u128 {
        let is_copied = self.e < self.a;
        match self.setup.method {
            Method::Prompt => 3 * self.prompt * self.w.d * self.a,
            Method::Full => self.count.total * self.a * if is_copied { 3 } else { 2 },
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

    /// Scratch of a product of `rows` rows with a matrix from `inputs` to `outputs` numbers: the weights that are widened
    /// for it, and the whole in f64 where the CPU takes short sums of f32 so.
    fn product(&self, rows: u128, inputs: u128, outputs: u128) -> u128 {
        let Self { setup, e, .. } = self;
        if setup.on_gpu {
            return if setup.is_direct() { 0 } else { inputs * outputs * e };
        }
        let panels = outputs.div_ceil(PANEL).min(setup.threads as u128) * PANEL.min(outputs) * inputs;
        if setup.dtype == DType::F32 && inputs <= NARROW {
            return 8 * (rows * (inputs + outputs) + panels);
        }
        if setup.is_direct() { 0 } else { panels * e }
    }

    fn is_narrow_attention(&self) -> bool {
        !self.setup.on_gpu && self.setup.dtype == DType::F32 && self.w.dim <= NARROW_HEAD
    }

    /// Scratch of attention's forward pass: of each thread the queries, their scores and a sum; all in f64 for small heads.
    fn attention_scratch(&self, layer: &Layer) -> u128 {
        let Self { w, .. } = self;
        if self.setup.on_gpu {
            return 0;
        }
        let (queries, keys) = self.tile(layer);
        let (wide, element) = if self.is_narrow_attention() {
            (8 * (layer.asking * (2 * w.q + w.h) + 2 * self.rows * w.k), 8)
        } else {
            (0, self.e)
        };
        wide + self.setup.threads as u128 * queries * (w.dim + keys + 1) * element
    }

    /// Stacked queries of a tile on the CPU, and the keys that they see.
    fn tile(&self, layer: &Layer) -> (u128, u128) {
        let group = self.w.h / self.w.key_heads.max(1);
        let of_example = if layer.is_last { self.scored.div_ceil(self.examples.max(1)) } else { self.longest };
        let of_prompt = if layer.is_last { 0 } else { self.prompt };
        let rows = (TILE / group.max(1)).max(8).min(of_example.max(of_prompt));
        (rows * group, self.prompt + self.longest)
    }

    /// Scratch of attention's backward pass. On the CPU each group of segments sums up what its segments add to the keys of
    /// the prompt; on a GPU the queries of a tile of keys are divided among blocks.
    fn attention_backward_scratch(&self, layer: &Layer) -> u128 {
        let Self { w, .. } = self;
        let (b, r, reached) = (layer.before, layer.asking, self.reached(layer));
        if self.setup.on_gpu {
            let tiles = b.div_ceil(GPU_TILE).min(self.prompt.div_ceil(GPU_TILE));
            let group = w.h / w.key_heads.max(1);
            let parts = (r * group).div_ceil(256).clamp(1, GPU_PARTS);
            let slots = if parts == 1 { 0 } else { tiles * parts };
            return r * w.h * 4 + 2 * slots * GPU_TILE * w.k * 4;
        }
        let segments = self.examples + if layer.is_last { 0 } else { 1 };
        let groups = segments.div_ceil(segments.div_ceil(GROUPS).max(1)).min(self.examples);
        let (wide, element) = if self.is_narrow_attention() {
            let kept = r * (2 * w.q + w.h) + 2 * b * w.k;
            (8 * (kept + r * w.q + reached * w.q + 2 * b * w.k), 8)
        } else {
            (0, self.e)
        };
        let (queries, keys) = self.tile(layer);
        let keys = keys.max(1) - self.prompt.min(self.longest);
        let of_threads = self.setup.threads as u128 * queries * (3 * w.dim + 2 + 2 * keys);
        wide + (groups * 2 * self.prompt * w.k + of_threads) * element
    }

    /// Query rows of a layer whose gradient goes on.
    fn reached(&self, layer: &Layer) -> u128 {
        match layer.index == 0 && !self.trains {
            true => layer.asking.min(self.prompt),
            false => layer.asking,
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
            moments.extend(again.map(|(_, held)| ("backward: forward again", held + gradients(r * d * e))));
            if layer.recompute == Recompute::Layer && b < rows {
                // The whole input is held while the layer is walked back.
                base = saved(rows * d * e);
            }
        }
        let reached = self.reached(layer);
        let in_mlp = (g + 1) * f * d;
        let at_attention = r * d * e + r * q * e + (reached * q + 2 * b * k) * e;
        let of_normed = if layer.is_last { (b + rows.min(b)) * d * e } else { (r + b) * d * e };
        let list = [
            (
                "backward: down",
                saved(attention + mlp)
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
                    + gradients((2 * r * d + g * r * f) * e + weights(in_mlp))
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
                    + gradients(of_normed + 2 * b * k * e + weights(self.count.layer))
                    + workspace(self.product(r, q, d)),
            ),
        ];
        moments.extend(list.map(|(name, held)| (name, held + base)));
        moments
    }

    /// The loss and, where the head is trained, its gradient: beside the hidden rows a chunk of logits.
    fn loss(&self) -> Held {
        let Self { w, e, setup, scored: s, .. } = self;
        let hidden = s * w.d * e;
        if self.trains {
            let taken = (TRAINED_LOGITS as u128 / w.v.max(1)).clamp(1, (*s).max(1));
            let logit = if setup.on_gpu { 4 } else { *e };
            return saved(hidden) + gradients(hidden + w.v * w.d * e) + workspace(hidden + taken * w.v * logit);
        }
        let (least, most) = if setup.on_gpu { GPU_CHUNK } else { CHUNK };
        let most = match setup.on_gpu && !setup.is_direct() {
            true => most.min(GPU_WIDENED / w.d.max(1)),
            false => most,
        };
        let chunk = (LOGITS / s.max(&1)).min(most).max(least).min(w.v);
        let widened = if setup.is_direct() { 0 } else { chunk * w.d * e };
        let scratch = if setup.on_gpu {
            let label_rows = if setup.is_direct() { 0 } else { hidden };
            // f32 logits, a running maximum and sum of each row, sums in f32.
            s * chunk.next_multiple_of(4) * 4 + s * 16 + s * w.d * 4 + label_rows
        } else {
            s * chunk * e
        };
        saved(hidden) + workspace(2 * hidden + scratch + widened)
    }

    fn moments(&self) -> Vec<Moment> {
        let (weights, optimizer) = (self.weights(), self.optimizer());
        let mut moments = Vec::new();
        let mut add = |name, layer: Option<u128>, held: Held| {
            let bytes = [weights, held.saved, held.workspace, held.gradients, optimizer];
            moments.push(Moment { name, layer: layer.map(|index| index as usize), bytes });
        };
        let Self { w, e, .. } = self;
        // What the layers in front of each keep.
        let layers: Vec<Layer> = (0..w.n).map(|index| self.layer(index)).collect();
        let mut before = Vec::with_capacity(layers.len());
        let mut kept = 0;
        for layer in &layers {
            before.push(kept);
            for (name, held) in self.forward(layer, layer.recompute != Recompute::Layer) {
                add(name, Some(layer.index), saved(kept) + held);
            }
            kept += self.kept(layer);
        }
        add("loss", None, saved(kept) + self.loss());

        // Gradients of the weights that the walk back has passed.
        let head = self.if_trained(w.v * w.d * e);
        let mut passed = head;
        let norm = 2 * self.scored * w.d * e;
        add("backward: loss", None, saved(kept + self.scored * w.d * e) + gradients(norm + passed));
        for (layer, kept) in layers.iter().zip(before).rev() {
            for (name, held) in self.backward(layer) {
                add(name, Some(layer.index), saved(kept) + gradients(passed) + held);
            }
            passed += self.if_trained(self.count.layer * e);
        }
        if self.trains {
            let all = self.count.total * e;
            add("backward: embedding", None, gradients(all + self.rows * w.d * e));
            // In bf16 a gradient is widened, and the weight rounded from its copy.
            let converted = if self.e < self.a { self.count.largest * (self.a + e) } else { 0 };
            add("optimizer", None, gradients(all) + workspace(converted));
        } else {
            add("optimizer", None, gradients(self.prompt * w.d * self.a));
        }
        moments
    }
}
