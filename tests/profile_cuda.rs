//! The predicted memory of a step on a GPU beside the device's account of it, on the stand-in driver or a real GPU.

#[path = "common/cuda.rs"]
mod gpu;

use softprompt::device::{CudaOptions, Kind, Matmul};
use softprompt::models::Recompute;
use softprompt::profile::{Setup, Stream, measure, predict};
use softprompt::{DType, Model, ModelConfig, ModelOptions};

fn small(name: &str, width: usize, layers: usize, (heads, key_heads): (usize, usize), tokens: usize) -> ModelConfig {
    let shape = ModelConfig::named(name).unwrap();
    ModelConfig {
        hidden_size: width,
        intermediate_size: if name == "gpt2" { 4 * width } else { 3 * width },
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: key_heads,
        head_dim: width / heads,
        vocab_size: tokens,
        ..shape
    }
}

#[test]
fn a_prediction_is_within_a_tenth_of_what_a_gpu_holds() {
    let llama = small("smollm2-135m", 64, 3, (2, 1), 600);
    let cases = [
        ("llama", llama.clone(), (8, 6, 10)),
        ("llama, long prompt", llama, (70, 4, 6)),
        ("qwen2", small("qwen2.5-0.5b", 96, 3, (3, 1), 800), (4, 8, 12)),
        ("gpt2", small("gpt2", 64, 3, (2, 2), 500), (10, 6, 8)),
        ("t5", small("t5-small", 64, 2, (2, 2), 500), (10, 4, 30)),
    ];
    for (name, config, (prompt_rows, examples, tokens)) in cases {
        for dtype in [DType::F32, DType::BF16] {
            for (trainable, recompute) in [false, true].into_iter().flat_map(|t| Recompute::ALL.map(|r| (t, r))) {
                // What cuBLASLt asks for beside its operands is its own choice, and much beside so small a model.
                let own = CudaOptions { pooled: gpu::is_real(), matmul: Matmul::Own, ..CudaOptions::default() };
                let device = gpu::cuda_with(own);
                let options = ModelOptions { dtype, recompute, trainable, ..ModelOptions::default() };
                let model = Model::random(config.clone(), 1, &device, options).unwrap();
                let found = measure(&model, prompt_rows, examples, tokens).unwrap().memory;
                let stream = Stream::even(if trainable { 0 } else { prompt_rows }, examples, tokens, 1);
                let predicted = predict(&Setup::of(&model), &stream, recompute);
                let error = 100.0 * (predicted.total() as f64 / found.peak_total() as f64 - 1.0);
                println!(
                    "{name}, {dtype}, trainable {trainable}, {}: {error:+.1} %, {}",
                    recompute.name(),
                    predicted.peak().name
                );
                for kind in Kind::ALL {
                    println!(
                        "    {:>18} {:>10} {:>10}",
                        kind.name(),
                        predicted.peak().bytes(kind),
                        found.at_peak(kind)
                    );
                }
                assert!(error.abs() < 10.0, "{name}, {dtype}, {}: {error:+.1} %", recompute.name());
            }
        }
    }
}
