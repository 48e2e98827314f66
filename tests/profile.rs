//! The predicted memory of a step beside the device's account of it.

#[path = "cases/mod.rs"]
mod cases;

use softprompt::device::Kind;
use softprompt::models::{EncoderDecoderConfig, Family, Recompute};
use softprompt::profile::{Method, Parameters, Setup, Stream, measure, predict};
use softprompt::{DType, Device, Model, ModelConfig, ModelOptions};

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

fn t5(width: usize, layers: usize, heads: usize, tokens: usize) -> ModelConfig {
    let named = ModelConfig::named("t5-small").unwrap();
    let more = named.encoder_decoder.unwrap();
    ModelConfig {
        hidden_size: width,
        intermediate_size: 3 * width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: 24,
        vocab_size: tokens,
        encoder_decoder: Some(EncoderDecoderConfig { num_decoder_layers: layers, ..more }),
        ..named
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
        ("t5", t5(160, 4, 4, 3000), F32, (20, 8, 32), 2),
        ("t5, few keys", t5(160, 3, 10, 2000), F32, (2, 40, 4), 2),
        ("t5, f64, one long example", t5(144, 3, 6, 1500), F64, (30, 1, 200), 1),
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
    assert!(error.abs() < 10.0, "{what}: {error:+.1} %");
    assert!(above.abs() < 15.0, "{what}: {above:+.1} % above the weights");
    for kind in [Kind::Weights, Kind::Optimizer] {
        assert_eq!(predicted.peak().bytes(kind), measured.memory.at_peak(kind) as u64, "{what}: {}", kind.name());
    }
    if setup.config.is_encoder_decoder() {
        // Scratch of single ops is no part of its formulas.
        return;
    }
    // The same bytes may count as saved, as workspace or as gradients a moment earlier or later.
    for kind in [Kind::SavedActivations, Kind::Workspace, Kind::Gradients] {
        let (most, found) = (predicted.most(kind) as f64, measured.memory.peak(kind) as f64);
        assert!((most - found).abs() < 0.25 * found + 0.01 * want, "{what}: {}: {most} {found}", kind.name());
    }
}

#[test]
fn a_prediction_is_within_a_tenth_of_what_is_measured() {
    for (name, config, dtype, sizes, threads) in cases() {
        for trainable in [false, true] {
            let device = Device::cpu(Some(threads)).unwrap();
            for recompute in Recompute::ALL {
                let options = ModelOptions { dtype, recompute, trainable, ..ModelOptions::default() };
                let model = Model::random(config.clone(), 1, &device, options).unwrap();
                check(name, &model, sizes);
            }
        }
    }
}

/// A `config.json` as the hub has it, in a folder.
fn config_of(json: &serde_json::Value) -> ModelConfig {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, json.to_string()).unwrap();
    ModelConfig::read_json(&file).unwrap()
}

fn llama_3_70b() -> ModelConfig {
    config_of(&serde_json::json!({
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": false, "hidden_act": "silu",
    }))
}

fn mistral_7b() -> ModelConfig {
    config_of(&serde_json::json!({
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
        "sliding_window": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
    }))
}

/// The numbers that the hub gives for the files of these models.
#[test]
fn parameters_are_counted_exactly() {
    let named = |name: &str| ModelConfig::named(name).unwrap();
    for (config, count) in [
        (named("gpt2"), 124_439_808),
        (named("smollm2-135m"), 134_515_008),
        (named("qwen2.5-0.5b"), 494_032_768),
        (named("llama-3.2-1b"), 1_235_814_400),
        (mistral_7b(), 7_241_732_096),
        (llama_3_70b(), 70_553_706_496),
    ] {
        assert_eq!(Parameters::of(&config).total, count, "{config:?}");
    }
    // And those of models that are made.
    for (name, config, ..) in cases() {
        let options = ModelOptions { trainable: true, ..ModelOptions::default() };
        let model = Model::random(config.clone(), 1, &Device::cpu(Some(1)).unwrap(), options).unwrap();
        let made: usize = model.parameters().iter().map(|parameter| parameter.value().len()).sum();
        assert_eq!(Parameters::of(&config).total, made as u128, "{name}");
    }
}

#[test]
fn a_model_of_70_billion_weights_is_weighed_without_being_loaded() {
    let gpu =
        |method| Setup { on_gpu: true, dtype: DType::BF16, stored_bits: 16.0, method, ..Setup::new(llama_3_70b(), 1) };
    let stream = Stream::even(100, 8, 128, 1);
    let prompt = predict(&gpu(Method::Prompt), &stream, Recompute::Layer);
    // The weights, twice 70.6e9 bytes, and a table of angles.
    let weights = prompt.peak().bytes(Kind::Weights);
    assert!((141_107_412_992..141_200_000_000).contains(&weights), "{weights}");
    assert!(prompt.total() - weights < 10 << 30, "{}", prompt.total());
    // Weights and gradients in bf16, and three copies in f32: 16 bytes a weight.
    let full = predict(&gpu(Method::Full), &Stream::even(0, 8, 128, 1), Recompute::Layer);
    assert!((16 * 70_553_706_496..17 * 70_553_706_496).contains(&full.total()), "{}", full.total());
}

#[test]
fn sizes_without_end_are_predicted_without_end() {
    let huge = ModelConfig {
        hidden_size: 1 << 30,
        intermediate_size: 1 << 30,
        num_attention_heads: 1 << 30,
        num_key_value_heads: 1,
        head_dim: 1 << 30,
        vocab_size: 1 << 30,
        num_hidden_layers: 1 << 30,
        ..ModelConfig::named("smollm2-135m").unwrap()
    };
    for recompute in Recompute::ALL {
        let stream = Stream::even(usize::MAX, usize::MAX, usize::MAX, usize::MAX);
        assert_eq!(predict(&Setup::new(huge.clone(), 4096), &stream, recompute).total(), u64::MAX);
    }
}
