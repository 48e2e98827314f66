//! What a prediction starts from: the sizes of a model, of a step, and how it computes.

use super::t5;
use crate::device::Device;
use crate::dtype::DType;
use crate::layout::Layout;
use crate::models::{Family, Model, ModelConfig, WeightStorage};

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Prompt rows in front of a frozen model.
    Prompt,
    /// Every weight.
    Full,
}

/// How many numbers a model's weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// All of them. Tied tables count once.
    pub total: u128,
    /// Those of one layer; 0 of an encoder–decoder, which has two kinds.
    pub layer: u128,
    /// Those of the biases and norms, of all layers.
    pub vectors: u128,
}

impl Parameters {
    /// Those of a model of these sizes.
    pub fn of(config: &ModelConfig) -> Self {
        if let Some(more) = &config.encoder_decoder {
            let (total, vectors) = (t5::parameters(config, more), t5::norms(config, more));
            return Self { total, layer: 0, vectors };
        }
        let Widths { n, d, f, g, q, k, v, .. } = Widths::of(config);
        let given = |has: bool, count: u128| if has { count } else { 0 };
        let is_gpt2 = config.family == Family::Gpt2;
        let norm = if is_gpt2 { 2 * d } else { d };
        let vectors_of_layer = 2 * norm
            + given(config.qkv_bias, q + 2 * k)
            + given(config.output_bias, d)
            + given(config.mlp_bias, g * f + d);
        let layer = 2 * d * q + 2 * d * k + (g + 1) * d * f + vectors_of_layer;
        let head = given(!config.tie_word_embeddings, v * d);
        let positions = given(is_gpt2, config.max_position_embeddings as u128 * d);
        Self { total: v * d + head + positions + n * layer + norm, layer, vectors: n * vectors_of_layer + norm }
    }
}

/// The widths of a model, under the symbols of [`crate::profile`]; 128 bits hold every product of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    pub(super) n: u128,
    pub(super) d: u128,
    pub(super) f: u128,
    pub(super) g: u128,
    pub(super) q: u128,
    pub(super) k: u128,
    pub(super) h: u128,
    /// Key heads.
    pub(super) key_heads: u128,
    /// Elements of a head.
    pub(super) dim: u128,
    pub(super) v: u128,
}

impl Widths {
    pub(super) fn of(config: &ModelConfig) -> Self {
        let [n, d, f, h, key_heads, dim, v] = [
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.vocab_size,
        ]
        .map(|size| size as u128);
        let g = config.mlp_inputs() as u128;
        Self { n, d, f, g, q: h * dim, k: key_heads * dim, h, key_heads, dim, v }
    }
}

/// The most rows that are told apart: products of them with a model's widths stay within 128 bits.
pub const MOST_ROWS: usize = 1 << 28;

/// The rows of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// P
    pub prompt_rows: usize,
    /// B
    pub examples: usize,
    /// S
    pub rows: usize,
    /// s
    pub scored: usize,
    /// The most rows of one example.
    pub longest: usize,
}

impl Stream {
    /// `examples` examples of `tokens` tokens each, of which the last `labels` are predicted, behind `prompt_rows` rows. An
    /// example's last token is no row. More rows than any machine holds are taken for as many as [`MOST_ROWS`].
    pub fn even(prompt_rows: usize, examples: usize, tokens: usize, labels: usize) -> Self {
        let most = |rows: usize| rows.min(MOST_ROWS);
        let longest = tokens.saturating_sub(1);
        let rows = prompt_rows.saturating_add(examples.saturating_mul(longest));
        Self {
            prompt_rows: most(prompt_rows),
            examples: most(examples),
            rows: most(rows),
            scored: most(examples.saturating_mul(labels)),
            longest: most(longest),
        }
    }

    /// Several steps that go through the model together.
    pub fn together(streams: &[Self]) -> Self {
        let sum = |rows: fn(&Self) -> usize| streams.iter().map(rows).fold(0, usize::saturating_add).min(MOST_ROWS);
        Self {
            prompt_rows: sum(|stream| stream.prompt_rows),
            examples: sum(|stream| stream.examples),
            rows: sum(|stream| stream.rows),
            scored: sum(|stream| stream.scored),
            longest: streams.iter().map(|stream| stream.longest).max().unwrap_or(0),
        }
    }

    /// The rows of a layout; of an encoder–decoder's, whose prompts stand on the encoder, as of even examples.
    pub fn of(layout: &Layout) -> Self {
        if let Some(encoder) = &layout.encoder {
            let examples = layout.prompt_rows.len().max(1);
            let tokens = (encoder.ids.len() + layout.scored_rows.len()).div_ceil(examples);
            let prompt_rows = encoder.prompt_index.len() / examples;
            return Self::even(prompt_rows, examples, tokens, layout.scored_rows.len().div_ceil(examples));
        }
        let examples = layout.all.as_slice().iter().skip(layout.prompt_rows.len());
        Self {
            prompt_rows: layout.total_prompt_rows(),
            examples: layout.all.as_slice().len() - layout.prompt_rows.len(),
            rows: layout.rows(),
            scored: layout.scored_rows.len(),
            longest: examples.map(|segment| segment.own.len()).max().unwrap_or(0),
        }
    }
}

/// What is trained of which model, and how it computes.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The model's sizes.
    pub config: ModelConfig,
    /// What is trained.
    pub method: Method,
    /// Whether on a GPU rather than on the CPU.
    pub on_gpu: bool,
    /// The type computed in.
    pub dtype: DType,
    /// Bits of a weight as the file stores it, on average. Trained weights are held in `dtype` whatever they are stored as.
    pub stored_bits: f64,
    /// Whether frozen weights that are stored in another type are widened once.
    pub widened: bool,
    /// CPU threads: each widens a panel of weights and has scratch of its own.
    pub threads: usize,
    /// Bytes of the optimizer of trained weights, where it is not AdamW.
    pub state_bytes: Option<usize>,
}

impl Setup {
    /// A frozen model in f32, stored as such, on `threads` threads of the CPU.
    pub fn new(config: ModelConfig, threads: usize) -> Self {
        let (method, dtype) = (Method::Prompt, DType::F32);
        Self { config, method, on_gpu: false, dtype, stored_bits: 32.0, widened: false, threads, state_bytes: None }
    }

    /// An opened model, trained as it was opened.
    pub fn of(model: &Model) -> Self {
        let config = model.config().clone();
        let numbers = Parameters::of(&config).total;
        Self {
            config,
            method: if model.parameters().is_empty() { Method::Prompt } else { Method::Full },
            on_gpu: matches!(model.device(), Device::Cuda(_)),
            dtype: model.dtype(),
            stored_bits: 8.0 * model.stored_bytes() as f64 / numbers as f64,
            widened: model.weight_storage() == WeightStorage::Widened,
            threads: model.device().threads(),
            state_bytes: None,
        }
    }

    /// Bytes of the optimizer of `numbers` weights. Those trained in bf16 have a copy in f32.
    pub(super) fn state_of(&self, numbers: u128) -> u128 {
        let wide = self.dtype.accumulator().size();
        let copies = if self.dtype.size() < wide { 3 } else { 2 };
        self.state_bytes.map_or(numbers * (copies * wide) as u128, |bytes| bytes as u128)
    }

    /// Whether products read frozen weights as they are stored.
    pub(super) fn is_direct(&self) -> bool {
        let bits = (8 * self.dtype.size()) as f64;
        // A GPU holds what is stored wider in the type it computes in.
        self.method == Method::Full
            || self.widened
            || self.stored_bits == bits
            || (self.on_gpu && self.stored_bits >= bits)
    }
}
