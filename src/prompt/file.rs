//! A prompt in a file, in any of the formats it is exchanged in.
//!
//! | format | what | written by |
//! |---|---|---|
//! | PEFT adapter directory | `adapter_config.json`, `adapter_model.safetensors` | [`PromptFile::write_peft_adapter`] |
//! | run or checkpoint directory | `prompt.safetensors` in it | a training run |
//! | `prompt.safetensors` | tensor `prompt` and metadata | [`PromptFile::write`] |
//! | `.safetensors` | tensor `prompt_embeds`, `prompt_embeddings` or `prompt` | [`PromptFile::write_safetensors`] |
//! | `.npy` | a matrix | [`PromptFile::write_npy`] |

use super::{npy, peft};
use crate::error::{Error, Place, Result};
use crate::storage;
use crate::tensorfile::{MAX_BYTES, NamedTensor, TensorFile};
use crate::values::{self, Values};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The name of our own prompt file in a run's or checkpoint's directory.
pub const PROMPT_FILE: &str = "prompt.safetensors";
/// The tensor names that are taken for a prompt.
const KEYS: [&str; 3] = ["prompt", "prompt_embeds", "prompt_embeddings"];
const HASH: &str = "prompt_sha256";

/// Whether a tensor of that name is taken for a prompt.
pub fn is_prompt_tensor(name: &str) -> bool {
    KEYS.contains(&name)
}

/// A prompt of `rows` virtual tokens of width `cols`, every value finite, in the type it was stored in.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptFile {
    /// The number of virtual tokens, P; at least 1.
    pub rows: usize,
    /// Their width, d; at least 1.
    pub cols: usize,
    /// The `[rows, cols]` values, row by row.
    pub values: Values,
    /// What the file said besides: base model, step, seed, …; `format` tells the format it was read from.
    pub meta: BTreeMap<String, String>,
    source: Option<PathBuf>,
}

impl PromptFile {
    /// A prompt that no file holds yet.
    ///
    /// # Errors
    /// `Input` where there are no rows or columns, the number of values is not `rows · cols`, or a value is not finite
    /// (row and column are named, counted from 0).
    pub fn new(rows: usize, cols: usize, values: Values, meta: BTreeMap<String, String>) -> Result<Self> {
        let place = || Place::item("prompt");
        if rows == 0 || cols == 0 {
            let got = format!("shape [{rows}, {cols}]");
            return Err(Error::input(place(), "at least one row and one column", got));
        }
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::input(place(), format!("{rows} x {cols} values"), values.len().to_string()));
        }
        if let Some(index) = values.first_non_finite() {
            let (row, col, value) = (index / cols, index % cols, values.get(index).unwrap_or(f64::NAN));
            return Err(Error::input(place(), "finite values", format!("{value} in row {row}, column {col}"))
                .hint("the prompt's training diverged, or the file is damaged"));
        }
        Ok(Self { rows, cols, values, meta, source: None })
    }

    /// Reads a prompt in any of the formats of this module, told apart by content and not by name.
    ///
    /// # Errors
    /// `Input` for what is missing, truncated, of another format, not two-dimensional, not finite, or altered since it
    /// was written (where the file carries its hash); `Io` where the system refuses.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let given = path.as_ref();
        let path = &storage::existing_dir(given);
        let read = if path.is_dir() { read_dir(path) } else { read_file(path) };
        let mut prompt = read.map_err(|error| {
            error.or_hint(
                "a prompt is a .safetensors or .npy file of [rows, width], a PEFT adapter, or what a run saved",
            )
        })?;
        prompt.source = Some(given.to_path_buf());
        Ok(prompt)
    }

    /// The file or directory that the prompt was read from.
    pub fn source(&self) -> Option<&Path> {
        self.source.as_deref()
    }

    /// Checks that the prompt fits a model of width `width` called `model`.
    ///
    /// # Errors
    /// `Input` naming both widths.
    pub fn expect_width(&self, width: usize, model: &str) -> Result<()> {
        if self.cols == width {
            return Ok(());
        }
        let mut place = self.source.as_ref().map(Place::file).unwrap_or_default();
        place.item = Some("prompt".into());
        let error = Error::input(place, format!("width {width}, that of {model}"), format!("width {}", self.cols));
        Err(match self.meta.get("base_model").or_else(|| self.meta.get("base_model_name_or_path")) {
            Some(base) => error.hint(format!("the prompt was made for {base}")),
            None => error.hint("a prompt works only with the model it was tuned on"),
        })
    }

    /// SHA-256 over shape and bits (see [`values::prompt_hash`]).
    pub fn hash(&self) -> String {
        values::prompt_hash(self.rows, self.cols, &self.values)
    }

    /// Writes our own format: tensor `prompt` in its own type, with the metadata, the shape and the hash.
    ///
    /// # Errors
    /// `Io`; what was at `path` then is as it was.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        storage::atomic_write(path, &self.to_bytes()?)
    }

    /// The bytes that [`PromptFile::write`] writes.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut meta = self.meta.clone();
        meta.insert("format".into(), "softprompt".into());
        meta.insert("rows".into(), self.rows.to_string());
        meta.insert("cols".into(), self.cols.to_string());
        meta.insert(HASH.into(), self.hash());
        self.tensor_file("prompt", meta).to_bytes()
    }

    /// Writes a safetensors file with the one tensor `prompt_embeds` in its own type, as vLLM's input of that name.
    ///
    /// # Errors
    /// `Io`; what was at `path` then is as it was.
    pub fn write_safetensors(&self, path: impl AsRef<Path>) -> Result<()> {
        let meta = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        storage::atomic_write(path, &self.tensor_file("prompt_embeds", meta).to_bytes()?)
    }

    /// Writes a NumPy file, `<f4` or `<f8` as the values are, in C order.
    ///
    /// # Errors
    /// `Io`; what was at `path` then is as it was.
    pub fn write_npy(&self, path: impl AsRef<Path>) -> Result<()> {
        storage::atomic_write(path, &npy::to_bytes(self.rows, self.cols, &self.values))
    }

    /// Writes an adapter directory for PEFT, values as f32.
    ///
    /// # Errors
    /// `Usage` where `dir` holds files that are not an adapter's; `Input` where a value exceeds f32; `Io`.
    pub fn write_peft_adapter(&self, dir: impl AsRef<Path>, config: &peft::PeftConfig) -> Result<()> {
        peft::write(dir.as_ref(), self, config)
    }

    fn tensor_file(&self, key: &str, meta: BTreeMap<String, String>) -> TensorFile {
        let tensor = NamedTensor { name: key.into(), shape: vec![self.rows, self.cols], values: self.values.clone() };
        TensorFile { tensors: vec![tensor], others: Vec::new(), meta }
    }
}

