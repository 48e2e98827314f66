//! Flags that several commands share.

use crate::data::{Dataset, Encode, ExampleOptions, OnLong, Template};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::{PromptMask, PromptOn};
use crate::models::{Model, ModelOptions, WeightStorage};
use crate::prompt::PromptFile;
use crate::tensor::Tensor;
use std::path::PathBuf;

/// Which model, and how it computes.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// A Hugging Face directory, a .gguf file, or a hub id found in the local cache
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

/// How a model computes.
#[derive(Debug, clap::Args)]
pub(crate) struct ComputeArgs {
    /// Where to compute: cpu, cuda (the first GPU) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: String,
    /// The type to compute in: f32, f64 (cpu only) or bf16 (cuda only)
    #[arg(long, value_parser = ["f32", "f64", "bf16"], default_value = "f32")]
    pub(crate) dtype: String,
    /// CPU threads; the result does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) threads: Option<u16>,
    /// Where an encoder–decoder's prompt stands: as many rows on each for both
    #[arg(long, value_parser = ["encoder", "decoder", "both"], default_value = "encoder")]
    pub(crate) prompt_on: String,
    /// What prompt rows on the encoder see: the input too, or each other only
    #[arg(long, value_parser = ["full", "prompt_only"], default_value = "full")]
    pub(crate) prompt_mask: String,
    /// mapped reads weights as the file stores them; widened keeps a copy in dtype
    #[arg(long, value_parser = ["mapped", "widened"], default_value = "mapped")]
    pub(crate) weights: String,
}

impl ComputeArgs {
    pub(crate) fn device(&self) -> Result<Device> {
        Device::named(&self.device, self.threads.map(usize::from))
    }

    pub(crate) fn options(&self) -> ModelOptions {
        ModelOptions {
            dtype: DType::named(&self.dtype).unwrap_or_default(),
            weights: WeightStorage::named(&self.weights).unwrap_or_default(),
            prompt_on: PromptOn::named(&self.prompt_on).unwrap_or_default(),
            prompt_mask: PromptMask::named(&self.prompt_mask).unwrap_or_default(),
            ..ModelOptions::default()
        }
    }

    pub(crate) fn open(&self, model: &std::path::Path) -> Result<Model> {
        Model::open(model, &self.device()?, self.options())
    }
}

impl ModelArgs {
    pub(crate) fn open(&self) -> Result<Model> {
        self.compute.open(&self.model)
    }
}

/// Which rows, and how they become tokens.
#[derive(Debug, clap::Args)]
pub(crate) struct DataArgs {
    /// The input's text, as in "{text} Topic:"; without it the field `input`
    #[arg(long, value_name = "TEXT")]
    pub(crate) template: Option<String>,
    /// The target's text, as in "{label}"; without it the field `target`
    #[arg(long, value_name = "TEXT")]
    pub(crate) target: Option<String>,
    /// Put between input and target where neither has white space there
    #[arg(long, value_name = "TEXT", default_value = " ", allow_hyphen_values = true)]
    pub(crate) separator: String,
    /// Whether the end id follows every target made from text; if not given, that of an encoder–decoder
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) append_eos: Option<bool>,
    /// The most tokens of an encoder–decoder's target
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_target_length: Option<u32>,
    /// The most tokens of input and target together, or of an encoder–decoder's input; the model's own limit always holds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_length: Option<u32>,
    /// What to do with longer rows; truncate cuts the start of the input
    #[arg(long, value_parser = ["error", "truncate", "skip"], default_value = "error")]
    pub(crate) on_long: String,
}

impl DataArgs {
    /// The options for a prompt of `prompt_rows` rows on `model`.
    pub(crate) fn options(&self, model: &Model, prompt_rows: usize) -> Result<ExampleOptions> {
        let parse = |text: &Option<String>| text.as_deref().map(Template::parse).transpose();
        let is_encoder_decoder = model.config().is_encoder_decoder();
        ExampleOptions {
            template: parse(&self.template)?,
            target: parse(&self.target)?,
            separator: self.separator.clone(),
            append_eos: self.append_eos.unwrap_or(is_encoder_decoder),
            max_target_length: self.max_target_length.map(|length| length as usize),
            max_length: longest(model, prompt_rows, self.max_length.map(|length| length as usize)),
            on_long: match self.on_long.as_str() {
                "truncate" => OnLong::Truncate,
                "skip" => OnLong::Skip,
                _ => OnLong::Error,
            },
            vocab_size: model.config().vocab_size,
        }
        .for_model(is_encoder_decoder)
    }

    pub(crate) fn load(&self, path: &std::path::Path, model: &Model, prompt_rows: usize) -> Result<Dataset> {
        Dataset::load(path, &self.options(model, prompt_rows)?, encoder(model))
    }
}

/// The tokenizer as data files need it.
pub(crate) fn encoder(model: &Model) -> Option<&dyn Encode> {
    model.tokenizer().map(|tokenizer| tokenizer as &dyn Encode)
}

/// The most tokens of an example: the last label token is no row of the stream.
pub(crate) fn longest(model: &Model, prompt_rows: usize, wanted: Option<usize>) -> usize {
    let limit = (model.config().max_position_embeddings + 1).saturating_sub(prompt_rows);
    wanted.map_or(limit, |wanted| wanted.min(limit))
}

/// What was left out or cut of a dataset, in words.
pub(crate) fn left_out(dataset: &Dataset) -> Option<String> {
    let skipped = &dataset.skipped;
    (skipped.too_long + skipped.truncated > 0).then(|| {
        format!("{}: {} rows too long and skipped, {} cut", dataset.path.display(), skipped.too_long, skipped.truncated)
    })
}

/// The prompt at `path` for `model`, or none: no rows.
pub(crate) fn prompt_for(model: &Model, path: Option<&PathBuf>) -> Result<Tensor> {
    let Some(path) = path else { return model.prompt_from(0, &[]) };
    let file = PromptFile::read(path)?;
    file.expect_width(model.config().hidden_size, model.name()).map_err(|error| error.in_file(path))?;
    refuse_another_place(model, &file, path)?;
    let limit = model.config().max_position_embeddings;
    if file.rows >= limit {
        let place = crate::error::Place::file(path);
        return Err(crate::Error::input(
            place,
            format!("fewer than {limit} rows, the model's positions"),
            file.rows.to_string(),
        )
        .hint("prompt and text share the model's positions"));
    }
    model.prompt_from(file.rows, &file.values.to_vec::<f64>())
}

/// A prompt that says where it was trained to stand is not put elsewhere.
fn refuse_another_place(model: &Model, file: &PromptFile, path: &std::path::Path) -> Result<()> {
    let place = model.prompt_place();
    for (key, ours) in [("prompt_on", place.on.name()), ("prompt_mask", place.mask.name())] {
        if let Some(theirs) = file.meta.get(key).filter(|theirs| *theirs != ours) {
            let expected = format!("{theirs}, with which {} was trained", path.display());
            return Err(crate::Error::usage(crate::error::Place::item(key), expected, ours)
                .hint(format!("give --{} {theirs}", key.replace('_', "-"))));
        }
    }
    Ok(())
}
