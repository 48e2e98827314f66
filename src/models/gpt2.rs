//! GPT-2: LayerNorm, learned positions, a fused projection to q, k and v, a plain MLP.

use super::config::ModelConfig;
use super::load::{DEVIATION, Loader};
use super::stack::{Attention, Layer, Mlp, Stack};
use crate::error::Result;
use crate::nn::Linear;
use crate::weights::{Matrix, Orientation};
use std::sync::Arc;

/// How a matrix begins: those that are added to the stream are smaller the more layers there are (Radford et al. 2019 §2.3).
pub(super) fn deviation(config: &ModelConfig, name: &str) -> f64 {
    let is_residual = name.contains("c_proj");
    DEVIATION / if is_residual { (2.0 * config.num_hidden_layers as f64).sqrt() } else { 1.0 }
}

/// The decoder and the head, `[vocabulary, d]`.
pub(super) fn load(loader: &Loader<'_>, config: &ModelConfig) -> Result<(Stack, Arc<Matrix>)> {
    let (width, vocabulary) = (config.hidden_size, config.vocab_size);
    // Files on the hub come with and without the prefix.
    let prefix = if loader.has("wte.weight") { "" } else { "transformer." };
    let name = |hugging_face: &str, gguf: &str| {
        if loader.is_gguf() { gguf.to_string() } else { format!("{prefix}{hugging_face}") }
    };
    let table = |name: String, rows| loader.matrix(&name, rows, width, Orientation::RowPerOutput);
    let embedding = table(name("wte.weight", "token_embd.weight"), vocabulary)?;
    let positions = Some(table(name("wpe.weight", "position_embd.weight"), config.max_position_embeddings)?);
    let head_name = if loader.is_gguf() { "output.weight" } else { "lm_head.weight" };
    let is_tied = if loader.is_gguf() { !loader.has(head_name) } else { config.tie_word_embeddings };
    let head = if is_tied { Arc::clone(&embedding) } else { table(head_name.to_string(), vocabulary)? };
    let layers = (0..config.num_hidden_layers)
        .map(|index| {
            let name = |hf: &str, gguf: &str| name(&format!("h.{index}.{hf}"), &format!("blk.{index}.{gguf}"));
            layer(loader, config, &name).map(Arc::new)
        })
        .collect::<Result<Vec<_>>>()?;
    let norm = loader.layer_norm(&name("ln_f", "output_norm"), width, config.norm_epsilon)?;
    let (heads, activation) = (config.heads(), config.activation);
    Ok((Stack { embedding, positions, layers, norm, rotary: None, bias: None, heads, activation }, head))
}

fn layer(loader: &Loader<'_>, config: &ModelConfig, name: &dyn Fn(&str, &str) -> String) -> Result<Layer> {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let orientation = if loader.is_gguf() { Orientation::RowPerOutput } else { Orientation::RowPerInput };
    let fused = name("attn.c_attn", "attn_qkv");
    let weight = loader.fused(&format!("{fused}.weight"), 3 * width, width, orientation)?;
    let bias = loader.numbers(&format!("{fused}.bias"), 3 * width)?;
    let part = |index: usize| -> Result<Linear> {
        let outputs = index * width..(index + 1) * width;
        let part = loader.hold(&format!("{fused}.weight"), weight.outputs(outputs.clone())?)?;
        Ok(Linear { weight: Arc::new(part), bias: Some(loader.part(&format!("{fused}.bias"), &bias, outputs)?) })
    };
    let linear = |hf, gguf, outputs, inputs| loader.linear(&name(hf, gguf), outputs, inputs, orientation, true);
    let attention = Attention {
        norm: loader.layer_norm(&name("ln_1", "attn_norm"), width, config.norm_epsilon)?,
        query: part(0)?,
        key: part(1)?,
        value: part(2)?,
        output: linear("attn.c_proj", "attn_output", width, width)?,
    };
    let mlp = Mlp {
        norm: loader.layer_norm(&name("ln_2", "ffn_norm"), width, config.norm_epsilon)?,
        gate: None,
        up: linear("mlp.c_fc", "ffn_up", inner, width)?,
        down: linear("mlp.c_proj", "ffn_down", width, inner)?,
    };
    Ok(Layer { attention, cross: None, mlp: Arc::new(mlp) })
}
