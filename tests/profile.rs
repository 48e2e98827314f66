//! The predicted memory of a step beside the device's account of it.

#[path = "cases/mod.rs"]
#[allow(dead_code, reason = "shared by several tests")]
mod cases;

use softprompt::device::Kind;
use softprompt::models::{Family, Recompute};
use softprompt::profile::{Method, Parameters, Setup, Stream, measure, predict};
use softprompt::{DType, Device, Model, ModelConfig, ModelOptions, WeightStorage};

fn llama(width: usize, inner: usize, layers: usize, (heads, key_heads): (usize, usize), tokens: usize) -> ModelConfig {
    ModelConfig {
        hidden_size: width,
        intermediate_size: inner,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: key_heads,
        head_dim: width / heads,
        vocab_size: tokens,
        ..ModelConfig::named("smollm2-135m").unwrap()
    }
}

fn gpt2(width: usize, layers: usize, heads: usize, tokens: usize) -> ModelConfig {
    ModelConfig {
        hidden_size: width,
        intermediate_size: 4 * width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: width / heads,
        vocab_size: tokens,
        ..ModelConfig::named("gpt2").unwrap()
    }
}

/// A step: the model, the type, P, B, T, threads.
type Case = (&'static str, ModelConfig, DType, (usize, usize, usize), usize);

fn cases() -> Vec<Case> {
    use DType::{F32, F64};
    let qwen2 = ModelConfig {
        family: Family::Qwen2,
        qkv_bias: true,
        tie_word_embeddings: false,
        ..llama(192, 640, 3, (6, 2), 3000)
    };
    vec![
        ("llama, wide vocabulary", llama(192, 512, 4, (3, 1), 12_000), F32, (20, 8, 32), 2),
        ("llama, deep", llama(144, 384, 12, (3, 3), 1000), F32, (10, 8, 24), 2),
        ("llama, long prompt", llama(192, 512, 4, (6, 2), 2000), F32, (200, 16, 8), 2),
        ("llama, many short examples", llama(192, 512, 3, (3, 1), 2000), F32, (8, 100, 6), 3),
        ("llama, one long example", llama(192, 384, 3, (3, 3), 2000), F32, (16, 1, 400), 1),
        ("llama, f64", llama(160, 448, 4, (5, 5), 1500), F64, (20, 8, 24), 2),
        ("llama, two layers", llama(256, 1024, 2, (4, 2), 4000), F32, (50, 12, 20), 2),
        ("llama, one layer", llama(256, 512, 1, (4, 2), 4000), F32, (50, 12, 20), 2),
        ("qwen2, untied", qwen2.clone(), F32, (20, 8, 32), 2),
        ("qwen2, f64", ModelConfig { num_hidden_layers: 2, ..qwen2 }, F64, (4, 6, 40), 2),
        ("gpt2", gpt2(192, 4, 6, 3000), F32, (20, 8, 32), 2),
        ("gpt2, f64", gpt2(144, 3, 3, 1000), F64, (30, 10, 16), 2),
        ("narrow llama", llama(96, 256, 4, (6, 2), 1000), F32, (20, 8, 32), 2),
        ("narrow gpt2", gpt2(64, 3, 4, 500), F32, (10, 20, 10), 2),
    ]
}

/// Predicted and measured, in all and by kind.
fn check(what: &str, model: &Model, (prompt_rows, examples, tokens): (usize, usize, usize)) {
    let measured = measure(model, prompt_rows, examples, tokens).unwrap();
    let setup = Setup::of(model);
    let of_prompt = if setup.method == Method::Prompt { prompt_rows } else { 0 };
    assert_eq!(measured.stream, Stream::even(of_prompt, examples, tokens, 1), "{what}");
    let predicted = predict(&setup, &measured.stream, model.recompute());
    let (total, want) = (predicted.total() as f64, measured.memory.peak_total() as f64);
    let error = 100.0 * (total / want - 1.0);
    // What is above the weights is what the formulas are about.
    let weights = measured.memory.at_peak(Kind::Weights) as f64;
    let above = 100.0 * ((total - predicted.peak().bytes(Kind::Weights) as f64) / (want - weights) - 1.0);
    println!(
        "| {what}, {:?}, {} | {prompt_rows}, {examples}, {tokens} | {:.2} | {:.2} | {error:+.1} % | {above:+.1} % | {} |",
        setup.method,
        model.recompute().name(),
        total / f64::from(1 << 20),
        want / f64::from(1 << 20),
        predicted.peak().name,
    );
    for kind in Kind::ALL {
        println!(
            "      {:>18} {:>12} {:>12} | {:>12} {:>12}",
            kind.name(),
            predicted.peak().bytes(kind),
            measured.memory.at_peak(kind),
            predicted.most(kind),
            measured.memory.peak(kind)
        );
    }
}

#[test]
fn a_prediction_is_within_a_tenth_of_what_is_measured() {
    for (name, config, dtype, sizes, threads) in cases() {
        for trainable in [false, true] {
            let device = Device::cpu(Some(threads)).unwrap();
            for recompute in Recompute::ALL {
                let options = ModelOptions { dtype, weights: WeightStorage::Mapped, recompute, trainable };
                let model = Model::random(config.clone(), 1, &device, options).unwrap();
                check(name, &model, sizes);
            }
        }
    }
}