fn read_dir(dir: &Path) -> Result<PromptFile> {
    let prompt = dir.join(PROMPT_FILE);
    match (dir.join(peft::CONFIG).exists(), prompt.exists()) {
        (true, _) => peft::read(dir),
        (false, true) => read_file(&prompt),
        (false, false) => {
            let got = "a directory with neither";
            Err(Error::input(Place::file(dir), format!("a prompt: {} or {PROMPT_FILE}", peft::CONFIG), got))
        }
    }
}

fn read_file(path: &Path) -> Result<PromptFile> {
    // An adapter's tensors say how many rows are used only together with its configuration.
    if path.file_name().is_some_and(|name| name == peft::TENSORS)
        && let Some(dir) = path.parent()
        && dir.join(peft::CONFIG).exists()
    {
        return peft::read(dir);
    }
    let bytes = storage::read_limited(path, MAX_BYTES)?;
    let parsed = match bytes.as_slice() {
        b if b.starts_with(npy::MAGIC) => npy::parse(b).and_then(|(rows, cols, values)| {
            let meta = BTreeMap::from([("format".to_owned(), "npy".to_owned())]);
            PromptFile::new(rows, cols, values, meta)
        }),
        // A safetensors file whose header has 128 bytes, or 384 …, begins with that byte too, but has a brace behind the length.
        b if b.starts_with(b"PK\x03\x04") || b.starts_with(b"\x80") && b.get(8) != Some(&b'{') => {
            Err(Error::input(Place::default(), "a prompt", "a pickle or archive, which is not read")
                .hint("save it as .safetensors or .npy"))
        }
        b => TensorFile::from_bytes(b).and_then(from_tensors),
    };
    parsed.map_err(|e| e.in_file(path))
}

fn from_tensors(file: TensorFile) -> Result<PromptFile> {
    if let Some(name) = file.others.iter().find(|name| KEYS.contains(&name.as_str())) {
        return Err(Error::input(Place::item(name), "F32, F64, F16 or BF16", "another type"));
    }
    let mut found = file.tensors.into_iter().filter(|t| KEYS.contains(&t.name.as_str()));
    let (tensor, more) = (found.next(), found.next());
    let Some(tensor) = tensor else {
        return Err(Error::input(Place::default(), format!("one tensor of {}", KEYS.join(", ")), "none")
            .hint("is this a model and not a prompt?"));
    };
    if let Some(more) = more {
        let got = format!("{} and {}", tensor.name, more.name);
        return Err(Error::input(Place::default(), format!("one tensor of {}", KEYS.join(", ")), got));
    }
    let &[rows, cols] = tensor.shape.as_slice() else {
        let got = format!("{:?}", tensor.shape);
        return Err(Error::input(Place::item(&tensor.name), "two dimensions, rows and width", got));
    };
    let mut prompt = PromptFile::new(rows, cols, tensor.values, file.meta)?;
    if let Some(hash) = prompt.meta.get(HASH)
        && *hash != prompt.hash()
    {
        return Err(Error::input(Place::item("prompt"), format!("values of hash {hash}"), prompt.hash())
            .hint("the file was altered since it was written"));
    }
    prompt.meta.entry("format".into()).or_insert_with(|| "safetensors".into());
    Ok(prompt)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
