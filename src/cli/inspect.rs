//! `softprompt inspect`: what a file holds, and what a prompt's rows are near to.

use super::options::ComputeArgs;
use super::{Terminal, printable};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::inspect::{Neighbour, neighbours};
use crate::models::{MODEL_FILE, ModelConfig};
use crate::prompt::PromptFile;
use crate::prompt::file::{PROMPT_FILE, is_prompt_tensor};
use crate::storage;
use crate::weights::{Weights, locate::locate};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct InspectArgs {
    /// A model, prompt or checkpoint; with --model, a prompt whose nearest tokens are wanted
    #[arg(value_name = "PATH", required_unless_present = "prompt")]
    path: Option<PathBuf>,
    /// The same as PATH, for a prompt
    #[arg(long, value_name = "PATH", conflicts_with = "path")]
    prompt: Option<PathBuf>,
    /// The model in whose vocabulary to look for a prompt's neighbours
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Neighbours of each row
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    top: u16,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(super) fn run(args: &InspectArgs, terminal: &Terminal) -> Result<()> {
    let Some(path) = args.path.as_ref().or(args.prompt.as_ref()) else { return Ok(()) };
    if let Some(model) = &args.model {
        return nearest(args, path, model, terminal);
    }
    let (json, text) = if path.join("state.json").is_file() {
        checkpoint(path)?
    } else if args.prompt.is_some() || is_prompt(path)? {
        describe_prompt(&PromptFile::read(path)?)
    } else {
        model(path)?
    };
    terminal.result(&json, &printable(&text))
}

/// Whether what lies at `path` is meant as a prompt. A model is told by its headers: it may be larger than memory.
fn is_prompt(path: &Path) -> Result<bool> {
    if path.is_dir() {
        let has = |name: &str| path.join(name).exists();
        return Ok(has(PROMPT_FILE) || has("adapter_config.json") || !(has("config.json") || holds_weights(path)));
    }
    let start = storage::read_start(path, 8);
    if !path.exists() || start.starts_with(b"GGUF") || path.extension().is_some_and(|extension| extension == "gguf") {
        return Ok(false);
    }
    if start.starts_with(b"\x93NUMPY") || start.starts_with(b"PK") || start.starts_with(b"\x80") {
        return Ok(true);
    }
    Ok(Weights::open(path)?.names().any(is_prompt_tensor))
}

fn holds_weights(folder: &Path) -> bool {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    names.filter_map(|path| path.extension().map(|end| end == "gguf" || end == "safetensors")).any(|is_one| is_one)
}

fn describe_prompt(prompt: &PromptFile) -> (Value, String) {
    let values = prompt.values.to_vec::<f64>();
    let norms: Vec<f64> =
        values.chunks_exact(prompt.cols).map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).collect();
    let largest = values.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    let mean = norms.iter().sum::<f64>() / norms.len() as f64;
    let dtype = prompt.values.dtype().to_string();
    let json = json!({
        "kind": "prompt", "num_virtual_tokens": prompt.rows, "token_dim": prompt.cols, "dtype": dtype,
        "sha256": prompt.hash(), "row_norms": norms, "max_abs": largest, "meta": prompt.meta,
    });
    let meta: Vec<String> = prompt.meta.iter().map(|(key, value)| format!("  {key}: {value}")).collect();
    let text = format!(
        "prompt of {} rows, width {}, {dtype}\nsha256 {}\nmean row norm {mean:.4}, largest value {largest:.4}\n{}",
        prompt.rows,
        prompt.cols,
        prompt.hash(),
        meta.join("\n")
    );
    (json, text)
}

fn checkpoint(path: &Path) -> Result<(Value, String)> {
    let found = Checkpoint::load(path)?;
    let (prompt, text) = match &found.prompt {
        Some(prompt) => describe_prompt(prompt),
        None => (Value::Null, format!("trained weights: inspect {}", path.join(MODEL_FILE).display())),
    };
    let best = found.best.as_ref().map(|best| json!({"metric": best.metric, "value": best.value, "step": best.step}));
    let buffers: Vec<&str> = found.optimizer.iter().map(|(name, _)| name.as_str()).collect();
    let json = json!({
        "kind": "checkpoint", "step": found.step, "cursor": found.cursor, "best": best, "optimizer": buffers,
        "prompt": prompt,
    });
    let buffers =
        if buffers.is_empty() { String::new() } else { format!(", optimizer buffers {}", buffers.join(", ")) };
    Ok((json, format!("checkpoint after step {}{buffers}\n{text}", found.step)))
}

