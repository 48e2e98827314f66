//! The sizes of well-known models, for random weights of their shape.

use super::config::UNLIMITED;
use super::{EncoderDecoderConfig, Family, ModelConfig, RopeScaling};
use crate::ops::Activation;

impl ModelConfig {
    /// The names that [`ModelConfig::named`] knows.
    pub const NAMES: [&str; 6] = ["gpt2", "smollm2-135m", "qwen2.5-0.5b", "llama-3.2-1b", "t5-small", "t5-base"];

    /// The sizes of a well-known model: one of [`ModelConfig::NAMES`].
    pub fn named(name: &str) -> Option<Self> {
        let llama = |width, inner, layers, (heads, key_heads, head_dim), vocabulary, positions, theta| Self {
            family: Family::Llama,
            hidden_size: width,
            intermediate_size: inner,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: key_heads,
            head_dim,
            vocab_size: vocabulary,
            max_position_embeddings: positions,
            norm_epsilon: 1e-5,
            activation: Activation::Silu,
            is_gated: true,
            rope_theta: theta,
            rope_scaling: RopeScaling::None,
            tie_word_embeddings: true,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            encoder_decoder: None,
        };
        let t5 = |width, inner, layers, heads| Self {
            family: Family::T5,
            max_position_embeddings: UNLIMITED,
            norm_epsilon: 1e-6,
            activation: Activation::Relu,
            is_gated: false,
            rope_theta: 1.0,
            encoder_decoder: Some(EncoderDecoderConfig {
                num_decoder_layers: layers,
                decoder_start_token_id: 0,
                relative_attention_num_buckets: 32,
                relative_attention_max_distance: 128,
                scale_decoder_outputs: true,
            }),
            ..llama(width, inner, layers, (heads, heads, 64), 32_128, 1, 1.0)
        };
        Some(match name {
            "smollm2-135m" => llama(576, 1536, 30, (9, 3, 64), 49_152, 8192, 1e5),
            "llama-3.2-1b" => Self {
                rope_scaling: RopeScaling::Llama3 {
                    factor: 32.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position_embeddings: 8192.0,
                },
                ..llama(2048, 8192, 16, (32, 8, 64), 128_256, 131_072, 5e5)
            },
            "qwen2.5-0.5b" => Self {
                family: Family::Qwen2,
                norm_epsilon: 1e-6,
                qkv_bias: true,
                ..llama(896, 4864, 24, (14, 2, 64), 151_936, 32_768, 1e6)
            },
            "gpt2" => Self {
                family: Family::Gpt2,
                activation: Activation::GeluTanh,
                is_gated: false,
                rope_theta: 1.0,
                qkv_bias: true,
                output_bias: true,
                mlp_bias: true,
                ..llama(768, 3072, 12, (12, 12, 64), 50_257, 1024, 1.0)
            },
            "t5-small" => t5(512, 2048, 6, 8),
            "t5-base" => t5(768, 3072, 12, 12),
            _ => return None,
        })
    }
}
