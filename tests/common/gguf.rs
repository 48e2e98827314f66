//! A Llama in Hugging Face layout as a GGUF file, as llama.cpp's converter writes it: other names, and the rows of q and k
//! in the order of its rotation.

use super::Golden;
use serde_json::Value;
use std::fs;
use std::path::Path;

const NAMES: [(&str, &str); 9] = [
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

fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_string(),
        "model.norm.weight" => return "output_norm.weight".to_string(),
        "lm_head.weight" => return "output.weight".to_string(),
        _ => (),
    }
    let (layer, part) = name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let part = part.strip_suffix(".weight").unwrap();
    let (_, gguf) = NAMES.iter().find(|(hf, _)| *hf == part).unwrap();
    format!("blk.{layer}.{gguf}.weight")
}

/// Row `[half, pair]` of a head becomes row `[pair, half]`.
fn permuted(values: &[f64], cols: usize, dim: usize) -> Vec<f64> {
    let from = |row: usize| row / dim * dim + row % dim % 2 * (dim / 2) + row % dim / 2;
    (0..values.len() / cols).flat_map(|row| &values[from(row) * cols..][..cols]).copied().collect()
}

/// Writes the golden model in `folder` to `path`, in f32.
pub fn write(folder: &Path, path: &Path) {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap();
    let theta = config["rope_parameters"]["rope_theta"].as_f64().unwrap_or(10_000.0);
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut entries = vec![[text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("llama")].concat()];
    for (key, value) in [
        ("embedding_length", number("hidden_size")),
        ("feed_forward_length", number("intermediate_size")),
        ("block_count", number("num_hidden_layers")),
        ("attention.head_count", number("num_attention_heads")),
        ("attention.head_count_kv", number("num_key_value_heads")),
        ("context_length", number("max_position_embeddings")),
    ] {
        entries.push(
            [text(&format!("llama.{key}")), 4u32.to_le_bytes().to_vec(), (value as u32).to_le_bytes().to_vec()]
                .concat(),
        );
    }
    let epsilon = config["rms_norm_eps"].as_f64().unwrap();
    for (key, value) in [("attention.layer_norm_rms_epsilon", epsilon), ("rope.freq_base", theta)] {
        entries.push(
            [text(&format!("llama.{key}")), 6u32.to_le_bytes().to_vec(), (value as f32).to_le_bytes().to_vec()]
                .concat(),
        );
    }

    let file = Golden::read(&folder.join("model.safetensors"));
    let dim = (number("hidden_size") / number("num_attention_heads")) as usize;
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    let names = file.names();
    for name in &names {
        let (shape, mut values) = (file.shape(name), file.numbers(name));
        if name.contains("q_proj") || name.contains("k_proj") {
            values = permuted(&values, shape[1], dim);
        }
        infos.extend(text(&gguf_name(name)));
        infos.extend((shape.len() as u32).to_le_bytes());
        infos.extend(shape.iter().rev().flat_map(|&side| (side as u64).to_le_bytes()));
        infos.extend(0u32.to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());
        data.extend(values.iter().flat_map(|&value| (value as f32).to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes(), &(names.len() as u64).to_le_bytes()].concat();
    bytes.extend((entries.len() as u64).to_le_bytes());
    bytes.extend(entries.concat());
    bytes.extend(infos);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}
