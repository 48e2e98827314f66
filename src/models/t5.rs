//! T5 and its kin (v1.0, v1.1, LM-adapted, Flan, mT5, ByT5): an encoder and a decoder of RMSNorms, attention with a bias by
//! distance and without scaling, and an MLP with or without a gate (Raffel et al. 2020; Shazeer 2020).

use super::config::{EncoderDecoderConfig, ModelConfig};
use super::load::Loader;
use super::stack::{Attention, Layer, Mlp, Stack};
use crate::error::Result;
use crate::nn::RelativeBias;
use crate::weights::{Matrix, Orientation};
use std::sync::Arc;

/// The parts of a layer: Hugging Face's names, where `#` is the layer's last sub-layer, and GGUF's.
const PARTS: [(&str, &str); 16] = [
    ("layer.0.layer_norm", "attn_norm"),
    ("layer.0.SelfAttention.q", "attn_q"),
    ("layer.0.SelfAttention.k", "attn_k"),
    ("layer.0.SelfAttention.v", "attn_v"),
    ("layer.0.SelfAttention.o", "attn_o"),
    ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
    ("layer.1.layer_norm", "cross_attn_norm"),
    ("layer.1.EncDecAttention.q", "cross_attn_q"),
    ("layer.1.EncDecAttention.k", "cross_attn_k"),
    ("layer.1.EncDecAttention.v", "cross_attn_v"),
    ("layer.1.EncDecAttention.o", "cross_attn_o"),
    ("layer.#.layer_norm", "ffn_norm"),
    ("layer.#.DenseReluDense.wi", "ffn_up"),
    ("layer.#.DenseReluDense.wi_0", "ffn_gate"),
    ("layer.#.DenseReluDense.wi_1", "ffn_up"),
    ("layer.#.DenseReluDense.wo", "ffn_down"),
];

/// A model's two stacks and its head, `[vocabulary, d]`.
pub(super) struct T5 {
    pub(super) encoder: Stack,
    pub(super) decoder: Stack,
    pub(super) head: Arc<Matrix>,
}

/// How a matrix begins, as in T5's code (Raffel et al. 2020; T5X): by the width of what it reads, and the queries' so that
/// scores need no scaling.
pub(super) fn deviation(config: &ModelConfig, name: &str, shape: &[usize]) -> f64 {
    let inputs = shape.last().copied().unwrap_or(1) as f64;
    match name {
        _ if name.ends_with("shared.weight") || name.ends_with("embed_tokens.weight") => 1.0,
        _ if name.ends_with(".q.weight") => 1.0 / (inputs * config.head_dim as f64).sqrt(),
        _ if name.ends_with("relative_attention_bias.weight") => 1.0 / (config.hidden_size as f64).sqrt(),
        _ => 1.0 / inputs.sqrt(),
    }
}

/// One of the two stacks' tensors.
struct Part<'a> {
    loader: &'a Loader<'a>,
    config: &'a ModelConfig,
    is_decoder: bool,
}

pub(super) fn load(loader: &Loader<'_>, config: &ModelConfig, more: &EncoderDecoderConfig) -> Result<T5> {
    let (width, vocabulary) = (config.hidden_size, config.vocab_size);
    let table = |name: &str| loader.matrix(name, vocabulary, width, Orientation::RowPerOutput);
    let is_gguf = loader.is_gguf();
    let shared = match is_gguf {
        true => "token_embd.weight",
        // A file may name one table by any of its uses.
        false => *["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
            .iter()
            .find(|name| loader.has(name))
            .unwrap_or(&"shared.weight"),
    };
    let embedding = table(shared)?;
    let head_name = if is_gguf { "output.weight" } else { "lm_head.weight" };
    // A file may also hold the head of a configuration that says nothing of it.
    let is_tied = config.tie_word_embeddings || loader.reads_files() && !loader.has(head_name);
    let head = if is_tied { Arc::clone(&embedding) } else { table(head_name)? };
    let encoder = Part { loader, config, is_decoder: false }.stack(&embedding, config.num_hidden_layers, more)?;
    let decoder = Part { loader, config, is_decoder: true }.stack(&embedding, more.num_decoder_layers, more)?;
    Ok(T5 { encoder, decoder, head })
}

impl Part<'_> {
    fn stack(&self, embedding: &Arc<Matrix>, layers: usize, more: &EncoderDecoderConfig) -> Result<Stack> {
        let Self { loader, config, is_decoder } = *self;
        let layers = (0..layers).map(|index| self.layer(index).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let side = self.side();
        let norm = if loader.is_gguf() { format!("{side}.output_norm") } else { format!("{side}.final_layer_norm") };
        let norm = loader.rms_norm(&format!("{norm}.weight"), config.hidden_size, config.norm_epsilon)?;
        let bias = format!("{}.weight", self.name(0, "layer.0.SelfAttention.relative_attention_bias"));
        let (buckets, heads) = (more.relative_attention_num_buckets, config.num_attention_heads);
        let bias = loader.matrix(&bias, buckets, heads, Orientation::RowPerOutput)?;
        let bias = RelativeBias::new(bias, more.relative_attention_max_distance, !is_decoder);
        Ok(Stack {
            embedding: Arc::clone(embedding),
            positions: None,
            layers,
            norm,
            rotary: None,
            bias: Some(bias),
            heads: config.heads(),
            activation: config.activation,
        })
    }

    fn side(&self) -> &'static str {
        match (self.loader.is_gguf(), self.is_decoder) {
            (true, false) => "enc",
            (true, true) => "dec",
            (false, false) => "encoder",
            (false, true) => "decoder",
        }
    }

    fn name(&self, layer: usize, part: &str) -> String {
        if self.loader.is_gguf() {
            let gguf = PARTS.iter().find(|(name, _)| *name == part).map_or(part, |(_, gguf)| gguf);
            return format!("{}.blk.{layer}.{gguf}", self.side());
        }
        let part = part.replace('#', if self.is_decoder { "2" } else { "1" });
        format!("{}.block.{layer}.{part}", self.side())
    }

    fn layer(&self, index: usize) -> Result<Layer> {
        let Self { loader, config, is_decoder } = *self;
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let linear = |part: &str, outputs, inputs| {
            loader.linear(&self.name(index, part), outputs, inputs, Orientation::RowPerOutput, false)
        };
        let norm =
            |part: &str| loader.rms_norm(&format!("{}.weight", self.name(index, part)), width, config.norm_epsilon);
        let attention = |sub: usize, kind: &str| {
            let of = |part: &str, outputs, inputs| linear(&format!("layer.{sub}.{kind}.{part}"), outputs, inputs);
            Ok(Attention {
                norm: norm(&format!("layer.{sub}.layer_norm"))?,
                query: of("q", queries, width)?,
                key: of("k", queries, width)?,
                value: of("v", queries, width)?,
                output: of("o", width, queries)?,
            })
        };
        let of_mlp = |part: &str, outputs, inputs| linear(&format!("layer.#.DenseReluDense.{part}"), outputs, inputs);
        Ok(Layer {
            attention: attention(0, "SelfAttention")?,
            cross: is_decoder.then(|| attention(1, "EncDecAttention")).transpose()?,
            mlp: Arc::new(Mlp {
                norm: norm("layer.#.layer_norm")?,
                gate: config.is_gated.then(|| of_mlp("wi_0", inner, width)).transpose()?,
                up: of_mlp(if config.is_gated { "wi_1" } else { "wi" }, inner, width)?,
                down: of_mlp("wo", width, inner)?,
            }),
        })
    }
}
