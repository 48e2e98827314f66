//! Examples: the ids the model reads and the ids it is to predict.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::records::{Record, RecordReader, kind_of, no_rows};
use super::{Encode, Template, TextEncoder};
use crate::error::Place;
use crate::{Error, Result};

/// Rows tokenised at a time: enough to keep every core busy, few enough to bound the memory of raw rows.
const CHUNK: usize = 8192;

/// One row, ready for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// What comes before the target; may be empty, then the prompt alone predicts it.
    pub input_ids: Vec<u32>,
    /// What is predicted; at least one id.
    pub target_ids: Vec<u32>,
    /// The row's line in its file, counted from 1.
    pub line: u64,
    /// The target as text, without separator; a row of ids has it only if it also has a string field `target`.
    pub target_text: Option<String>,
}

impl Example {
    /// Input and target tokens together; prompt rows are not counted.
    pub fn tokens(&self) -> usize {
        self.input_ids.len() + self.target_ids.len()
    }
}

/// What to do with a row of more than `max_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLong {
    /// Refuse the file, naming the row.
    #[default]
    Error,
    /// Cut the start of the input (a beginning id stays); a target that is too long by itself is an error.
    Truncate,
    /// Leave the row out.
    Skip,
}

/// How rows become examples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExampleOptions {
    /// The input's text; without it the field `input`.
    pub template: Option<Template>,
    /// The target's text; without it the field `target`.
    pub target: Option<Template>,
    /// Put between input and target where neither has white space there; part of the target's tokens. Nothing stands
    /// between them where each is a sequence of its own.
    pub separator: String,
    /// Whether the tokenizer's end id follows every target made from text.
    pub append_eos: bool,
    /// The most tokens of input and target together, or of the input where each is a sequence of its own; prompt rows are
    /// not counted.
    pub max_length: usize,
    /// Given if input and target are sequences of their own, as an encoder–decoder reads and writes them: the most tokens
    /// of the target. The end id then follows the input too, where the tokenizer puts one.
    pub max_target_length: Option<usize>,
    /// What to do with longer rows.
    pub on_long: OnLong,
    /// Every id must be below it.
    pub vocab_size: usize,
}

impl Default for ExampleOptions {
    /// Fields `input` and `target`, a space between them, no end id, 512 tokens, longer rows refused, any id.
    fn default() -> Self {
        Self {
            template: None,
            target: None,
            separator: " ".to_owned(),
            append_eos: false,
            max_length: 512,
            max_target_length: None,
            on_long: OnLong::Error,
            vocab_size: u32::MAX as usize,
        }
    }
}

impl ExampleOptions {
    /// The most tokens of an encoder–decoder's target where nobody says.
    const MAX_TARGET_LENGTH: usize = 512;

    /// The same for an encoder–decoder, or for a causal model.
    ///
    /// # Errors
    /// [`Error::Config`] for an option that means nothing to this kind of model.
    pub fn for_model(mut self, is_encoder_decoder: bool) -> Result<Self> {
        match (is_encoder_decoder, self.max_target_length) {
            (false, Some(length)) => {
                let place = Place::item("max_target_length");
                return Err(Error::config(
                    place,
                    "an encoder–decoder beside it",
                    format!("a causal model and {length}"),
                )
                .hint("a causal model has input and target in one sequence, of max_length tokens: leave it out"));
            }
            (false, None) => {}
            (true, length) => {
                if self.separator != Self::default().separator {
                    let place = Place::item("separator");
                    let got = format!("an encoder–decoder and {:?}", self.separator);
                    return Err(Error::config(place, "a causal model beside it", got)
                        .hint("input and target are sequences of their own: remove separator"));
                }
                self.max_target_length = Some(length.unwrap_or(Self::MAX_TARGET_LENGTH));
            }
        }
        Ok(self)
    }
}

/// How many rows were too long, by what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Skipped {
    /// Rows left out.
    pub too_long: usize,
    /// Rows whose input lost its start.
    pub truncated: usize,
}

/// The examples of one file, in its order.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// Its rows; never empty.
    pub examples: Vec<Example>,
    /// What became of rows that were too long.
    pub skipped: Skipped,
}

