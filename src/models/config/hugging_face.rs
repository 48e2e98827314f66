//! The sizes of a model from its `config.json`.

use super::{EncoderDecoderConfig, Family, ModelConfig, RopeScaling, UNLIMITED};
use crate::error::{Error, Place, Result};
use crate::ops::Activation;
use serde_json::{Map, Value};
use std::path::PathBuf;

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
pub(super) struct HuggingFace {
    pub(super) file: PathBuf,
    pub(super) map: Map<String, Value>,
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

    pub(super) fn read(&self) -> Result<ModelConfig> {
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
        let (layers, heads) = (self.size("num_layers", None)?, self.size("num_heads", None)?);
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
