//! Llama and its kin (SmolLM2, Mistral, TinyLlama, Qwen2): RMSNorm, rotary positions, grouped queries, gated MLP.

use super::config::{Family, ModelConfig};
use super::load::Loader;
use super::stack::{Attention, Layer, Mlp, Stack};
use crate::error::Result;
use crate::nn::RotaryTable;
use crate::ops::Pairing;
use crate::weights::{Matrix, Orientation};
use std::sync::Arc;

/// The parts of a layer: Hugging Face's names and GGUF's.
const PARTS: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// What Hugging Face calls a tensor that GGUF calls `name`.
pub(super) fn hugging_face_name(name: &str) -> Option<String> {
    Some(match name {
        "token_embd.weight" => "model.embed_tokens.weight".to_string(),
        "output_norm.weight" => "model.norm.weight".to_string(),
        "output.weight" => "lm_head.weight".to_string(),
        _ => {
            let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
            let (part, suffix) = part.rsplit_once('.')?;
            let (name, _) = PARTS.iter().find(|(_, gguf)| *gguf == part)?;
            format!("model.layers.{layer}.{name}.{suffix}")
        }
    })
}

/// Tensor names: Hugging Face's or GGUF's.
struct Names {
    embedding: String,
    norm: String,
    head: String,
    gguf: bool,
    layers: String,
}

impl Names {
    fn new(loader: &Loader<'_>) -> Self {
        if loader.is_gguf() {
            return Self {
                embedding: "token_embd.weight".into(),
                norm: "output_norm.weight".into(),
                head: "output.weight".into(),
                gguf: true,
                layers: "blk".into(),
            };
        }
        // A base model saved on its own lacks the prefix.
        let prefix = if loader.has("embed_tokens.weight") { "" } else { "model." };
        Self {
            embedding: format!("{prefix}embed_tokens.weight"),
            norm: format!("{prefix}norm.weight"),
            head: "lm_head.weight".into(),
            gguf: false,
            layers: format!("{prefix}layers"),
        }
    }

    fn of(&self, layer: usize, part: &str) -> String {
        let gguf = PARTS.iter().find(|(name, _)| self.gguf && *name == part).map(|(_, gguf)| *gguf);
        format!("{}.{layer}.{}", self.layers, gguf.unwrap_or(part))
    }
}

/// The decoder and the head, `[vocabulary, d]`.
pub(super) fn load(loader: &Loader<'_>, config: &ModelConfig) -> Result<(Stack, Arc<Matrix>)> {
    let names = Names::new(loader);
    let (width, vocabulary) = (config.hidden_size, config.vocab_size);
    let embedding = loader.matrix(&names.embedding, vocabulary, width, Orientation::RowPerOutput)?;
    // GGUF says tied by leaving the head out.
    let is_tied = if names.gguf { !loader.has(&names.head) } else { config.tie_word_embeddings };
    let head = if is_tied {
        Arc::clone(&embedding)
    } else {
        loader.matrix(&names.head, vocabulary, width, Orientation::RowPerOutput)?
    };
    let layers = (0..config.num_hidden_layers).map(|index| layer(loader, config, &names, index).map(Arc::new));
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let norm = loader.rms_norm(&names.norm, width, config.norm_epsilon)?;

    let mut frequencies = config.rotary_frequencies();
    if loader.has("rope_freqs.weight") {
        let divisors = loader.numbers("rope_freqs.weight", frequencies.len())?;
        frequencies.iter_mut().zip(divisors).for_each(|(frequency, divisor)| *frequency /= divisor);
    }
    let is_permuted = names.gguf && config.family == Family::Llama;
    let pairing = if is_permuted { Pairing::Neighbours } else { Pairing::Halves };
    let rotary = Some(RotaryTable::new(loader.device, loader.dtype().accumulator(), pairing, frequencies));
    let (heads, activation) = (config.heads(), config.activation);
    Ok((Stack { embedding, positions: None, layers, norm, rotary, bias: None, heads, activation }, head))
}

fn layer(loader: &Loader<'_>, config: &ModelConfig, names: &Names, index: usize) -> Result<Layer> {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let linear = |name: &str, outputs, inputs, has_bias| {
        loader.linear(&names.of(index, name), outputs, inputs, Orientation::RowPerOutput, has_bias)
    };
    let norm = |name: &str| {
        let name = format!("{}.weight", names.of(index, name));
        loader.rms_norm(&name, width, config.norm_epsilon)
    };
    let attention = Attention {
        norm: norm("input_layernorm")?,
        query: linear("self_attn.q_proj", queries, width, config.qkv_bias)?,
        key: linear("self_attn.k_proj", keys, width, config.qkv_bias)?,
        value: linear("self_attn.v_proj", keys, width, config.qkv_bias)?,
        output: linear("self_attn.o_proj", width, queries, config.output_bias)?,
    };
    let mlp = Mlp {
        norm: norm("post_attention_layernorm")?,
        gate: Some(linear("mlp.gate_proj", inner, width, config.mlp_bias)?),
        up: linear("mlp.up_proj", inner, width, config.mlp_bias)?,
        down: linear("mlp.down_proj", width, inner, config.mlp_bias)?,
    };
    Ok(Layer { attention, cross: None, mlp: Arc::new(mlp) })
}
