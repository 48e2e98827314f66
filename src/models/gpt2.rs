//! GPT-2: LayerNorm, learned positions, a fused projection to q, k and v, a plain MLP.

use super::config::ModelConfig;
use super::{Step, load::Loader};
use crate::error::Result;
use crate::indices::Indices;
use crate::layout::Layout;
use crate::nn::{Linear, Norm};
use crate::ops::{self, Activation, Positions, attention::Heads};
use crate::tape::{Tape, Var};
use crate::weights::{Matrix, Orientation};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Gpt2 {
    embedding: Arc<Matrix>,
    positions: Arc<Matrix>,
    layers: Vec<Layer>,
    norm: Norm,
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
    up: Linear,
    down: Linear,
}

impl Gpt2 {
    pub(super) fn load(loader: &Loader<'_>, config: &ModelConfig) -> Result<(Self, Arc<Matrix>)> {
        let (width, vocabulary) = (config.hidden_size, config.vocab_size);
        // Files on the hub come with and without the prefix.
        let prefix = if loader.has("wte.weight") { "" } else { "transformer." };
        let name = |hugging_face: &str, gguf: &str| {
            if loader.is_gguf() { gguf.to_string() } else { format!("{prefix}{hugging_face}") }
        };
        let table = |name: String, rows| loader.matrix(&name, rows, width, Orientation::RowPerOutput);
        let embedding = table(name("wte.weight", "token_embd.weight"), vocabulary)?;
        let positions = table(name("wpe.weight", "position_embd.weight"), config.max_position_embeddings)?;
        let head_name = if loader.is_gguf() { "output.weight" } else { "lm_head.weight" };
        let is_tied = if loader.is_gguf() { !loader.has(head_name) } else { config.tie_word_embeddings };
        let head = if is_tied { Arc::clone(&embedding) } else { table(head_name.to_string(), vocabulary)? };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                Layer::load(loader, config, &|hf, gguf| {
                    name(&format!("h.{layer}.{hf}"), &format!("blk.{layer}.{gguf}"))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let norm = loader.layer_norm(&name("ln_f", "output_norm"), width, config.norm_epsilon)?;
        let (heads, activation) = (config.heads(), config.activation);
        Ok((Self { embedding, positions, layers, norm, heads, activation }, head))
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
        let scored = Indices::from(layout.scored_rows.as_slice());
        let (all, trimmed) = (Arc::new(layout.all.clone()), Arc::new(layout.scored.clone()));
        let positions = Positions { table: &self.positions, of_row: &layout.positions };
        let mut x = ops::embedding(tape, prompt, &self.embedding, &layout.ids, Some(positions))?;
        let first = self.layers.first().map_or(&self.norm, |layer| &layer.attention_norm);
        let mut normed = first.forward(tape, &x)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(index + 1);
            let mut key = layer.key.forward(tape, &normed)?;
            let mut value = layer.value.forward(tape, &normed)?;
            if let Some(step) = &mut step {
                (key, value) = step.extend(index, &key, &value)?;
            }
            // Only scored rows are read after the last layer, so only they ask.
            let (asking, segments) = if next.is_none() {
                x = ops::rows(tape, &x, &scored)?;
                (ops::rows(tape, &normed, &scored)?, &trimmed)
            } else {
                (normed, &all)
            };
            let query = layer.query.forward(tape, &asking)?;
            drop(asking);
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
    fn load(loader: &Loader<'_>, config: &ModelConfig, name: &dyn Fn(&str, &str) -> String) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let orientation = if loader.is_gguf() { Orientation::RowPerOutput } else { Orientation::RowPerInput };
        let fused = name("attn.c_attn", "attn_qkv");
        let weight = loader.fused(&format!("{fused}.weight"), 3 * width, width, orientation)?;
        let bias = loader.numbers(&format!("{fused}.bias"), 3 * width)?;
        let part = |index: usize| -> Result<Linear> {
            let outputs = index * width..(index + 1) * width;
            let bias = Some(loader.row(&bias[outputs.clone()])?);
            Ok(Linear { weight: Arc::new(loader.hold(weight.outputs(outputs)?)?), bias })
        };
        let linear = |hf, gguf, outputs, inputs| loader.linear(&name(hf, gguf), outputs, inputs, orientation, true);
        Ok(Self {
            attention_norm: loader.layer_norm(&name("ln_1", "attn_norm"), width, config.norm_epsilon)?,
            query: part(0)?,
            key: part(1)?,
            value: part(2)?,
            output: linear("attn.c_proj", "attn_output", width, width)?,
            mlp_norm: loader.layer_norm(&name("ln_2", "ffn_norm"), width, config.norm_epsilon)?,
            up: linear("mlp.c_fc", "ffn_up", inner, width)?,
            down: linear("mlp.c_proj", "ffn_down", width, inner)?,
        })
    }

    fn mlp(&self, tape: &mut Tape, normed: Var, activation: Activation) -> Result<Var> {
        let up = self.up.forward(tape, &normed)?;
        drop(normed);
        let inner = ops::activation(tape, &up, activation)?;
        drop(up);
        self.down.forward(tape, &inner)
    }
}
