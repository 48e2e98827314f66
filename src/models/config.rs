//! What a model is, read from `config.json` or a GGUF file's metadata. A value that would change the computation in a way
//! this crate does not implement is refused by name.

use crate::error::{Error, Place, Result};
use crate::ops::{Activation, attention::Heads};
use crate::weights::{Weights, gguf};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Which code runs the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama, SmolLM2, TinyLlama.
    Llama,
    /// Mistral: Llama with other defaults and, in some, a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: Llama with biases on q, k, v.
    Qwen2,
    /// GPT-2.
    Gpt2,
    /// T5 of all versions, LM-adapted and Flan among them, and ByT5.
    T5,
    /// mT5.
    Mt5,
}

impl Family {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "llama" => Self::Llama,
            "mistral" => Self::Mistral,
            "qwen2" => Self::Qwen2,
            "gpt2" => Self::Gpt2,
            "t5" => Self::T5,
            "mt5" => Self::Mt5,
            _ => return None,
        })
    }

    /// The name in `model_type` of a Hugging Face config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Gpt2 => "gpt2",
            Self::T5 => "t5",
            Self::Mt5 => "mt5",
        }
    }
}

/// How rotary frequencies are stretched for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// What frequencies are divided by.
        factor: f64,
    },
    /// Llama 3.1: low frequencies by `factor`, high ones not, those between in proportion.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Waves longer than `original / low` are low.
        low_freq_factor: f64,
        /// Waves shorter than `original / high` are high.
        high_freq_factor: f64,
        /// The context that the model was first trained for.
        original_max_position_embeddings: f64,
    },
}

/// The sizes of a model, under Hugging Face's names.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// Which code runs it.
    pub family: Family,
    /// Width d of the stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers; of an encoder–decoder those of the encoder.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Positions the model can tell apart; a sliding window counts as a limit. Where distances alone count, more than fit
    /// into any memory.
    pub max_position_embeddings: usize,
    /// ε of the norms.
    pub norm_epsilon: f64,
    /// The MLP's function.
    pub activation: Activation,
    /// Whether the MLP has a gate, `f(gate) ∘ up`, rather than `f(up)` alone.
    pub is_gated: bool,
    /// Base θ of the rotary embedding.
    pub rope_theta: f64,
    /// How it is stretched.
    pub rope_scaling: RopeScaling,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether q, k, v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias.
    pub output_bias: bool,
    /// Whether the MLP has biases.
    pub mlp_bias: bool,
    /// What an encoder–decoder has besides.
    pub encoder_decoder: Option<EncoderDecoderConfig>,
}

/// What an encoder–decoder has that a causal model has not, under Hugging Face's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderDecoderConfig {
    /// Layers of the decoder.
    pub num_decoder_layers: usize,
    /// The token that every label begins behind.
    pub decoder_start_token_id: u32,
    /// Distances that the bias of attention tells apart.
    pub relative_attention_num_buckets: usize,
    /// From where on distances are not told apart.
    pub relative_attention_max_distance: usize,
    /// Whether the last hidden rows are scaled by `1/√d` in front of the head, as those of T5 v1.0 are.
    pub scale_decoder_outputs: bool,
}

/// Positions of a model that knows distances alone.
pub(super) const UNLIMITED: usize = 1 << 24;

