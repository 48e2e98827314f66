//! Writing a model whose weights are trained: a directory in Hugging Face layout that transformers, and this crate, open.

use super::{Family, Model, ModelConfig, RopeScaling, llama};
use crate::device::Kind as Memory;
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::storage::{atomic_dir, atomic_write};
use crate::tensor::Tensor;
use crate::weights::{Parameter, Weights};
use safetensors::Dtype;
use safetensors::tensor::{View, serialize_to_file};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// The weights' file in a directory that [`Model::save_pretrained`] writes.
pub const MODEL_FILE: &str = "model.safetensors";

/// Files beside a model that belong to it, copied as they are.
const COMPANIONS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
];

/// Where a model came from, and so what it is written back with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory in Hugging Face layout: names, configuration and tokenizer are kept.
    HuggingFace,
    /// A GGUF file: names are translated, rows of q and k put back in order.
    Gguf,
    /// Made up from sizes.
    Random,
}

impl Model {
    /// Writes the model to the directory `dir`, all or nothing: `config.json`, `model.safetensors` in the type that the
    /// weights are trained in, and the tokenizer where there is one that `tokenizer.json` can hold. What `dir` held before
    /// is gone.
    ///
    /// # Errors
    /// [`Error::Input`] for a frozen model; [`Error::Io`] where the system refuses.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        atomic_dir(dir, |to| self.save_into(to)).map_err(|error| error.in_file(dir))
    }

    /// Writes the files of [`Model::save_pretrained`] into a directory that exists.
    pub(crate) fn save_into(&self, dir: &Path) -> Result<()> {
        if self.parameters().is_empty() {
            return Err(Error::input(Place::file(self.path()), "a model opened as trainable", "a frozen one"));
        }
        let config = serde_json::to_vec_pretty(&self.config_json()?)
            .map_err(|error| Error::op("save_pretrained", "a configuration", error.to_string()))?;
        atomic_write(dir.join("config.json"), &config)?;
        if self.kind == Kind::HuggingFace {
            let from = if self.path().is_dir() { self.path() } else { self.path().parent().unwrap_or(self.path()) };
            for name in COMPANIONS.iter().filter(|name| from.join(name).is_file()) {
                std::fs::copy(from.join(name), dir.join(name))
                    .map_err(|error| Error::io(dir.join(name), "write", error))?;
            }
        } else if let Some((tokenizer, settings)) = self.tokenizer().and_then(|tokenizer| tokenizer.to_json()) {
            atomic_write(dir.join("tokenizer.json"), tokenizer.as_bytes())?;
            atomic_write(dir.join("tokenizer_config.json"), settings.to_string().as_bytes())?;
        }
        self.write_weights(&dir.join(MODEL_FILE))
    }

    /// Reads the values of all parameters from a directory that [`Model::save_pretrained`] wrote for this model.
    pub(crate) fn restore(&self, dir: &Path) -> Result<()> {
        let path = dir.join(MODEL_FILE);
        let stored = Weights::open(&path)?;
        for parameter in self.parameters() {
            let place = parameter.place();
            let name = self.written_name(&place.name)?;
            let tensor = stored.get(&name)?;
            if tensor.shape() != place.shape {
                let expected = format!("shape {:?}", place.shape);
                return Err(Error::input(Place::file(&path).of(name), expected, format!("{:?}", tensor.shape())));
            }
            let cols = place.shape.last().copied().unwrap_or(1);
            let order = self.row_order(&name, parameter);
            let mut values = vec![0f64; tensor.len()];
            tensor.widen(0, &mut values);
            if let Some(order) = order {
                let written = std::mem::replace(&mut values, vec![0.0; tensor.len()]);
                let width = written.len() / order.len().max(1);
                for (from, &row) in written.chunks_exact(width.max(1)).zip(&order) {
                    values[row * width..][..width].copy_from_slice(from);
                }
            }
            let part: Vec<f64> = place
                .rows
                .clone()
                .flat_map(|row| &values[row * cols + place.cols.start..row * cols + place.cols.end])
                .copied()
                .collect();
            self.device().run(|| {
                parameter.update(|value| {
                    let (rows, cols, dtype) = (value.rows(), value.cols(), value.dtype());
                    let read = Tensor::from_f64(self.device(), rows, cols, dtype, &part, Memory::Weights)?;
                    value.copy_from_prefix(&read, rows)
                })
            })?;
        }
        Ok(())
    }

    fn write_weights(&self, path: &Path) -> Result<()> {
        let failed = RefCell::new(None);
        let mut tensors: BTreeMap<String, Written<'_>> = BTreeMap::new();
        for parameter in self.parameters() {
            let name = self.written_name(&parameter.place().name)?;
            let shape = parameter.place().shape.clone();
            let (dtype, order) = (parameter.value().dtype(), self.row_order(&name, parameter));
            let new = || Written { dtype, shape, parts: Vec::new(), order, failed: &failed };
            tensors.entry(name).or_insert_with(new).parts.push(Arc::clone(parameter));
        }
        let meta = HashMap::from([("format".to_string(), "pt".to_string())]);
        serialize_to_file(tensors, Some(meta), path).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(error) => Error::io(path, "write", error),
            other => Error::op("save_pretrained", "tensors that safetensors can hold", other.to_string()),
        })?;
        failed.into_inner().map_or(Ok(()), Err)
    }

    /// The name in a Hugging Face directory of the tensor called `name` where the model came from.
    fn written_name(&self, name: &str) -> Result<String> {
        if self.kind != Kind::Gguf {
            return Ok(name.to_string());
        }
        llama::hugging_face_name(name)
            .ok_or_else(|| Error::op("save_pretrained", "a tensor of a Llama in GGUF", name.to_string()))
    }

    /// For each row to be written, the row that it is here; none where they are in order. GGUF has the rows of a Llama's q
    /// and k in the order of its rotation, which pairs neighbours: the halves of a head are interleaved.
    fn row_order(&self, name: &str, parameter: &Parameter) -> Option<Vec<usize>> {
        let is_rotated = name.contains("q_proj") || name.contains("k_proj");
        if self.kind != Kind::Gguf || self.config().family != Family::Llama || !is_rotated {
            return None;
        }
        let (rows, dim) = (parameter.place().shape[0], self.config().head_dim);
        let half = dim / 2;
        Some((0..rows).map(|row| row / dim * dim + row % dim % half * 2 + row % dim / half).collect())
    }

    fn config_json(&self) -> Result<Value> {
        let mut config = match self.kind {
            Kind::HuggingFace => {
                let from = if self.path().is_dir() { self.path() } else { self.path().parent().unwrap_or(self.path()) };
                let file = from.join("config.json");
                let bytes = std::fs::read(&file).map_err(|error| Error::io(&file, "read", error))?;
                serde_json::from_slice(&bytes)
                    .map_err(|error| Error::input(Place::file(&file), "valid JSON", error.to_string()))?
            }
            Kind::Gguf | Kind::Random => self.config().to_hugging_face(),
        };
        if let Value::Object(map) = &mut config {
            let name = match self.dtype() {
                DType::F32 => "float32",
                DType::F64 => "float64",
                DType::BF16 => "bfloat16",
            };
            map.remove("dtype");
            map.insert("torch_dtype".to_string(), json!(name));
            if self.kind != Kind::HuggingFace
                && let Some(tokenizer) = self.tokenizer()
            {
                map.insert("bos_token_id".to_string(), json!(tokenizer.bos_id()));
                map.insert("eos_token_id".to_string(), json!(tokenizer.eos_id()));
            }
        }
        Ok(config)
    }
}

