//! What is held beside activations while an op works: widened weights, scores, sums, logits. A GPU's lists of tiles and the
//! workspace of its matrix library are left out: both are small beside them, and the library's is its own affair.

use super::moments::{Held, Layer, Step, gradients, saved, workspace};
use crate::dtype::DType;
use crate::ops::loss::TRAINED_LOGITS;

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

impl Step<'_> {
    /// Scratch of a product of `rows` rows with a matrix from `inputs` to `outputs` numbers: the weights that are widened
    /// for it, and the whole in f64 where the CPU takes short sums of f32 so.
    pub(super) fn product(&self, rows: u128, inputs: u128, outputs: u128) -> u128 {
        let Self { setup, e, .. } = self;
        if setup.on_gpu {
            return if setup.is_direct() { 0 } else { inputs * outputs * e };
        }
        let panels = (PANEL * setup.threads as u128).min(outputs) * inputs;
        if setup.dtype == DType::F32 && inputs <= NARROW {
            return 8 * (rows * (inputs + outputs) + panels);
        }
        if setup.is_direct() { 0 } else { panels * e }
    }

    pub(super) fn is_narrow_attention(&self) -> bool {
        !self.setup.on_gpu && self.setup.dtype == DType::F32 && self.w.dim <= NARROW_HEAD
    }

    /// Scratch of attention's forward pass: of each thread the queries, their scores and a sum; all in f64 for small heads.
    pub(super) fn attention_scratch(&self, layer: &Layer) -> u128 {
        let Self { w, .. } = self;
        if self.setup.on_gpu {
            return 0;
        }
        let (queries, keys) = (self.tile(layer.is_last, self.prompt, self.longest), self.prompt + self.longest);
        let (wide, element) = if self.is_narrow_attention() {
            (8 * (layer.asking * (2 * w.q + w.h) + 2 * self.rows * w.k), 8)
        } else {
            (0, self.e)
        };
        wide + self.setup.threads as u128 * queries * (w.dim + keys + 1) * element
    }

    /// Stacked queries of a tile on the CPU, of the prompt's rows or an example's, if these are so many.
    pub(super) fn tile(&self, is_last: bool, of_prompt: u128, of_example: u128) -> u128 {
        let group = self.w.h / self.w.key_heads.max(1);
        let asking = if is_last { self.scored.div_ceil(self.examples.max(1)) } else { of_prompt.max(of_example) };
        (TILE / group.max(1)).max(8).min(asking) * group
    }

    /// Scratch of attention's backward pass. On the CPU each group of segments sums up what its segments add to the keys of
    /// the prompt; on a GPU the queries of a tile of keys are divided among blocks.
    pub(super) fn attention_backward_scratch(&self, layer: &Layer) -> u128 {
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
        // The prompt is one segment, so one thread works on it; the others work on examples.
        let of_example = self.tile(layer.is_last, 0, self.longest);
        let of_prompt = if layer.is_last { 0 } else { self.tile(false, self.prompt, 0) };
        let of_tile = |queries: u128| queries * (3 * w.dim + 2 + 2 * self.prompt.max(self.longest));
        let others = (self.setup.threads as u128 - 1).min(self.examples);
        let of_threads = of_tile(of_example.max(of_prompt)) + others * of_tile(of_example);
        wide + (groups * 2 * self.prompt * w.k + of_threads) * element
    }

    /// Query rows of a layer whose gradient goes on.
    pub(super) fn reached(&self, layer: &Layer) -> u128 {
        match layer.index == 0 && !self.trains {
            true => layer.asking.min(self.prompt),
            false => layer.asking,
        }
    }

    /// The loss and, where the head is trained, its gradient: beside the hidden rows a chunk of logits.
    pub(super) fn loss(&self) -> Held {
        let Self { w, e, setup, scored: s, .. } = self;
        let hidden = s * w.d * e;
        if self.trains {
            let taken = (TRAINED_LOGITS as u128 / w.v.max(1)).clamp(1, (*s).max(1));
            let logit = if setup.on_gpu { 4 } else { *e };
            // A GPU sums the head's gradient in f32 where that takes more than one chunk, and then rounds it.
            let sums = if setup.on_gpu && taken < *s && *e < 4 { w.v * w.d * 4 } else { 0 };
            let held = gradients(hidden + w.v * w.d * e + sums);
            return saved(hidden) + held + workspace(hidden + taken * w.v * logit);
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
}
