//! What a model is, read from `config.json` or a GGUF file's metadata. A value that would change the computation in a way
//! this crate does not implement is refused by name.

mod from_gguf;
mod hugging_face;

use crate::error::{Error, Place, Result};
use crate::ops::{Activation, attention::Heads};
use crate::weights::Weights;
use from_gguf::from_gguf;
use hugging_face::HuggingFace;
use serde_json::Value;
use std::path::Path;

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
            if !(1..=1 << 30).contains(&more.num_decoder_layers) {
                return wrong("num_decoder_layers", "a positive size", more.num_decoder_layers.to_string());
            }
            let (buckets, distance) = (more.relative_attention_num_buckets, more.relative_attention_max_distance);
            if !(4..=1 << 20).contains(&buckets) || !buckets.is_multiple_of(2) {
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