impl ModelConfig {
    /// Reads the configuration of the model at `path`.
    ///
    /// # Errors
    /// [`Error::Input`] if it is missing, broken, or asks for something that is not supported.
    pub fn read(path: &Path, weights: &Weights) -> Result<Self> {
        let (config, file) = match weights.gguf() {
            Some(metadata) => (from_gguf(metadata, weights)?, metadata.path().to_path_buf()),
            None => {
                let directory = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
                return Self::read_json(&directory.join("config.json"));
            }
        };
        config.check(&file)
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn read_json(file: &Path) -> Result<Self> {
        let text = std::fs::read(file).map_err(|error| Error::io(file, "read", error))?;
        let value: Value = serde_json::from_slice(&text).map_err(|error| {
            Error::input(Place::file(file).at_line(error.line() as u64), "valid JSON", error.to_string())
        })?;
        let Value::Object(map) = value else {
            return Err(Error::input(Place::file(file), "a JSON object", "something else"));
        };
        HuggingFace { file: file.to_path_buf(), map }.read()?.check(file)
    }

    fn check(self, path: &Path) -> Result<Self> {
        let wrong =
            |item: &str, expected: &str, got: String| Err(Error::input(Place::file(path).of(item), expected, got));
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((name, size)) = sizes.into_iter().find(|&(_, size)| size == 0 || size > 1 << 30) {
            return wrong(name, "a positive size", size.to_string());
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let got = format!("{} for {} heads", self.num_key_value_heads, self.num_attention_heads);
            return wrong("num_key_value_heads", "a divisor of num_attention_heads", got);
        }
        let is_rotated = self.encoder_decoder.is_none() && self.family != Family::Gpt2;
        if !self.head_dim.is_multiple_of(2) && is_rotated {
            return wrong("head_dim", "an even number, for rotation", self.head_dim.to_string());
        }
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon >= 0.0) {
            return wrong("rms_norm_eps", "a number of at least 0", self.norm_epsilon.to_string());
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return wrong("rope_theta", "a positive number", self.rope_theta.to_string());
        }
        if let Some(more) = self.encoder_decoder {
            if more.num_decoder_layers == 0 || more.num_decoder_layers > 1 << 30 {
                return wrong("num_decoder_layers", "a positive size", more.num_decoder_layers.to_string());
            }
            let (buckets, distance) = (more.relative_attention_num_buckets, more.relative_attention_max_distance);
            if buckets < 4 || buckets > 1 << 20 || !buckets.is_multiple_of(2) {
                return wrong("relative_attention_num_buckets", "an even number of at least 4", buckets.to_string());
            }
            // The decoder has all buckets for one direction, half of them for single distances.
            if distance <= buckets / 2 || distance > 1 << 30 {
                let expected = format!("more than half of {buckets} buckets");
                return wrong("relative_attention_max_distance", &expected, distance.to_string());
            }
            if more.decoder_start_token_id as usize >= self.vocab_size {
                let expected = format!("a token below {}", self.vocab_size);
                return wrong("decoder_start_token_id", &expected, more.decoder_start_token_id.to_string());
            }
        }
        Ok(self)
    }

    /// The heads as attention takes them.
    pub fn heads(&self) -> Heads {
        Heads {
            queries: self.num_attention_heads,
            keys: self.num_key_value_heads,
            dim: self.head_dim,
            // T5's scores are not scaled: its weights begin smaller instead.
            scale: if self.is_encoder_decoder() { 1.0 } else { 1.0 / (self.head_dim as f64).sqrt() },
        }
    }

    /// Whether it has an encoder that reads the input and a decoder that writes the label.
    pub fn is_encoder_decoder(&self) -> bool {
        self.encoder_decoder.is_some()
    }

    /// The matrices of an MLP that read the stream: with a gate two.
    pub(crate) fn mlp_inputs(&self) -> usize {
        if self.is_gated { 2 } else { 1 }
    }

    /// `θ^(−2i/head_dim)` for each pair i, stretched as the configuration says.
    pub fn rotary_frequencies(&self) -> Vec<f64> {
        let frequency = |pair: usize| self.rope_theta.powf(-2.0 * pair as f64 / self.head_dim as f64);
        (0..self.head_dim / 2).map(|pair| self.rope_scaling.stretch(frequency(pair))).collect()
    }
}

