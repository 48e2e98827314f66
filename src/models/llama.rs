//! Llama and its kin (SmolLM2, Mistral, TinyLlama, Qwen2): RMSNorm, rotary positions, grouped queries, gated MLP.

use super::config::{Family, ModelConfig};
use super::{Step, load::Loader};
use crate::error::Result;
use crate::indices::Indices;
use crate::layout::Layout;
use crate::nn::{Linear, Norm, RotaryTable};
use crate::ops::{self, Activation, Pairing, attention::Heads};
use crate::tape::{Tape, Var};
use crate::weights::{Matrix, Orientation};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Llama {
    embedding: Arc<Matrix>,
    layers: Vec<Layer>,
    norm: Norm,
    rotary: RotaryTable,
    heads: Heads,
    activation: Activation,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    mlp_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Tensor names: Hugging Face's and GGUF's.
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

    fn of(&self, layer: usize, hugging_face: &str, gguf: &str) -> String {
        format!("{}.{layer}.{}", self.layers, if self.gguf { gguf } else { hugging_face })
    }
}

impl Llama {
    pub(super) fn load(loader: &Loader<'_>, config: &ModelConfig) -> Result<(Self, Arc<Matrix>)> {
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
        let layers = (0..config.num_hidden_layers).map(|layer| Layer::load(loader, config, &names, layer));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let norm = loader.rms_norm(&names.norm, width, config.norm_epsilon)?;

        let mut frequencies = config.rotary_frequencies();
        if loader.has("rope_freqs.weight") {
            let divisors = loader.numbers("rope_freqs.weight", frequencies.len())?;
            frequencies.iter_mut().zip(divisors).for_each(|(frequency, divisor)| *frequency /= divisor);
        }
        let is_permuted = names.gguf && config.family == Family::Llama;
        let pairing = if is_permuted { Pairing::Neighbours } else { Pairing::Halves };
        let rotary = RotaryTable::new(loader.device, loader.dtype().accumulator(), pairing, frequencies);
        let llama = Self { embedding, layers, norm, rotary, heads: config.heads(), activation: config.activation };
        Ok((llama, head))
    }

    pub(super) fn embedding(&self) -> &Matrix {
        &self.embedding
    }

    pub(super) fn hidden(
        &self,
        tape: &mut Tape,
        prompt: &Var,
        layout: &Layout,
        mut step: Option<Step<'_>>,
    ) -> Result<Var> {
        let rotation = self.rotary.up_to(layout.positions.iter().max().map_or(0, |last| last + 1))?;
        let positions = Indices::from(layout.positions.as_slice());
        let scored = Indices::from(layout.scored_rows.as_slice());
        let scored_positions: Indices = scored.iter().map(|&row| positions[row]).collect();
        let (all, trimmed) = (Arc::new(layout.all.clone()), Arc::new(layout.scored.clone()));

        let mut x = ops::embedding(tape, prompt, &self.embedding, &layout.ids, None)?;
        let first = self.layers.first().map_or(&self.norm, |layer| &layer.attention_norm);
        let mut normed = first.forward(tape, &x)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(index + 1);
            let key = layer.key.forward(tape, &normed)?;
            let mut key = ops::rope(tape, key, &rotation, &positions)?;
            let mut value = layer.value.forward(tape, &normed)?;
            if let Some(step) = &mut step {
                (key, value) = step.extend(index, &key, &value)?;
            }
            // Only scored rows are read after the last layer, so only they ask.
            let (asking, positions, segments) = if next.is_none() {
                x = ops::rows(tape, &x, &scored)?;
                (ops::rows(tape, &normed, &scored)?, &scored_positions, &trimmed)
            } else {
                (normed, &positions, &all)
            };
            let query = layer.query.forward(tape, &asking)?;
            drop(asking);
            let query = ops::rope(tape, query, &rotation, positions)?;
            let attended = ops::attention(tape, &query, &key, &value, self.heads, segments)?;
            drop((query, key, value));
            let attended = layer.output.forward(tape, &attended)?;
            (x, normed) = layer.mlp_norm.after_add(tape, &x, attended)?;
            let out = layer.mlp(tape, normed, self.activation)?;
            let norm = next.map_or(&self.norm, |next| &next.attention_norm);
            (x, normed) = norm.after_add(tape, &x, out)?;
        }
        Ok(normed)
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, config: &ModelConfig, names: &Names, layer: usize) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let linear = |name: &str, gguf: &str, outputs, inputs, has_bias| {
            loader.linear(&names.of(layer, name, gguf), outputs, inputs, Orientation::RowPerOutput, has_bias)
        };
        let norm = |name: &str, gguf: &str| {
            let name = format!("{}.weight", names.of(layer, name, gguf));
            loader.rms_norm(&name, width, config.norm_epsilon)
        };
        Ok(Self {
            attention_norm: norm("input_layernorm", "attn_norm")?,
            query: linear("self_attn.q_proj", "attn_q", queries, width, config.qkv_bias)?,
            key: linear("self_attn.k_proj", "attn_k", keys, width, config.qkv_bias)?,
            value: linear("self_attn.v_proj", "attn_v", keys, width, config.qkv_bias)?,
            output: linear("self_attn.o_proj", "attn_output", width, queries, config.output_bias)?,
            mlp_norm: norm("post_attention_layernorm", "ffn_norm")?,
            gate: linear("mlp.gate_proj", "ffn_gate", inner, width, config.mlp_bias)?,
            up: linear("mlp.up_proj", "ffn_up", inner, width, config.mlp_bias)?,
            down: linear("mlp.down_proj", "ffn_down", width, inner, config.mlp_bias)?,
        })
    }

    fn mlp(&self, tape: &mut Tape, normed: Var, activation: Activation) -> Result<Var> {
        let gate = self.gate.forward(tape, &normed)?;
        let up = self.up.forward(tape, &normed)?;
        drop(normed);
        let inner = ops::gated(tape, &gate, &up, activation)?;
        drop((gate, up));
        self.down.forward(tape, &inner)
    }
}
