//! `softprompt import`: a prompt of another tool as one of ours.

use super::export::written;
use super::options::ComputeArgs;
use super::{Terminal, refuse_to_overwrite};
use crate::error::Result;
use crate::prompt::PromptFile;
use crate::prompt::file::PROMPT_FILE;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// A PEFT adapter directory, or a .safetensors or .npy file
    #[arg(value_name = "PROMPT")]
    prompt: PathBuf,
    /// Where to write: a directory gets prompt.safetensors
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// The model that the prompt must fit
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Write over an existing file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(super) fn run(args: &ImportArgs, terminal: &Terminal) -> Result<()> {
    let is_file = args.out.extension().is_some_and(|extension| extension == "safetensors");
    let out = if is_file { args.out.clone() } else { args.out.join(PROMPT_FILE) };
    refuse_to_overwrite(&out, args.force)?;
    let mut prompt = PromptFile::read(&args.prompt)?;
    if let Some(model) = &args.model {
        let opened = args.compute.open(model)?;
        prompt.expect_width(opened.config().hidden_size, opened.name()).map_err(|error| error.in_file(&args.prompt))?;
        prompt.meta.insert("base_model".into(), opened.name().to_string());
    }
    prompt.write(&out)?;
    written(&prompt, &out, terminal)
}
