//! PEFT's adapter directories for prompt tuning: `adapter_config.json` and `adapter_model.safetensors`.

use super::file::PromptFile;
use crate::error::{Error, Place, Result};
use crate::models::ModelConfig;
use crate::storage;
use crate::tensorfile::{NamedTensor, TensorFile};
use crate::values::Values;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const TENSORS: &str = "adapter_model.safetensors";
const KEY: &str = "prompt_embeddings";
/// The key of PEFT's configuration and of a prompt's metadata.
pub(crate) const TASK: &str = "task_type";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The release of PEFT whose fields are written.
const VERSION: &str = "0.21.2";

/// What the prompt is for, as PEFT's `task_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeftTask {
    /// `CAUSAL_LM`: decoder-only models.
    #[default]
    CausalLm,
    /// `SEQ_2_SEQ_LM`: encoder-decoder models.
    Seq2SeqLm,
}

impl PeftTask {
    /// What PEFT calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::Seq2SeqLm => "SEQ_2_SEQ_LM",
        }
    }

    /// What the prompts of a model are for.
    pub fn of_model(config: &ModelConfig) -> Self {
        if config.is_encoder_decoder() { Self::Seq2SeqLm } else { Self::CausalLm }
    }

    /// What the prompt's file says it is for: nothing, unless it is of an encoder–decoder or was read from an adapter.
    pub fn of_prompt(prompt: &PromptFile) -> Option<Self> {
        let named = prompt.meta.get(TASK)?;
        [Self::CausalLm, Self::Seq2SeqLm].into_iter().find(|task| task.name() == named)
    }
}

/// How the prompt was initialised, as PEFT's `prompt_tuning_init`. PEFT ignores it when it loads a prompt for use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PeftInit {
    /// `RANDOM`.
    #[default]
    Random,
    /// `SAMPLE_VOCAB`.
    SampleVocab,
    /// `TEXT`: PEFT demands the text and the tokenizer's name with it.
    Text {
        /// The text whose tokens were tiled.
        text: String,
        /// The tokenizer's name or directory.
        tokenizer: String,
    },
}

/// The fields of `adapter_config.json` that a prompt does not tell by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeftConfig {
    /// The base model, as PEFT's users would name it.
    pub base_model_name_or_path: Option<String>,
    /// The base model's revision on the hub.
    pub revision: Option<String>,
    /// What the prompt is for.
    pub task_type: PeftTask,
    /// The base model's layers.
    pub num_layers: Option<usize>,
    /// The base model's attention heads.
    pub num_attention_heads: Option<usize>,
    /// How the prompt was initialised.
    pub init: PeftInit,
}

impl PeftConfig {
    fn to_json(&self, rows: usize, cols: usize) -> Value {
        let (init, text, tokenizer) = match &self.init {
            PeftInit::Random => ("RANDOM", None, None),
            PeftInit::SampleVocab => ("SAMPLE_VOCAB", None, None),
            PeftInit::Text { text, tokenizer } => ("TEXT", Some(text), Some(tokenizer)),
        };
        // In the order of PEFT's own files, which is alphabetic.
        json!({
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "inference_mode": true,
            "modules_to_save": null,
            "num_attention_heads": self.num_attention_heads,
            "num_layers": self.num_layers,
            // PEFT would make two for T5 and use the first only.
            "num_transformer_submodules": 1,
            "num_virtual_tokens": rows,
            "peft_type": "PROMPT_TUNING",
            "peft_version": VERSION,
            "prompt_tuning_init": init,
            "prompt_tuning_init_text": text,
            "revision": self.revision,
            "task_type": self.task_type.name(),
            "token_dim": cols,
            "tokenizer_kwargs": null,
            "tokenizer_name_or_path": tokenizer,
        })
    }
}

/// Writes the adapter directory, all or nothing. The values are narrowed to f32, which is what PEFT keeps.
pub(super) fn write(dir: &Path, prompt: &PromptFile, config: &PeftConfig) -> Result<()> {
    refuse_foreign(dir)?;
    refuse_other_places(prompt)?;
    let narrow = Values::F32(prompt.values.to_vec());
    if let Some(index) = narrow.first_non_finite() {
        let place = Place::item(KEY);
        let (row, col) = (index / prompt.cols, index % prompt.cols);
        let got = format!("{:?} in row {row}, column {col}", prompt.values.get(index).unwrap_or(f64::NAN));
        return Err(Error::input(place, "values that f32 can hold", got));
    }
    let tensors = TensorFile {
        tensors: vec![NamedTensor { name: KEY.into(), shape: vec![prompt.rows, prompt.cols], values: narrow }],
        others: Vec::new(),
        meta: BTreeMap::from([("format".into(), "pt".into())]),
    };
    let bytes = tensors.to_bytes()?;
    let text = format!("{:#}", config.to_json(prompt.rows, prompt.cols));
    storage::atomic_dir(dir, |tmp| {
        storage::atomic_write(tmp.join(CONFIG), text.as_bytes())?;
        storage::atomic_write(tmp.join(TENSORS), &bytes)
    })
}

