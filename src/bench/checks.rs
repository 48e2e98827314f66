//! What can be told of a step before anything is made for it.

use crate::device::{self, Device};
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::models::{ModelConfig, Recompute};

/// Refuses a step that needs more positions than a model has.
///
/// # Errors
/// [`Error::Config`] saying how many there are.
pub fn check_positions(config: &ModelConfig, prompt_rows: usize, tokens: usize) -> Result<()> {
    let limit = config.max_position_embeddings;
    // The last token is only predicted: it is no row.
    let needed = prompt_rows.saturating_add(tokens).saturating_sub(1);
    if needed <= limit {
        return Ok(());
    }
    let (expected, got) = (format!("at most {limit} positions"), format!("{prompt_rows} prompt rows, {tokens} tokens"));
    Err(Error::config(Place::item("tokens"), expected, got)
        .hint("prompt rows and tokens of an example share the model's positions; take fewer of either"))
}

/// Refuses a step on a CPU that would keep more than the system has: such a process is ended rather than told. What is
/// refused could not have run; what is not may still be too large. A GPU says itself when its memory is full.
///
/// `weight_copies` is how often the model's matrices will be held in `dtype` beside what is held now: themselves, if they are
/// still to be made, and their gradient and the two of the optimizer, if they are trained.
///
/// # Errors
/// [`Error::Device`] saying what there is.
pub fn check_memory(
    config: &ModelConfig,
    device: &Device,
    dtype: DType,
    recompute: Recompute,
    stream_rows: usize,
    weight_copies: usize,
) -> Result<()> {
    let Some(available) = device::available_memory().filter(|_| matches!(device, Device::Cpu(_))) else {
        return Ok(());
    };
    let saved = least_saved(config, recompute, stream_rows);
    let least = weights(config).saturating_mul(weight_copies).saturating_add(saved).saturating_mul(dtype.size());
    if least <= available {
        return Ok(());
    }
    let what = if weight_copies == 0 { "saved activations" } else { "saved activations and weights" };
    let expected = format!("{} MiB at least for {what}", least >> 20);
    Err(Error::device(Place::item("cpu"), expected, format!("{} MiB available", available >> 20))
        .hint("take fewer or shorter examples, --recompute layer, or a smaller model"))
}

/// Elements of the model's matrices.
fn weights(config: &ModelConfig) -> usize {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let in_mlp = config.mlp_inputs() + 1;
    let layer = width * (2 * queries + 2 * keys + in_mlp * inner);
    let tables = if config.tie_word_embeddings { 1 } else { 2 };
    config.num_hidden_layers * layer + tables * config.vocab_size * width
}

/// Elements that any step keeps until its backward pass: of a layer after the first its input, and of one between first and
/// last what the policy keeps of the rest.
fn least_saved(config: &ModelConfig, recompute: Recompute, rows: usize) -> usize {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let attention = 2 * keys + 2 * queries + config.num_attention_heads + width;
    let mlp = config.mlp_inputs() * inner;
    let rest = match recompute {
        Recompute::None => attention + mlp,
        Recompute::Mlp => attention,
        Recompute::Layer => 0,
    };
    let layers = config.num_hidden_layers;
    rows.saturating_mul((layers - 1) * width + layers.saturating_sub(2) * rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_shared_by_prompt_and_tokens() {
        let config = ModelConfig::named("gpt2").unwrap();
        assert!(check_positions(&config, 100, 925).is_ok());
        for (prompt, tokens) in [(100, 926), (1025, 1), (usize::MAX, usize::MAX)] {
            assert_eq!(check_positions(&config, prompt, tokens).unwrap_err().exit_code(), 3);
        }
    }

    #[test]
    fn what_no_machine_can_keep_is_refused() {
        let config = ModelConfig::named("smollm2-135m").unwrap();
        let cpu = Device::cpu(Some(1)).unwrap();
        let check = |rows| check_memory(&config, &cpu, DType::F32, Recompute::Layer, rows, 0);
        assert!(check(1).is_ok());
        if device::available_memory().is_some() {
            assert_eq!(check(usize::MAX).unwrap_err().exit_code(), 6);
            let many = check_memory(&config, &cpu, DType::F32, Recompute::Layer, 1, usize::MAX).unwrap_err();
            assert!(many.to_string().contains("weights"), "{many}");
        }
    }

    #[test]
    fn matrices_are_counted_as_their_authors_do() {
        // Parameters without norms and biases: 134.5 million in all by its authors, 61 norms of 576 among them.
        assert_eq!(weights(&ModelConfig::named("smollm2-135m").unwrap()), 134_515_008 - 61 * 576);
    }

    #[test]
    fn the_least_is_counted_by_policy() {
        let config = ModelConfig { num_hidden_layers: 3, ..ModelConfig::named("gpt2").unwrap() };
        let input = 2 * 768;
        let attention = 4 * 768 + 12 + 768;
        for (policy, want) in [
            (Recompute::Layer, input),
            (Recompute::Mlp, input + attention),
            (Recompute::None, input + attention + 3072),
        ] {
            assert_eq!(least_saved(&config, policy, 10), 10 * want, "{policy:?}");
        }
    }
}
