//! `softprompt inspect`: what a file holds, and what a prompt's rows are near to.

use super::Terminal;
use super::options::ComputeArgs;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::inspect::neighbours;
use crate::prompt::PromptFile;
use crate::weights::{Weights, locate::locate};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct InspectArgs {
    /// A model, prompt or checkpoint; with --model, a prompt whose nearest tokens are wanted
    #[arg(value_name = "PATH")]
    path: PathBuf,
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
    if let Some(model) = &args.model {
        return nearest(args, model, terminal);
    }
    let (json, text) = if args.path.join("state.json").is_file() {
        checkpoint(&args.path)?
    } else if let Some(prompt) = read_prompt(&args.path)? {
        describe_prompt(&prompt)
    } else {
        model(&args.path)?
    };
    terminal.result(&json, &text)
}

/// The prompt at `path`, or nothing if it is rather a model.
fn read_prompt(path: &Path) -> Result<Option<PromptFile>> {
    match PromptFile::read(path) {
        Ok(prompt) => Ok(Some(prompt)),
        Err(error) => match locate(&path.to_string_lossy()).and_then(|path| Weights::open(&path)) {
            Ok(_) => Ok(None),
            // Neither: a model's error says more of a model's file, the prompt's of the others.
            Err(model_error) if looks_like_a_model(path) => Err(model_error),
            Err(_) => Err(error),
        },
    }
}

fn looks_like_a_model(path: &Path) -> bool {
    path.join("config.json").exists() || path.extension().is_some_and(|extension| extension == "gguf") || !path.exists()
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
    let (prompt, text) = describe_prompt(&found.prompt);
    let best = found.best.as_ref().map(|best| json!({"metric": best.metric, "value": best.value, "step": best.step}));
    let buffers: Vec<&str> = found.optimizer.iter().map(|(name, _)| name.as_str()).collect();
    let json = json!({
        "kind": "checkpoint", "step": found.step, "cursor": found.cursor, "best": best, "optimizer": buffers,
        "prompt": prompt,
    });
    Ok((json, format!("checkpoint after step {}, optimizer buffers {}\n{text}", found.step, buffers.join(", "))))
}

fn model(path: &Path) -> Result<(Value, String)> {
    let path = locate(&path.to_string_lossy())?;
    let weights = Weights::open(&path)?;
    let mut parameters = 0usize;
    let mut lines = Vec::new();
    let mut tensors = Vec::new();
    for (info, file) in weights.infos() {
        parameters += info.shape.iter().product::<usize>();
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
    lines.push(format!("{} tensors, {parameters} parameters", tensors.len()));
    lines.extend(metadata.iter().map(|(key, value)| format!("  {key}: {value}")));
    let json = json!({
        "kind": "model", "path": path.display().to_string(), "parameters": parameters, "tensors": tensors,
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

fn nearest(args: &InspectArgs, model: &Path, terminal: &Terminal) -> Result<()> {
    let prompt = PromptFile::read(&args.path)?;
    let model = args.compute.open(model)?;
    prompt.expect_width(model.config().hidden_size, model.name()).map_err(|error| error.in_file(&args.path))?;
    let values = prompt.values.to_vec::<f64>();
    let (rows, mean_norm) = model.device().run(|| neighbours(&model, &values, args.top.into()))?;
    let mut lines = vec![format!("mean norm of the vocabulary's embeddings {mean_norm:.4}")];
    for (index, row) in rows.iter().enumerate() {
        let near = row.nearest.iter().map(|token| {
            let name = token.token.as_ref().map_or_else(|| token.id.to_string(), |text| format!("{text:?}"));
            format!("{name} {:.3}{}", token.distance, if token.is_special { " (special)" } else { "" })
        });
        lines.push(format!("{index:>4}  norm {:<9.4} {}", row.norm, near.collect::<Vec<_>>().join("  ")));
    }
    terminal.result(&json!({"mean_embedding_norm": mean_norm, "rows": rows}), &lines.join("\n"))
}