/// The directory is replaced as a whole, so it must not hold anything that is not an adapter's.
fn refuse_foreign(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(dir, "list", e)),
    };
    for entry in entries {
        let name = entry.map_err(|e| Error::io(dir, "list", e))?.file_name();
        if name != CONFIG && name != TENSORS {
            let expected = "a directory that is new, empty or holds only an adapter";
            return Err(Error::usage(Place::file(dir), expected, format!("one that holds {}", name.display()))
                .hint("choose another directory, so that nothing is overwritten"));
        }
    }
    Ok(())
}

/// PEFT puts a prompt in front of the encoder, whose rows all see each other, and nowhere else.
fn refuse_other_places(prompt: &PromptFile) -> Result<()> {
    for (key, only) in [("prompt_on", "encoder"), ("prompt_mask", "full")] {
        if let Some(other) = prompt.meta.get(key).filter(|value| *value != only) {
            let expected = format!("a prompt of {key} = {only}, the only one that PEFT knows");
            return Err(Error::usage(Place::item(key), expected, other.clone())
                .hint("npy, prompt_embeds and safetensors hold any prompt"));
        }
    }
    Ok(())
}

/// Reads an adapter directory. Of an encoder-decoder prompt with two submodules the first half is kept: PEFT never uses
/// the second.
pub(super) fn read(dir: &Path) -> Result<PromptFile> {
    let config_path = dir.join(CONFIG);
    let (mut meta, config) = read_config(&config_path)?;
    let tensors_path = dir.join(TENSORS);
    if !tensors_path.exists() && dir.join("adapter_model.bin").exists() {
        return Err(Error::input(Place::file(dir), TENSORS, "adapter_model.bin, a pickle, which is not read")
            .hint("save the adapter again with PEFT's safe_serialization=True"));
    }
    let file = TensorFile::read(&tensors_path)?;
    let here = || Place::file(&tensors_path);
    if let Some(other) = file.tensors.iter().map(|t| &t.name).chain(&file.others).find(|n| *n != KEY) {
        return Err(Error::input(here().of(other), format!("{KEY} alone"), "a further tensor")
            .hint("modules_to_save and adapters of other kinds are not supported"));
    }
    let tensor = file.get(KEY).ok_or_else(|| Error::input(here(), format!("a tensor {KEY}"), "none"))?;
    let expected = [config.tokens.saturating_mul(config.submodules), config.width];
    if tensor.shape != expected {
        let want = format!("shape {expected:?}, as {CONFIG} says");
        return Err(Error::input(here().of(KEY), want, format!("{:?}", tensor.shape)));
    }
    let values = tensor.values.prefix(config.tokens * config.width);
    if config.submodules > 1 {
        let note = format!("rows 0..{} of {} kept: PEFT uses no others", config.tokens, expected[0]);
        meta.insert("rows_kept".into(), note);
    }
    meta.insert("format".into(), "peft".into());
    PromptFile::new(config.tokens, config.width, values, meta).map_err(|e| e.in_file(&tensors_path))
}

struct Sizes {
    tokens: usize,
    submodules: usize,
    width: usize,
}

fn read_config(path: &Path) -> Result<(BTreeMap<String, String>, Sizes)> {
    let bytes = storage::read_limited(path, MAX_CONFIG_BYTES)?;
    let json: Value = serde_json::from_slice(&bytes).map_err(|e| {
        Error::input(Place::file(path).at_line(e.line() as u64), "a JSON object", e.to_string())
            .hint("the file is truncated or damaged")
    })?;
    let object = json.as_object().ok_or_else(|| Error::input(Place::file(path), "a JSON object", "another value"))?;
    let at = |key: &str| Place::file(path).of(key);
    match object.get("peft_type").and_then(Value::as_str) {
        Some("PROMPT_TUNING") => {}
        other => {
            let got = other.map_or("none".to_owned(), |t| format!("\"{t}\""));
            return Err(
                Error::input(at("peft_type"), "\"PROMPT_TUNING\"", got).hint("adapters of other kinds are not prompts")
            );
        }
    }
    let size = |key: &str, default: Option<u64>| match object.get(key).unwrap_or(&Value::Null) {
        Value::Null if default.is_some() => Ok(default.unwrap_or_default() as usize),
        value => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > 0 => Ok(n),
            _ => Err(Error::input(at(key), "a whole number above 0", value.to_string())),
        },
    };
    let sizes = Sizes {
        tokens: size("num_virtual_tokens", None)?,
        submodules: size("num_transformer_submodules", Some(1))?,
        width: size("token_dim", None)?,
    };
    let kept = ["base_model_name_or_path", TASK, "prompt_tuning_init", "peft_version", "revision"];
    let text = |key: &str| Some((key.to_owned(), object.get(key)?.as_str()?.to_owned()));
    Ok((kept.iter().filter_map(|key| text(key)).collect(), sizes))
}
