//! Models that are known by their configuration alone, and what a step of theirs would need.

use super::choose::most_that_fit;
use super::moments::{Prediction, predict};
use super::sizes::{Method, Parameters, Setup, Stream};
use crate::device::Kind;
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::models::{ModelConfig, Recompute};
use crate::storage;
use crate::weights::locate::locate;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A model's sizes.
#[derive(Debug, Clone)]
pub struct Architecture(pub ModelConfig);

/// A step that is only thought of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// What is trained.
    pub method: Method,
    /// What is computed again in the backward pass.
    pub recompute: Recompute,
    /// Whether on a GPU rather than on the CPU.
    pub on_gpu: bool,
    /// The type computed in.
    pub dtype: DType,
    /// Bits of a weight as the file stores it.
    pub stored_bits: f64,
    /// CPU threads.
    pub threads: usize,
    /// P
    pub prompt_rows: usize,
    /// B
    pub examples: usize,
    /// T, the last one predicted.
    pub tokens: usize,
}

/// What a step needs at its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The moment of the peak.
    pub moment: &'static str,
    bytes: [u64; 5],
}

impl Need {
    /// What a prediction says of its peak.
    pub fn of(prediction: &Prediction) -> Self {
        let peak = prediction.peak();
        Self { moment: peak.name, bytes: Kind::ALL.map(|kind| peak.bytes(kind)) }
    }

    /// Bytes for `kind`.
    pub fn bytes(&self, kind: Kind) -> u64 {
        self.bytes[kind as usize]
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.bytes.iter().fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }
}

/// The longest `config.json` that is read.
const LONGEST_CONFIG: u64 = 16 << 20;
/// Tokens of an example that are predicted.
const LABELS: usize = 1;

impl Architecture {
    /// Reads the `config.json` at `path`, in the directory `path`, or of a hub id in the local cache. Gives what it says of
    /// how its weights are stored too: bits of one, where it does.
    ///
    /// # Errors
    /// [`Error::Input`] where there is none, and for one that is broken or of a model that is not known, by name.
    pub fn read(path: &Path) -> Result<(Self, Option<f64>)> {
        let file = config_file(path)?;
        let text = storage::read_limited(&file, LONGEST_CONFIG)?;
        let value: Value = serde_json::from_slice(&text).map_err(|error| {
            Error::input(Place::file(&file).at_line(error.line() as u64), "valid JSON", error.to_string())
                .hint("give a config.json in Hugging Face's form")
        })?;
        let stored = value.as_object().and_then(stored_bits);
        let found = ModelConfig::read_json(&file)
            .map_err(|error| error.or_hint("softprompt predicts Llama, Mistral, Qwen2, GPT-2 and the T5 family"))?;
        Ok((Self(found), stored))
    }

    /// The family's name, as in `model_type`.
    pub fn family(&self) -> &'static str {
        self.0.family.name()
    }

    /// Numbers that its weights are, tied tables once.
    pub fn parameters(&self) -> u128 {
        Parameters::of(&self.0).total
    }

    /// Positions that a model has; none where distances alone count.
    pub fn positions(&self) -> Option<usize> {
        (!self.0.is_encoder_decoder()).then_some(self.0.max_position_embeddings)
    }

    /// What a step needs.
    pub fn need(&self, plan: &Plan) -> Need {
        let Plan { method, recompute, dtype, prompt_rows, examples, tokens, .. } = *plan;
        let setup = Setup {
            config: self.0.clone(),
            method,
            on_gpu: plan.on_gpu,
            dtype,
            stored_bits: plan.stored_bits,
            widened: false,
            threads: plan.threads,
            state_bytes: None,
        };
        let in_front = if method == Method::Prompt { prompt_rows } else { 0 };
        Need::of(&predict(&setup, &Stream::even(in_front, examples, tokens, LABELS), recompute))
    }

    /// The most examples of a step like `plan` that fit into `limit` bytes, up to a million or so; 0 if not even one does.
    pub fn largest_batch(&self, plan: &Plan, limit: u64) -> usize {
        most_that_fit(|examples| self.need(&Plan { examples, ..*plan }).total() <= limit)
    }
}

