//! A Llama or a T5 in Hugging Face layout as a GGUF file, as llama.cpp's converter writes it: other names, and of a Llama the
//! rows of q and k in the order of its rotation.

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

    let dim = (number("hidden_size") / number("num_attention_heads")) as usize;
    write_file(
        path,
        &entries,
        folder,
        |name| Some(gguf_name(name)),
        |name, shape, values| {
            let is_rotated = name.contains("q_proj") || name.contains("k_proj");
            if is_rotated { permuted(&values, shape[1], dim) } else { values }
        },
    );
}

const T5_NAMES: [(&str, &str); 16] = [
    ("SelfAttention.q", "attn_q"),
    ("SelfAttention.k", "attn_k"),
    ("SelfAttention.v", "attn_v"),
    ("SelfAttention.o", "attn_o"),
    ("SelfAttention.relative_attention_bias", "attn_rel_b"),
    ("0.layer_norm", "attn_norm"),
    ("EncDecAttention.q", "cross_attn_q"),
    ("EncDecAttention.k", "cross_attn_k"),
    ("EncDecAttention.v", "cross_attn_v"),
    ("EncDecAttention.o", "cross_attn_o"),
    ("DenseReluDense.wi_0", "ffn_gate"),
    ("DenseReluDense.wi_1", "ffn_up"),
    ("DenseReluDense.wi", "ffn_up"),
    ("DenseReluDense.wo", "ffn_down"),
    ("encoder.final_layer_norm.weight", "enc.output_norm.weight"),
    ("decoder.final_layer_norm.weight", "dec.output_norm.weight"),
];

/// None of tensors that no model uses.
fn t5_name(name: &str) -> Option<String> {
    let known = |part: &str| T5_NAMES.iter().find(|(hf, _)| *hf == part).map(|(_, gguf)| gguf.to_string());
    match name {
        "shared.weight" => return Some("token_embd.weight".to_string()),
        "lm_head.weight" => return Some("output.weight".to_string()),
        _ => (),
    }
    let Some((side, rest)) = name.split_once(".block.") else { return known(name) };
    let (layer, part) = rest.split_once(".layer.").unwrap();
    let part = part.strip_suffix(".weight").unwrap();
    let side = &side[..3];
    let gguf = match (side, part) {
        ("enc", "1.layer_norm") | ("dec", "2.layer_norm") => "ffn_norm".to_string(),
        ("dec", "1.layer_norm") => "cross_attn_norm".to_string(),
        _ => known(part).or_else(|| known(&part[2..]))?,
    };
    Some(format!("{side}.blk.{layer}.{gguf}.weight"))
}

/// Writes the golden T5 in `folder` to `path`, in f32.
pub fn write_t5(folder: &Path, path: &Path) {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let number = |key: &str, default: u64| config[key].as_u64().unwrap_or(default);
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut entries = vec![[text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("t5")].concat()];
    for (key, value) in [
        ("context_length", 512),
        ("embedding_length", number("d_model", 0)),
        ("feed_forward_length", number("d_ff", 0)),
        ("block_count", number("num_layers", 0)),
        ("decoder_block_count", number("num_decoder_layers", number("num_layers", 0))),
        ("attention.head_count", number("num_heads", 0)),
        ("attention.key_length", number("d_kv", 0)),
        ("attention.relative_buckets_count", number("relative_attention_num_buckets", 32)),
        ("decoder_start_token_id", number("decoder_start_token_id", 0)),
    ] {
        let value = (value as u32).to_le_bytes().to_vec();
        entries.push([text(&format!("t5.{key}")), 4u32.to_le_bytes().to_vec(), value].concat());
    }
    let epsilon = (config["layer_norm_epsilon"].as_f64().unwrap() as f32).to_le_bytes().to_vec();
    entries.push([text("t5.attention.layer_norm_rms_epsilon"), 6u32.to_le_bytes().to_vec(), epsilon].concat());
    write_file(path, &entries, folder, t5_name, |_, _, values| values);
}

/// Writes the tensors in `folder` behind metadata, named by `rename` and changed by `change`.
fn write_file(
    path: &Path,
    entries: &[Vec<u8>],
    folder: &Path,
    rename: impl Fn(&str) -> Option<String>,
    change: impl Fn(&str, &[usize], Vec<f64>) -> Vec<f64>,
) {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let file = Golden::read(&folder.join("model.safetensors"));
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    let names = file.names().into_iter().filter_map(|name| Some((rename(&name)?, name)));
    let names: Vec<_> = names.collect();
    for (renamed, name) in &names {
        let shape = file.shape(name);
        let values = change(name, &shape, file.numbers(name));
        infos.extend(text(renamed));
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