impl Dataset {
    /// Reads and tokenises a file.
    ///
    /// A row with the field `input_ids` or `target_ids` is a row of ids: it needs both (arrays of ids, the first may
    /// be empty) and no tokenizer, and is taken as it is, with no beginning or end id added. Any other row is text. A
    /// file may mix the two. Rows are tokenised on rayon's current pool; the result, and the error if there is one
    /// (that of the earliest row), do not depend on the number of threads.
    ///
    /// # Errors
    /// [`Error::Input`] naming file, line and field for a row that cannot be read, rendered or tokenised, has no
    /// target, has an id outside the vocabulary or is too long; for a file of which no row is left; for a text row
    /// where `tokenizer` is `None`. [`Error::Config`] where options and tokenizer contradict each other.
    pub fn load(path: impl AsRef<Path>, options: &ExampleOptions, tokenizer: Option<&dyn Encode>) -> Result<Self> {
        let path = path.as_ref();
        let maker = ExampleMaker::new(options, tokenizer)?;
        let mut reader = RecordReader::open(path)?;
        let mut dataset = Self { path: path.to_path_buf(), examples: Vec::new(), skipped: Skipped::default() };
        let mut rows = Vec::with_capacity(CHUNK);
        loop {
            let broken = fill(&mut reader, &mut rows);
            if rows.is_empty() && broken.is_none() {
                break;
            }
            dataset.extend(&maker, &rows)?;
            if let Some(error) = broken {
                return Err(error);
            }
        }
        dataset.examples.shrink_to_fit();
        dataset.checked()
    }

    /// The distinct targets that are known as text, sorted.
    pub fn labels(&self) -> Vec<String> {
        let labels: std::collections::BTreeSet<&str> =
            self.examples.iter().filter_map(|e| e.target_text.as_deref()).collect();
        labels.into_iter().map(str::to_owned).collect()
    }

    fn extend(&mut self, maker: &ExampleMaker<'_>, rows: &[Record]) -> Result<()> {
        // Collected as results, not as a result: rayon would stop at whichever error came first by the clock.
        let made: Vec<Result<Made>> = rows.par_iter().map(|row| maker.make(row)).collect();
        for (made, row) in made.into_iter().zip(rows) {
            match made.map_err(|e| e.in_file(&self.path).on_line(row.line))? {
                Made::Whole(example) => self.examples.push(example),
                Made::Truncated(example) => {
                    self.skipped.truncated += 1;
                    self.examples.push(example);
                }
                Made::TooLong => self.skipped.too_long += 1,
            }
        }
        Ok(())
    }

    fn checked(self) -> Result<Self> {
        if !self.examples.is_empty() {
            return Ok(self);
        }
        match self.skipped.too_long {
            0 => Err(no_rows(&self.path)),
            n => {
                Err(Error::input(Place::file(&self.path), "at least one row within max_length", format!("{n} longer"))
                    .hint("raise max_length, or set on_long to truncate"))
            }
        }
    }
}

/// Reads up to a chunk of rows; an error ends it and is returned beside the rows that came before.
fn fill(reader: &mut RecordReader, rows: &mut Vec<Record>) -> Option<Error> {
    rows.clear();
    for row in reader.by_ref().take(CHUNK) {
        match row {
            Ok(row) => rows.push(row),
            Err(error) => return Some(error),
        }
    }
    None
}

enum Made {
    Whole(Example),
    Truncated(Example),
    TooLong,
}

/// Turns rows into examples; one serves all threads.
struct ExampleMaker<'a> {
    options: &'a ExampleOptions,
    encoder: Option<TextEncoder<'a>>,
    template: Template,
    target: Template,
}

impl<'a> ExampleMaker<'a> {
    fn new(options: &'a ExampleOptions, tokenizer: Option<&'a dyn Encode>) -> Result<Self> {
        if options.max_length == 0 {
            return Err(Error::config(Place::item("max_length"), "at least 1 token", "0"));
        }
        Ok(Self {
            options,
            encoder: tokenizer.map(|t| TextEncoder::new(t, options)).transpose()?,
            template: options.template.clone().unwrap_or_else(|| Template::field("input")),
            target: options.target.clone().unwrap_or_else(|| Template::field("target")),
        })
    }

    fn make(&self, row: &Record) -> Result<Made> {
        if row.fields.contains_key("input_ids") || row.fields.contains_key("target_ids") {
            return self.fit(from_ids(row)?, 0, ["input_ids", "target_ids"]);
        }
        let (example, kept) = self.text_example(row)?;
        self.fit(example, kept, ["input", "target"])
    }

    /// The example of a text row, and how many ids at its start are no part of the text.
    fn text_example(&self, row: &Record) -> Result<(Example, usize)> {
        let Some(encoder) = &self.encoder else {
            return Err(Error::input(
                Place::default(),
                "the fields `input_ids` and `target_ids`, as there is no tokenizer",
                format!("a row with the fields {}", row.field_names()),
            )
            .hint("give a model with a tokenizer, or tokenise the rows beforehand"));
        };
        let input = self.template.render(row)?;
        let target = self.target.render(row)?;
        let input_ids = encoder.input(&input).map_err(|e| of(e, "input"))?;
        let target_ids = encoder.target(&input, &target).map_err(|e| of(e, "target"))?;
        let example = Example { input_ids, target_ids, line: row.line, target_text: Some(target) };
        Ok((example, usize::from(encoder.has_bos())))
    }