impl RopeScaling {
    fn stretch(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let wave = 2.0 * std::f64::consts::PI / frequency;
                let original = original_max_position_embeddings;
                if wave > original / low_freq_factor {
                    frequency / factor
                } else if wave < original / high_freq_factor {
                    frequency
                } else {
                    let smooth = (original / wave - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// Values of config keys that leave the computation as it is implemented here; any other value of these is refused.
const ONLY: &[(&str, &[&str])] = &[
    ("add_cross_attention", &["false"]),
    ("attn_logit_softcapping", &["null"]),
    ("clip_qkv", &["null"]),
    ("embedding_multiplier", &["null", "1", "1.0"]),
    ("final_logit_softcapping", &["null"]),
    ("is_decoder", &["true", "false"]),
    ("is_encoder_decoder", &["false"]),
    ("logit_scale", &["null", "1", "1.0"]),
    ("logits_scaling", &["null", "1", "1.0"]),
    ("attention_multiplier", &["null"]),
    ("num_experts", &["null", "0"]),
    ("num_local_experts", &["null", "0", "1"]),
    ("partial_rotary_factor", &["null", "1", "1.0"]),
    ("pretraining_tp", &["null", "1", "0"]),
    ("qk_layernorm", &["null", "false"]),
    ("quantization_config", &["null"]),
    ("residual_multiplier", &["null", "1", "1.0"]),
    ("rope_interleaved", &["null", "false"]),
    ("scale_attn_by_inverse_layer_idx", &["null", "false"]),
    ("scale_attn_weights", &["null", "true"]),
    ("use_sliding_window", &["null", "false"]),
];

/// `config.json`.
struct HuggingFace {
    file: PathBuf,
    map: Map<String, Value>,
}

impl HuggingFace {
    fn refuse<T>(&self, key: &str, expected: impl Into<String>, got: impl std::fmt::Display) -> Result<T> {
        Err(Error::input(Place::file(&self.file).of(key), expected, got.to_string())
            .hint("this model computes something that softprompt does not"))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match self.value(key) {
            Some(value) => value.as_f64().map_or_else(|| self.refuse(key, "a number", value), Ok),
            None => default.map_or_else(|| self.refuse(key, "a number", "nothing"), Ok),
        }
    }

    fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match self.value(key) {
            Some(value) => value
                .as_u64()
                .and_then(|value| usize::try_from(value).ok())
                .map_or_else(|| self.refuse(key, "a whole number", value), Ok),
            None => default.map_or_else(|| self.refuse(key, "a whole number", "nothing"), Ok),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            Some(value) => value.as_bool().map_or_else(|| self.refuse(key, "true or false", value), Ok),
            None => Ok(default),
        }
    }

    fn read(&self) -> Result<ModelConfig> {
        let model_type = self.value("model_type").and_then(Value::as_str).unwrap_or_default();
        let Some(family) = Family::named(model_type) else {
            return self.refuse("model_type", "llama, mistral, qwen2, gpt2, t5 or mt5", format!("{model_type:?}"));
        };
        if let Family::T5 | Family::Mt5 = family {
            return self.t5(family);
        }
        for &(key, allowed) in ONLY {
            if let Some(value) = self.map.get(key)
                && !allowed.contains(&value.to_string().as_str())
            {
                return self.refuse(key, allowed.join(" or "), value);
            }
        }
        if let Some(Value::Array(types)) = self.value("layer_types")
            && let Some(other) = types.iter().find(|kind| kind.as_str() != Some("full_attention"))
        {
            return self.refuse("layer_types", "full_attention", other);
        }
        if family == Family::Gpt2 { self.gpt2() } else { self.llama(family) }
    }

    fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        let name = match self.value(key) {
            Some(value) => value.as_str().map_or_else(|| self.refuse(key, "a name", value), Ok)?,
            None => default,
        };
        let names = "silu, gelu, gelu_new, gelu_pytorch_tanh or relu";
        Activation::named(name).map_or_else(|| self.refuse(key, names, format!("{name:?}")), Ok)
    }

    fn llama(&self, family: Family) -> Result<ModelConfig> {
        let (hidden_size, heads) = (self.size("hidden_size", None)?, self.size("num_attention_heads", None)?);
        let positions = match family {
            Family::Mistral => 131_072,
            Family::Qwen2 => 32_768,
            _ => 2048,
        };
        // The defaults of each family's configuration class, for keys that a file leaves out.
        let key_heads = if family == Family::Mistral { 8.min(heads) } else { heads };
        let bias = self.flag("attention_bias", family == Family::Qwen2)?;
        if family == Family::Qwen2 && !bias {
            return self.refuse("attention_bias", "true for qwen2", "false");
        }
        let mut config = ModelConfig {
            family,
            hidden_size,
            intermediate_size: self.size("intermediate_size", None)?,
            num_hidden_layers: self.size("num_hidden_layers", None)?,
            num_attention_heads: heads,
            num_key_value_heads: self.size("num_key_value_heads", Some(key_heads))?,
            head_dim: self.size("head_dim", Some(hidden_size / heads.max(1)))?,
            vocab_size: self.size("vocab_size", None)?,
            max_position_embeddings: self.size("max_position_embeddings", Some(positions))?,
            norm_epsilon: self.number("rms_norm_eps", Some(1e-6))?,
            activation: self.activation("hidden_act", "silu")?,
            is_gated: true,
            rope_theta: 0.0,
            rope_scaling: RopeScaling::None,
            tie_word_embeddings: self.flag("tie_word_embeddings", false)?,
            qkv_bias: bias,
            output_bias: bias && family != Family::Qwen2,
            mlp_bias: self.flag("mlp_bias", false)?,
            encoder_decoder: None,
        };
        (config.rope_theta, config.rope_scaling) = self.rope(config.max_position_embeddings)?;
        if family == Family::Mistral {
            // Within the window, sliding and full attention are the same.
            let window = if self.map.contains_key("sliding_window") { usize::MAX } else { 4096 };
            let window = self.size("sliding_window", Some(window))?;
            config.max_position_embeddings = config.max_position_embeddings.min(window);
        }
        Ok(config)
    }

    /// θ and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.
    fn rope(&self, max_positions: usize) -> Result<(f64, RopeScaling)> {
        // Where a file has both, transformers takes the older name, and with it the θ beside it.
        let is_given =
            |key: &&str| self.value(key).is_some_and(|value| value.as_object().is_none_or(|map| !map.is_empty()));
        let key = ["rope_scaling", "rope_parameters"].into_iter().find(is_given).unwrap_or("rope_parameters");
        let inner = match self.value(key) {
            None => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(other) => return self.refuse(key, "an object", other),
        };
        let parameters = Self { file: self.file.clone(), map: inner };
        let theta = self.number("rope_theta", Some(10_000.0))?;
        let theta = parameters.number("rope_theta", Some(theta))?;
        let kind = parameters.value("rope_type").or_else(|| parameters.value("type"));
        let kind = kind.map_or(Some("default"), Value::as_str).unwrap_or("");
        if let Some(partial) = parameters.value("partial_rotary_factor").filter(|value| value.as_f64() != Some(1.0)) {
            return self.refuse(&format!("{key}.partial_rotary_factor"), "1", partial);
        }
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: parameters.positive("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: parameters.positive("factor")?,
                low_freq_factor: parameters.positive("low_freq_factor")?,
                high_freq_factor: parameters.positive("high_freq_factor")?,
                original_max_position_embeddings: parameters
                    .size("original_max_position_embeddings", Some(max_positions))?
                    as f64,
            },
            other => {
                return self.refuse(&format!("{key}.rope_type"), "default, linear or llama3", format!("{other:?}"));
            }
        };
        Ok((theta, scaling))
    }

    fn positive(&self, key: &str) -> Result<f64> {
        let number = self.number(key, None)?;
        if number > 0.0 && number.is_finite() { Ok(number) } else { self.refuse(key, "a positive number", number) }
    }

    fn gpt2(&self) -> Result<ModelConfig> {
        let (hidden_size, heads) = (self.size("n_embd", Some(768))?, self.size("n_head", Some(12))?);
        if heads == 0 || !hidden_size.is_multiple_of(heads) {
            return self.refuse("n_head", format!("a divisor of n_embd = {hidden_size}"), heads);
        }
        Ok(ModelConfig {
            family: Family::Gpt2,
            hidden_size,
            intermediate_size: self.size("n_inner", Some(hidden_size.saturating_mul(4)))?,
            num_hidden_layers: self.size("n_layer", Some(12))?,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: hidden_size / heads,
            vocab_size: self.size("vocab_size", Some(50_257))?,
            max_position_embeddings: self.size("n_positions", Some(1024))?,
            norm_epsilon: self.number("layer_norm_epsilon", Some(1e-5))?,
            activation: self.activation("activation_function", "gelu_new")?,
            is_gated: false,
            rope_theta: 1.0,
            rope_scaling: RopeScaling::None,
            tie_word_embeddings: self.flag("tie_word_embeddings", true)?,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            encoder_decoder: None,
        })
    }

    fn t5(&self, family: Family) -> Result<ModelConfig> {
        if !self.flag("is_encoder_decoder", true)? || self.flag("is_decoder", false)? {
            return self.refuse("is_encoder_decoder", "true, and is_decoder false", "another part of T5");
        }
        let (heads, layers) = (self.size("num_heads", None)?, self.size("num_layers", None)?);
        let default = if family == Family::Mt5 { "gated-gelu" } else { "relu" };
        let mlp = match self.value("feed_forward_proj") {
            Some(value) => value.as_str().map_or_else(|| self.refuse("feed_forward_proj", "a name", value), Ok)?,
            None => default,
        };
        let (is_gated, name) = match mlp.strip_prefix("gated-") {
            // Hugging Face's class means the approximation by tanh where its files say this.
            Some("gelu") => (true, "gelu_new"),
            Some(name) => (true, name),
            None => (false, mlp),
        };
        let names = "relu, gelu or silu, with or without gated- in front";
        let activation =
            Activation::named(name).map_or_else(|| self.refuse("feed_forward_proj", names, format!("{mlp:?}")), Ok)?;
        let start = self.size("decoder_start_token_id", Some(self.size("pad_token_id", Some(0))?))?;
        // T5 v1.0 has one table and scaled outputs, later versions neither. What transformers 5 writes always says tied, and
        // of mT5 that is said by most: the file then tells whether there is a head.
        let is_tied = self.flag("tie_word_embeddings", true)?;
        let scales = self.flag("scale_decoder_outputs", is_tied)? && family == Family::T5;
        Ok(ModelConfig {
            family,
            hidden_size: self.size("d_model", None)?,
            intermediate_size: self.size("d_ff", None)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: self.size("d_kv", None)?,
            vocab_size: self.size("vocab_size", None)?,
            max_position_embeddings: UNLIMITED,
            norm_epsilon: self.number("layer_norm_epsilon", Some(1e-6))?,
            activation,
            is_gated,
            rope_theta: 1.0,
            rope_scaling: RopeScaling::None,
            tie_word_embeddings: is_tied && scales,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            encoder_decoder: Some(EncoderDecoderConfig {
                num_decoder_layers: self.size("num_decoder_layers", Some(layers))?,
                decoder_start_token_id: u32::try_from(start).unwrap_or(u32::MAX),
                relative_attention_num_buckets: self.size("relative_attention_num_buckets", Some(32))?,
                relative_attention_max_distance: self.size("relative_attention_max_distance", Some(128))?,
                scale_decoder_outputs: scales,
            }),
        })
    }
}

fn from_gguf(metadata: &gguf::Metadata, weights: &Weights) -> Result<ModelConfig> {
    let place = |key: &str| Place::file(metadata.path()).of(key);
    let architecture = metadata.str("general.architecture")?.unwrap_or_default();
    let family = Family::named(architecture).ok_or_else(|| {
        Error::input(place("general.architecture"), "llama, qwen2 or gpt2", format!("{architecture:?}"))
    })?;
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str| -> Result<Option<usize>> {
        Ok(metadata.u64(&key(name))?.map(|value| usize::try_from(value).unwrap_or(usize::MAX)))
    };
    let need = |name: &str| size(name)?.ok_or_else(|| Error::input(place(&key(name)), "a number", "nothing"));
    let number = |name: &str, default: f64| Ok::<_, Error>(metadata.f64(&key(name))?.unwrap_or(default));
    if let Some(experts) = size("expert_count")?.filter(|&count| count > 0) {
        return Err(Error::input(place(&key("expert_count")), "no experts", experts.to_string())
            .hint("this model computes something that softprompt does not"));
    }

    let (hidden_size, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let head_dim = size("attention.key_length")?.unwrap_or(hidden_size / heads.max(1));
    if let Some(rotated) =
        size("rope.dimension_count")?.filter(|&rotated| rotated != head_dim && family != Family::Gpt2)
    {
        return Err(Error::input(place(&key("rope.dimension_count")), head_dim.to_string(), rotated.to_string())
            .hint("partial rotation is not supported"));
    }
    let rope_scaling = match metadata.str(&key("rope.scaling.type"))? {
        None | Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: number("rope.scaling.factor", 1.0)? },
        Some(other) => {
            return Err(Error::input(place(&key("rope.scaling.type")), "none or linear", format!("{other:?}")));
        }
    };
    let embedding = weights.get("token_embd.weight")?;
    let has = |name: &str| weights.find(name).is_some();
    let is_gpt2 = family == Family::Gpt2;
    Ok(ModelConfig {
        family,
        hidden_size,
        intermediate_size: need("feed_forward_length")?,
        num_hidden_layers: need("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        vocab_size: embedding.shape().first().copied().unwrap_or(0),
        max_position_embeddings: need("context_length")?,
        norm_epsilon: if is_gpt2 {
            number("attention.layer_norm_epsilon", 1e-5)?
        } else {
            number("attention.layer_norm_rms_epsilon", 1e-6)?
        },
        activation: if is_gpt2 { Activation::GeluTanh } else { Activation::Silu },
        is_gated: !is_gpt2,
        rope_theta: number("rope.freq_base", 10_000.0)?,
        rope_scaling,
        tie_word_embeddings: !has("output.weight"),
        qkv_bias: is_gpt2 || has("blk.0.attn_q.bias"),
        output_bias: is_gpt2 || has("blk.0.attn_output.bias"),
        mlp_bias: is_gpt2 || has("blk.0.ffn_up.bias"),
        encoder_decoder: None,
    })
}