/// The configuration meant by `path`.
fn config_file(path: &Path) -> Result<PathBuf> {
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(path.to_path_buf());
    }
    let found = locate(&path.to_string_lossy())?;
    let is_weights = found.extension().is_some_and(|extension| extension == "gguf" || extension == "safetensors");
    if found.is_file() && is_weights {
        return Err(Error::input(Place::file(&found), "a config.json, or a directory with one", "a file of weights")
            .hint("without --predict the model itself is opened and measured"));
    }
    Ok(if found.is_dir() { found.join("config.json") } else { found })
}

/// Bits of a weight as `torch_dtype`, or `dtype` of transformers 5, names it.
fn stored_bits(map: &Map<String, Value>) -> Option<f64> {
    let name = map.get("torch_dtype").or_else(|| map.get("dtype"))?.as_str()?;
    match name.trim_start_matches("torch.") {
        "float32" => Some(32.0),
        "bfloat16" | "float16" => Some(16.0),
        "float64" => Some(64.0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(method: Method) -> Plan {
        Plan {
            method,
            recompute: Recompute::None,
            on_gpu: true,
            dtype: DType::BF16,
            stored_bits: 16.0,
            threads: 1,
            prompt_rows: 100,
            examples: 8,
            tokens: 32,
        }
    }

    fn read(text: &str) -> Result<(Architecture, Option<f64>)> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let of_folder = Architecture::read(folder.path());
        let of_file = Architecture::read(&folder.path().join("config.json"));
        assert_eq!(of_folder.is_ok(), of_file.is_ok());
        of_file
    }

    const LLAMA_70B: &str = r#"{"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-05, "torch_dtype": "bfloat16"}"#;

    #[test]
    fn parameters_are_those_that_are_published() {
        let (large, bits) = read(LLAMA_70B).unwrap();
        assert_eq!((large.parameters(), large.family(), bits), (70_553_706_496, "llama", Some(16.0)));
        let (mistral, _) = read(
            r#"{"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}"#,
        )
        .unwrap();
        assert_eq!(mistral.parameters(), 7_241_732_096);
        let (qwen, _) = read(
            r#"{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}"#,
        )
        .unwrap();
        assert_eq!(qwen.parameters(), 7_615_616_512);
        for (name, numbers) in [
            ("gpt2", 124_439_808),
            ("smollm2-135m", 134_515_008),
            ("qwen2.5-0.5b", 494_032_768),
            ("llama-3.2-1b", 1_235_814_400),
            ("t5-small", 60_506_624),
        ] {
            let config = ModelConfig::named(name).unwrap();
            assert_eq!(Architecture(config).parameters(), numbers, "{name}");
        }
    }

    #[test]
    fn a_model_of_seventy_billion_numbers_needs_them() {
        let (large, _) = read(LLAMA_70B).unwrap();
        let need = large.need(&plan(Method::Prompt));
        assert_eq!(need.bytes(Kind::Weights) >> 20, (2 * 70_553_706_496) >> 20);
        assert!(need.total() > need.bytes(Kind::Weights));
        assert_eq!(large.largest_batch(&plan(Method::Prompt), 80 << 30), 0);
        let most = large.largest_batch(&plan(Method::Prompt), 160 << 30);
        let of = |examples| large.need(&Plan { examples, ..plan(Method::Prompt) }).total();
        assert!(of(most) <= 160 << 30 && of(most + 1) > 160 << 30, "{most}");
        assert!(large.need(&plan(Method::Full)).total() > 16 * 70_553_706_496);
    }

    #[test]
    fn broken_and_unknown_configurations_are_refused_by_name() {
        for (text, named) in [
            ("", "valid JSON"),
            ("[1]", "object"),
            ("{}", "model_type"),
            (r#"{"model_type": "bert"}"#, "bert"),
            (r#"{"model_type": "t5"}"#, "num_layers"),
            (r#"{"model_type": "llama", "hidden_size": "wide"}"#, "hidden_size"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.exit_code(), 4, "{text}");
            assert!(error.to_string().contains(named), "{text}: {error}");
            assert!(error.problem().is_some_and(|problem| !problem.hint.is_empty()), "{error}");
        }
        assert!(Architecture::read(Path::new("nowhere/config.json")).is_err());
        assert!(Architecture::read(Path::new("nowhere-at-all")).is_err());
    }
}