    /// Checks ids and length, and cuts or drops the row where the options say so. `kept` ids at the input's start
    /// stay when it is cut, if there is room.
    fn fit(&self, mut example: Example, kept: usize, names: [&str; 2]) -> Result<Made> {
        self.check_ids(&example.input_ids, names[0])?;
        self.check_ids(&example.target_ids, names[1])?;
        let mut limit = self.options.max_length;
        if let Some(of_target) = self.options.max_target_length {
            let target = example.target_ids.len();
            if target > of_target && self.options.on_long != OnLong::Skip {
                let place = Place::default().of(names[1]);
                let expected = format!("at most {of_target} tokens on the decoder");
                return Err(Error::input(place, expected, target.to_string())
                    .hint("a target is never cut: raise max_target_length, or set on_long to skip"));
            }
            if target > of_target {
                return Ok(Made::TooLong);
            }
            // What follows counts both.
            limit = limit.saturating_add(target);
        }
        if example.tokens() <= limit {
            return Ok(Made::Whole(example));
        }
        match self.options.on_long {
            OnLong::Skip => Ok(Made::TooLong),
            OnLong::Error => Err(Error::input(
                Place::default(),
                format!("at most {} tokens", self.options.max_length),
                match self.options.max_target_length {
                    Some(_) => format!("{} of input", example.input_ids.len()),
                    None => format!("{} of input and {} of target", example.input_ids.len(), example.target_ids.len()),
                },
            )
            .hint("raise max_length, or set on_long to truncate or skip")),
            OnLong::Truncate if example.target_ids.len() > limit => Err(Error::input(
                Place::default().of(names[1]),
                format!("at most {limit} tokens"),
                example.target_ids.len().to_string(),
            )
            .hint("a target is never cut: raise max_length, or set on_long to skip")),
            OnLong::Truncate => {
                cut(&mut example, kept, limit);
                Ok(Made::Truncated(example))
            }
        }
    }

    fn check_ids(&self, ids: &[u32], name: &str) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.options.vocab_size) {
            None => Ok(()),
            Some(id) => Err(Error::input(
                Place::default().of(name),
                format!("ids below the model's vocabulary size {}", self.options.vocab_size),
                id.to_string(),
            )
            .hint("the ids or the tokenizer belong to another model")),
        }
    }
}

/// Cuts the input after its first `kept` ids so that `limit` tokens are left.
fn cut(example: &mut Example, kept: usize, limit: usize) {
    let room = limit - example.target_ids.len();
    let kept = kept.min(room);
    let end = example.input_ids.len() - (room - kept);
    example.input_ids.drain(kept..end);
    example.input_ids.shrink_to_fit();
}

fn from_ids(row: &Record) -> Result<Example> {
    let target_ids = ids(row, "target_ids")?;
    if target_ids.is_empty() {
        return Err(Error::input(Place::default().of("target_ids"), "at least one id", "an empty array")
            .hint("give the row a label, or remove it"));
    }
    let target_text = row.fields.get("target").and_then(Value::as_str).map(str::to_owned);
    Ok(Example { input_ids: ids(row, "input_ids")?, target_ids, line: row.line, target_text })
}

fn ids(row: &Record, name: &str) -> Result<Vec<u32>> {
    let bad = |got: String| {
        Err(Error::input(Place::default().of(name), "an array of token ids (integers from 0 to 4294967295)", got)
            .hint("ids are what the model's tokenizer gives"))
    };
    let array = match row.fields.get(name) {
        Some(Value::Array(array)) => array,
        Some(Value::String(_)) => {
            return bad("a string".to_owned()).map_err(|e| e.hint("CSV holds text only: rows of ids need .jsonl"));
        }
        Some(other) => return bad(kind_of(other).to_owned()),
        None => {
            return bad(format!("a row with the fields {}", row.field_names()))
                .map_err(|e| e.hint("a row of ids has both input_ids and target_ids; the first may be []"));
        }
    };
    let mut ids = Vec::with_capacity(array.len());
    for (i, value) in array.iter().enumerate() {
        match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => ids.push(id),
            None => return bad(format!("{value} as element {}", i + 1)),
        }
    }
    Ok(ids)
}

/// Says of an error which part of the row it is about, where it did not say so itself.
fn of(mut error: Error, name: &str) -> Error {
    if let Error::Input(problem) = &mut error {
        problem.place.item.get_or_insert_with(|| name.to_owned());
    }
    error
}

#[cfg(test)]
#[path = "example_tests.rs"]
mod tests;