fn model(path: &Path) -> Result<(Value, String)> {
    let path = locate(&path.to_string_lossy())?;
    let weights = Weights::open(&path)?;
    let mut parameters = 0usize;
    let mut lines = Vec::new();
    let mut tensors = Vec::new();
    let mut by_type: BTreeMap<String, usize> = BTreeMap::new();
    for (info, file) in weights.infos() {
        let count = info.shape.iter().fold(1usize, |n, &length| n.saturating_mul(length));
        parameters = parameters.saturating_add(count);
        let of_type: &mut usize = by_type.entry(info.dtype.clone()).or_default();
        *of_type = of_type.saturating_add(count);
        lines.push(format!("{:<48} {:<6} {:?}", info.name, info.dtype, info.shape));
        tensors.push(json!({
            "name": info.name, "dtype": info.dtype, "shape": info.shape, "bytes": info.range.len(),
            "file": file.file_name().map(|name| name.to_string_lossy().into_owned()),
        }));
    }
    let mut metadata: serde_json::Map<String, Value> =
        weights.metadata().iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    if let Some(gguf) = weights.gguf() {
        metadata
            .extend(gguf.keys().filter_map(|key| Some((key.to_string(), json!(shown(&gguf.get(key)?.to_string()))))));
    }
    let types: Vec<String> = by_type.iter().map(|(name, count)| format!("{name} {count}")).collect();
    lines.push(format!("{} tensors, {parameters} parameters ({})", tensors.len(), types.join(", ")));
    // A header can be looked at even where the model cannot be run.
    let config = ModelConfig::read(&path, &weights);
    lines.push(match &config {
        Ok(config) => format!(
            "{}: {} layers of width {}, {} heads of {} ({} for keys), {} tokens, {} positions",
            config.family.name(),
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.head_dim,
            config.num_key_value_heads,
            config.vocab_size,
            config.max_position_embeddings
        ),
        Err(error) => format!("cannot be run: {error}"),
    });
    let config = match &config {
        Ok(config) => json!({
            "family": config.family.name(), "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim, "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_position_embeddings,
            "tie_word_embeddings": config.tie_word_embeddings,
        }),
        Err(error) => json!({"error": error.to_string()}),
    };
    lines.extend(metadata.iter().map(|(key, value)| format!("  {key}: {value}")));
    let json = json!({
        "kind": "model", "path": path.display().to_string(), "parameters": parameters, "parameters_by_dtype": by_type,
        "config": config, "tensors": tensors,
        "metadata": metadata,
    });
    Ok((json, lines.join("\n")))
}

fn shown(value: &str) -> String {
    const LONGEST: usize = 200;
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_string(),
    }
}

fn nearest(args: &InspectArgs, path: &Path, model: &Path, terminal: &Terminal) -> Result<()> {
    let prompt = PromptFile::read(path)?;
    let model = args.compute.open(model)?;
    prompt.expect_width(model.config().hidden_size, model.name()).map_err(|error| error.in_file(path))?;
    let values = prompt.values.to_vec::<f64>();
    let (rows, mean_norm) = model.device().run(|| neighbours(&model, &values, args.top.into()))?;
    let mut lines = vec![format!("mean norm of the vocabulary's embeddings {mean_norm:.4}")];
    for (index, row) in rows.iter().enumerate() {
        let near = row.nearest.iter().map(|token| {
            let name = token.token.as_ref().map_or_else(|| token.id.to_string(), |text| format!("{text:?}"));
            format!("{name} {:.3}{}", token.distance, mark(token))
        });
        lines.push(format!("{index:>4}  norm {:<9.4} {}", row.norm, near.collect::<Vec<_>>().join("  ")));
    }
    let mean_row = rows.iter().map(|row| row.norm).sum::<f64>() / rows.len().max(1) as f64;
    lines.insert(1, format!("mean norm of the prompt's rows {mean_row:.4}"));
    terminal.result(&json!({"mean_embedding_norm": mean_norm, "rows": rows}), &lines.join("\n"))
}

fn mark(token: &Neighbour) -> &'static str {
    match (token.is_special, token.is_unused) {
        (true, _) => " (special)",
        (false, true) => " (unused)",
        (false, false) => "",
    }
}
