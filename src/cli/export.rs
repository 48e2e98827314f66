//! `softprompt export`: a prompt in the form that another tool reads.

use super::{Terminal, refuse_to_overwrite};
use crate::error::Result;
use crate::models::ModelConfig;
use crate::prompt::{PeftConfig, PeftInit, PeftTask, PromptFile};
use crate::weights::{Weights, locate::locate};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// A run's best/, final/ or initial/, a checkpoint, or any prompt file
    #[arg(value_name = "PROMPT")]
    prompt: PathBuf,
    /// peft: an adapter directory; npy: NumPy; prompt_embeds: safetensors as vLLM takes it; safetensors: our own
    #[arg(long, value_parser = ["peft", "npy", "prompt_embeds", "safetensors"])]
    format: String,
    /// Where to write: a directory for peft, else a file
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// The model, whose layers and heads PEFT's configuration names; without it PEFT finds them when it loads the adapter
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The base model's name in PEFT's configuration; without it the one in the prompt's file, or --model
    #[arg(long, value_name = "NAME")]
    base_model: Option<String>,
    /// Write over an existing file
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &ExportArgs, terminal: &Terminal) -> Result<()> {
    refuse_to_overwrite(&args.out, args.force)?;
    let prompt = PromptFile::read(&args.prompt)?;
    let config = match &args.model {
        Some(model) => {
            let path = locate(&model.to_string_lossy())?;
            let config = ModelConfig::read(&path, &Weights::open(&path)?)?;
            prompt.expect_width(config.hidden_size, &model.display().to_string())?;
            Some(config)
        }
        None => None,
    };
    match args.format.as_str() {
        "npy" => prompt.write_npy(&args.out)?,
        "prompt_embeds" => prompt.write_safetensors(&args.out)?,
        "peft" => {
            let named =
                args.base_model.clone().or_else(|| args.model.as_ref().map(|model| model.display().to_string()));
            let peft = PeftConfig {
                base_model_name_or_path: named.or_else(|| prompt.meta.get("base_model").cloned()),
                revision: None,
                task_type: config
                    .as_ref()
                    .map(PeftTask::of_model)
                    .or_else(|| PeftTask::of_prompt(&prompt))
                    .unwrap_or_default(),
                num_layers: config.as_ref().map(|config| config.num_hidden_layers),
                num_attention_heads: config.as_ref().map(|config| config.num_attention_heads),
                init: PeftInit::Random,
            };
            prompt.write_peft_adapter(&args.out, &peft)?;
        }
        _ => prompt.write(&args.out)?,
    }
    written(&prompt, &args.out, terminal)
}

pub(super) fn written(prompt: &PromptFile, out: &std::path::Path, terminal: &Terminal) -> Result<()> {
    let json = json!({
        "out": out.display().to_string(), "num_virtual_tokens": prompt.rows, "token_dim": prompt.cols,
        "sha256": prompt.hash(),
    });
    let text = format!("{} rows of width {} written to {}", prompt.rows, prompt.cols, out.display());
    terminal.result(&json, &text)
}