impl ModelConfig {
    /// The sizes as `config.json` has them, under Hugging Face's names.
    pub fn to_hugging_face(&self) -> Value {
        let activation = self.activation.name();
        if self.family == Family::Gpt2 {
            return json!({
                "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": self.hidden_size,
                "n_inner": self.intermediate_size, "n_layer": self.num_hidden_layers, "n_head": self.num_attention_heads,
                "vocab_size": self.vocab_size, "n_positions": self.max_position_embeddings,
                "layer_norm_epsilon": self.norm_epsilon, "activation_function": activation,
                "tie_word_embeddings": self.tie_word_embeddings,
            });
        }
        let (architecture, biases) = match self.family {
            Family::Mistral => ("MistralForCausalLM", json!({"sliding_window": null})),
            Family::Qwen2 => ("Qwen2ForCausalLM", json!({"use_sliding_window": false})),
            _ => ("LlamaForCausalLM", json!({"attention_bias": self.qkv_bias, "mlp_bias": self.mlp_bias})),
        };
        let scaling = match self.rope_scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                json!({
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings as u64,
                })
            }
        };
        let mut config = json!({
            "architectures": [architecture], "model_type": self.family.name(), "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size, "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads, "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim, "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings, "rms_norm_eps": self.norm_epsilon,
            "hidden_act": activation, "rope_theta": self.rope_theta, "rope_scaling": scaling,
            "tie_word_embeddings": self.tie_word_embeddings,
        });
        if let (Value::Object(config), Value::Object(biases)) = (&mut config, biases) {
            config.extend(biases);
        }
        config
    }
}

/// A tensor on its way to a file: put together from its parameters when its turn comes.
struct Written<'a> {
    dtype: DType,
    shape: Vec<usize>,
    parts: Vec<Arc<Parameter>>,
    order: Option<Vec<usize>>,
    /// The first failure to read from a device, which the interface has no room for.
    failed: &'a RefCell<Option<Error>>,
}

impl Written<'_> {
    fn bytes(&self) -> Result<Vec<u8>> {
        let (size, cols) = (self.dtype.size(), self.shape.last().copied().unwrap_or(1));
        let mut whole = vec![0; self.data_len()];
        for part in &self.parts {
            let (place, bytes) = (part.place(), bytes_of(&part.value())?);
            let width = place.cols.len() * size;
            for (row, bytes) in place.rows.clone().zip(bytes.chunks_exact(width.max(1))) {
                whole[(row * cols + place.cols.start) * size..][..width].copy_from_slice(bytes);
            }
        }
        let Some(order) = &self.order else { return Ok(whole) };
        let width = whole.len() / order.len().max(1);
        Ok(order.iter().flat_map(|&row| &whole[row * width..][..width]).copied().collect())
    }
}

fn bytes_of(value: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = vec![0; value.len() * value.dtype().size()];
    value.download(&mut bytes)?;
    Ok(bytes)
}

impl View for Written<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::BF16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.bytes().unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            vec![0; self.data_len()]
        }))
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}
