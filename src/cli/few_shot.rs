//! Few-shot examples, as flags say it.

use super::options::encoder;
use crate::data::{Dataset, ExampleOptions};
use crate::error::{Error, Place, Result};
use crate::models::Model;
use crate::prompt::{FewShot, FewShotOptions};
use std::path::{Path, PathBuf};

/// What stands between examples where nothing is said.
pub(super) const JOINER: &str = "\n";

/// Labelled examples in front of every row.
#[derive(Debug, clap::Args)]
pub(super) struct FewShotArgs {
    /// Write so many labelled examples in front of every row, as even over the labels as can be
    #[arg(long, value_name = "K", requires = "few_shot_file")]
    few_shot: Option<usize>,
    /// Where these examples come from: rows as in --data
    #[arg(long, value_name = "FILE", requires = "few_shot")]
    few_shot_file: Option<PathBuf>,
    /// The seed that chooses and orders them
    #[arg(long, value_name = "N", default_value_t = 0, requires = "few_shot")]
    few_shot_seed: u64,
    /// What stands behind each of them: a text, by default a line break; for a model without tokenizer a list of ids as [13]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, requires = "few_shot")]
    few_shot_joiner: Option<String>,
}

impl FewShotArgs {
    /// The examples, if there are to be any, for rows made with `options`.
    pub(super) fn choose(&self, model: &Model, options: &ExampleOptions) -> Result<Option<FewShot>> {
        let (Some(examples), Some(path)) = (self.few_shot, &self.few_shot_file) else { return Ok(None) };
        let joiner = joiner(model, self.few_shot_joiner.as_deref())?;
        few_shot(model, path, options, (examples, self.few_shot_seed), &joiner).map(Some)
    }
}

/// `examples` rows of `path`, chosen by `seed`, as they stand in front of rows made with `options`.
pub(super) fn few_shot(
    model: &Model,
    path: &Path,
    options: &ExampleOptions,
    (examples, seed): (usize, u64),
    joiner: &[u32],
) -> Result<FewShot> {
    let dataset = Dataset::load(path, options, encoder(model))?;
    let tokenizer = model.tokenizer();
    let bos = tokenizer.filter(|tokenizer| tokenizer.adds_bos()).and_then(|tokenizer| tokenizer.bos_id());
    let has_ends = options.append_eos || model.config().is_encoder_decoder();
    let eos = tokenizer.filter(|_| has_ends).and_then(|tokenizer| tokenizer.eos_id());
    FewShot::choose(&dataset, &FewShotOptions { examples, seed, joiner, bos, eos })
}

/// The ids of a joiner; of none those of a line break, where there is a tokenizer.
pub(super) fn joiner(model: &Model, text: Option<&str>) -> Result<Vec<u32>> {
    match (model.tokenizer(), text) {
        (Some(tokenizer), text) => tokenizer.encode(text.unwrap_or(JOINER)),
        (None, None) => Ok(Vec::new()),
        (None, Some(text)) => serde_json::from_str::<Vec<u32>>(text)
            .ok()
            .filter(|ids| ids.iter().all(|&id| (id as usize) < model.config().vocab_size))
            .ok_or_else(|| {
                let expected = format!("a list of ids below {}, as [13]", model.config().vocab_size);
                Error::usage(Place::item("--few-shot-joiner"), expected, format!("{text:?}"))
                    .hint("there is no tokenizer for a text; leave it out to put nothing between the examples")
            }),
    }
}
