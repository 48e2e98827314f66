//! Tiny models with random weights, and batches for them.

use super::Random;
use softprompt::models::{EncoderDecoderConfig, Family, ModelConfig};
use softprompt::ops::Activation;
use softprompt::{Batch, Model, Tensor};

/// Grouped queries, heads that together are wider than the model, nothing a power of two.
pub fn llama(layers: usize) -> ModelConfig {
    ModelConfig {
        hidden_size: 20,
        intermediate_size: 33,
        num_hidden_layers: layers,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 6,
        vocab_size: 61,
        max_position_embeddings: 256,
        ..ModelConfig::named("smollm2-135m").unwrap()
    }
}

/// Biases, one key head, a head of its own.
pub fn qwen2(layers: usize) -> ModelConfig {
    ModelConfig {
        family: Family::Qwen2,
        num_key_value_heads: 1,
        qkv_bias: true,
        tie_word_embeddings: false,
        ..llama(layers)
    }
}

pub fn gpt2(layers: usize) -> ModelConfig {
    ModelConfig {
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: layers,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        head_dim: 6,
        vocab_size: 67,
        max_position_embeddings: 256,
        ..ModelConfig::named("gpt2").unwrap()
    }
}

/// T5 v1.0: ReLU, and a tied head that is scaled. Few distances are told apart, so most biases are of several.
pub fn t5(layers: usize) -> ModelConfig {
    let full = ModelConfig::named("t5-small").unwrap();
    let more = full.encoder_decoder.unwrap();
    ModelConfig {
        hidden_size: 20,
        intermediate_size: 33,
        num_hidden_layers: layers,
        num_attention_heads: 3,
        num_key_value_heads: 3,
        head_dim: 6,
        vocab_size: 61,
        encoder_decoder: Some(EncoderDecoderConfig {
            num_decoder_layers: layers,
            relative_attention_num_buckets: 8,
            relative_attention_max_distance: 20,
            ..more
        }),
        ..full
    }
}

/// T5 v1.1: a gate, and a head of its own. A decoder of another depth.
pub fn t5_v11(layers: usize) -> ModelConfig {
    let v10 = t5(layers);
    let more = v10.encoder_decoder.unwrap();
    ModelConfig {
        activation: Activation::GeluTanh,
        is_gated: true,
        tie_word_embeddings: false,
        encoder_decoder: Some(EncoderDecoderConfig {
            num_decoder_layers: layers + 1,
            scale_decoder_outputs: false,
            ..more
        }),
        ..v10
    }
}

/// Ids of examples of the given (input, label) lengths.
pub fn examples(config: &ModelConfig, lengths: &[(usize, usize)], seed: u64) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut random = Random::new(seed);
    let mut ids = |count| (0..count).map(|_| random.below(config.vocab_size) as u32).collect::<Vec<u32>>();
    lengths.iter().map(|&(input, label)| (ids(input), ids(label))).collect()
}

pub fn batch_of(examples: &[(Vec<u32>, Vec<u32>)]) -> Batch {
    let mut batch = Batch::new();
    examples.iter().for_each(|(input, label)| batch.push(input, label).unwrap());
    batch
}

pub fn batch(config: &ModelConfig, lengths: &[(usize, usize)], seed: u64) -> Batch {
    batch_of(&examples(config, lengths, seed))
}

pub fn prompt(model: &Model, rows: usize, seed: u64) -> Tensor {
    model.prompt_from(rows, &Random::new(seed).numbers(rows * model.config().hidden_size)).unwrap()
}
