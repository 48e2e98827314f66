//! `softprompt import`: a prompt of another tool as one of ours.

use super::export::written;
use super::options::ComputeArgs;
use super::{Terminal, refuse_to_overwrite};
use crate::error::{Error, Place, Result};
use crate::prompt::PromptFile;
use crate::prompt::file::PROMPT_FILE;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// A PEFT adapter directory, or a .safetensors or .npy file
    #[arg(value_name = "PROMPT")]
    prompt: PathBuf,
    /// Where to write: a .safetensors file, or a directory, which gets prompt.safetensors
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
    let out = target(&args.out)?;
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

/// The file to write: `out` if its name says so, else one in the directory `out`.
fn target(out: &Path) -> Result<PathBuf> {
    match out.extension().and_then(OsStr::to_str).unwrap_or_default() {
        "safetensors" if !out.is_dir() => Ok(out.to_path_buf()),
        other @ ("npy" | "npz" | "bin" | "pt" | "pth" | "json" | "gguf") if !out.is_dir() => {
            Err(Error::usage(Place::file(out), "a .safetensors file or a directory", format!("a .{other} file"))
                .hint("`softprompt export` writes the forms of other tools"))
        }
        _ => Ok(out.join(PROMPT_FILE)),
    }
}
