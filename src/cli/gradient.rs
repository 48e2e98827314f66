//! `softprompt gradient`: one batch's mean loss and prompt gradient, to compare with any other framework.

use super::options::{DataArgs, ModelArgs, left_out, prompt_for};
use super::{Terminal, refuse_to_overwrite};
use crate::error::{Error, Place, Result};
use crate::step::Batch;
use crate::storage::atomic_write;
use crate::tensor::with_element;
use crate::tensorfile::{NamedTensor, TensorFile};
use crate::values::Values;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct GradientArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt: a .safetensors or .npy file, a PEFT adapter, a run or a checkpoint
    #[arg(long, value_name = "PATH")]
    prompt: PathBuf,
    /// All rows of this .jsonl, .csv or .tsv file are one batch
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where to write, as safetensors: `loss` [1] (F64), `grad` [P, d] (in --dtype), `nll` [rows] (F64), the sum of each
    /// row's label tokens
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write over an existing file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    rows: DataArgs,
}

pub(super) fn run(args: &GradientArgs, terminal: &Terminal) -> Result<()> {
    refuse_to_overwrite(&args.out, args.force)?;
    let model = args.model.open()?;
    let prompt = prompt_for(&model, Some(&args.prompt))?;
    let dataset = args.rows.load(&args.data, &model, prompt.rows())?;
    left_out(&dataset).iter().for_each(|text| terminal.note(text));
    let mut batch = Batch::new();
    for example in &dataset.examples {
        batch
            .push(&example.input_ids, &example.target_ids)
            .map_err(|error| error.in_file(&args.data).on_line(example.line))?;
    }
    if batch.is_empty() {
        let place = Place::file(&args.data);
        return Err(Error::input(place, "at least one row that is not skipped", "none"));
    }
    let found = model.loss_and_grad(&prompt, &batch)?;
    let grad_values = found.grad.to_f64_vec()?;
    if !found.loss.mean.is_finite() || grad_values.iter().any(|value| !value.is_finite()) {
        let place = Place::file(&args.prompt);
        let got = format!("loss {}", found.loss.mean);
        return Err(Error::diverged(place, "a finite loss and gradient", got)
            .hint("prompt or weights hold values too large for --dtype; nothing was written"));
    }
    let grad = with_element!(found.grad.dtype(), E => Values::from_slice(&found.grad.to_vec::<E>()?));
    let shape = vec![found.grad.rows(), found.grad.cols()];
    let norm = grad_values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let file = TensorFile {
        tensors: vec![
            NamedTensor { name: "grad".into(), shape, values: grad },
            NamedTensor { name: "loss".into(), shape: vec![1], values: Values::F64(vec![found.loss.mean]) },
            NamedTensor { name: "nll".into(), shape: vec![batch.len()], values: Values::F64(found.loss.by_example) },
        ],
        ..TensorFile::default()
    };
    atomic_write(&args.out, &file.to_bytes()?)?;
    let (examples, label_tokens) = (batch.len(), batch.label_tokens());
    let json = json!({
        "loss": found.loss.mean, "grad_norm": norm, "examples": examples, "label_tokens": label_tokens,
        "skipped": dataset.skipped.too_long, "truncated": dataset.skipped.truncated,
        "out": args.out.display().to_string(),
    });
    let text = format!(
        "loss {:.9} over {label_tokens} label tokens of {examples} examples, gradient norm {norm:.6e}\nwritten to {}",
        found.loss.mean,
        args.out.display()
    );
    terminal.result(&json, &text)
}
