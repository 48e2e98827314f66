//! Whole models on a GPU: losses and prompt gradients against PEFT's, what a step keeps, how often it waits, and that its
//! bits depend on nothing.

mod cases;
mod common;
#[path = "common/cuda.rs"]
mod gpu;

use cases::models::{batch, gpt2, llama, prompt, qwen2};
use common::{Golden, causal_rows, close_absolute, golden, golden_cases};
use gpu::{cuda, cuda_with, squared_error};
use softprompt::device::{CudaOptions, Kind, Matmul};
use softprompt::generate::{Generator, Sampling};
use softprompt::models::{Family, ModelConfig};
use softprompt::optim::{AdamWConfig, Optimizer, OptimizerConfig};
use softprompt::{Batch, DType, Device, Model, ModelOptions, WeightStorage};

fn options(dtype: DType) -> ModelOptions {
    ModelOptions { dtype, weights: WeightStorage::Mapped, ..ModelOptions::default() }
}

fn golden_batch(file: &Golden, case: &str) -> Batch {
    let mut batch = Batch::new();
    for (input, target) in causal_rows(file, case) {
        batch.push(&input, &target).unwrap();
    }
    batch
}

/// Loss and gradient of every model's main case. `factor`: how many times PEFT's own float32 error f32 may be off.
fn check_golden(device: &Device, factor: f64) {
    let cases: Vec<_> = golden_cases().into_iter().filter(|(_, case)| case == "main").collect();
    assert!(cases.len() >= 4, "golden files are missing: {cases:?}");
    for (name, case) in cases {
        let folder = golden(&name);
        let file = Golden::read(&folder.join("golden.safetensors"));
        let meta = std::fs::read(folder.join("meta.json")).unwrap();
        let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
        let rows = file.shape(&format!("{case}.prompt"))[0];
        let batch = golden_batch(&file, &case);
        let loss = file.numbers(&format!("{case}.losses_f64"))[0];
        let want = file.numbers(&format!("{case}.grad_f64"));
        for dtype in [DType::F32, DType::BF16] {
            let what = format!("{name} {case} {dtype}");
            let model = Model::open(&folder, device, options(dtype)).unwrap();
            let prompt = model.prompt_from(rows, &file.numbers(&format!("{case}.prompt"))).unwrap();
            let found = model.loss_and_grad(&prompt, &batch).unwrap();
            let grad = found.grad.to_f64_vec().unwrap();
            if dtype == DType::F32 {
                // How far PEFT's own float32 is from its float64; where its loss happens to be exact, an f32's spacing.
                let number = |key: &str| meta["cases"][&case][key].as_f64().unwrap();
                let allowed = factor * number("f32_peft_loss_abs_diff").max(loss * f64::from(f32::EPSILON));
                close_absolute(&format!("{what} loss"), &[found.loss.mean], &[loss], allowed);
                let allowed = factor * number("f32_peft_grad_max_abs_diff");
                close_absolute(&format!("{what} gradient"), &grad, &want, allowed);
            } else {
                // Eight bits of mantissa, rounded some twenty times a layer: a few per cent in the smallest models.
                close_absolute(&format!("{what} loss"), &[found.loss.mean], &[loss], 0.01 * loss);
                let error = squared_error(&grad, &want);
                println!("{what}: normalised squared error of the gradient {error:e}");
                assert!(error < 1e-2, "{what}: normalised squared error of the gradient {error:e}");
            }
        }
    }
}

#[test]
fn losses_and_gradients_are_those_of_peft() {
    // The library adds in an order of its own.
    check_golden(&cuda(), 8.0);
}

#[test]
fn losses_and_gradients_without_cublaslt_are_those_of_peft() {
    check_golden(&cuda_with(CudaOptions { matmul: Matmul::Own, ..CudaOptions::default() }), 4.0);
}

#[test]
fn five_adamw_steps_end_where_pefts_do() {
    let device = cuda();
    for (name, case) in golden_cases().into_iter().filter(|(_, case)| case == "main") {
        let folder = golden(&name);
        let file = Golden::read(&folder.join("golden.safetensors"));
        let model = Model::open(&folder, &device, options(DType::F32)).unwrap();
        let rows = file.shape(&format!("{case}.prompt"))[0];
        let mut prompt = model.prompt_from(rows, &file.numbers(&format!("{case}.prompt"))).unwrap();
        let batch = golden_batch(&file, &case);
        let adamw = AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let mut optimizer = Optimizer::new(&OptimizerConfig::AdamW(adamw), &prompt).unwrap();
        let mut losses = Vec::new();
        for _ in 0..5 {
            let found = model.loss_and_grad(&prompt, &batch).unwrap();
            losses.push(found.loss.mean);
            optimizer.step(&mut prompt, &found.grad, 0.05).unwrap();
        }
        losses.push(model.loss(&prompt, &batch).unwrap().mean);
        let what = format!("{name} {case} after 5 steps");
        let want = file.numbers(&format!("{case}.losses_f64"));
        close_absolute(&format!("{what}: losses"), &losses, &want, 1e-4 * want[0]);
        // A first step of Adam goes by the sign of a gradient, so one near 0 may go the other way: the norm counts.
        let want = file.numbers(&format!("{case}.prompt_after5_f64"));
        let ours = squared_error(&prompt.to_f64_vec().unwrap(), &want);
        let pefts = squared_error(&file.numbers(&format!("{case}.prompt_after5_f32")), &want);
        assert!(ours <= 16.0 * pefts.max(1e-12), "{what}: squared error {ours:e}, PEFT's float32 {pefts:e}");
    }
}

/// Bytes saved for the backward pass, as `tests/saved_bytes.rs` counts them. `rows` is the whole stream, `scored` the
/// label rows; log-sum-exps are f32 in any type.
fn saved(config: &ModelConfig, dtype: DType, prompt: usize, rows: usize, scored: usize) -> usize {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let in_mlp = if config.family == Family::Gpt2 { inner } else { 2 * inner };
    let layers = config.num_hidden_layers;
    let of_layers = (0..layers).map(|layer| {
        let before = if layer == 0 { prompt } else { rows };
        let after = if layer + 1 == layers { scored } else { rows };
        let elements = before * (width + 2 * keys) + after * (2 * queries + width + in_mlp);
        // The attention's output is saved with 8 bits more than bf16 has.
        let low = if dtype == DType::BF16 { after * queries } else { 0 };
        elements * dtype.size() + low + after * config.num_attention_heads * DType::F32.size()
    });
    of_layers.sum::<usize>() + 2 * scored * width * dtype.size()
}

#[test]
fn a_step_saves_what_the_design_lists_and_waits_once() {
    let device = cuda();
    let Device::Cuda(gpu) = &device else { unreachable!() };
    for config in [llama(1), llama(3), gpt2(2)] {
        for dtype in [DType::F32, DType::BF16] {
            for examples in [&[(6, 2)][..], &[(1, 1), (9, 3), (4, 1)], &[(3, 1); 20]] {
                let what = format!("{:?} {} layers {dtype} {examples:?}", config.family, config.num_hidden_layers);
                let model = Model::random(config.clone(), 1, &device, options(dtype)).unwrap();
                let (prompt, batch) = (prompt(&model, 5, 4), batch(&config, examples, 3));
                // Tables that stay are made by the first step.
                drop(model.loss_and_grad(&prompt, &batch).unwrap());
                device.reset_peak();
                let (before, waited) = (device.memory(), gpu.synchronizations());
                let result = model.loss_and_grad(&prompt, &batch).unwrap();
                assert_eq!(gpu.synchronizations() - waited, 1, "{what}: only the loss is waited for");
                let rows = 5 + examples.iter().map(|(input, label)| input + label - 1).sum::<usize>();
                let want = saved(&config, dtype, 5, rows, batch.label_tokens());
                assert_eq!(device.memory().peak(Kind::SavedActivations), want, "{what}");
                drop(result);
                let after = device.memory();
                for kind in Kind::ALL {
                    assert_eq!(after.current(kind), before.current(kind), "{what}: {} after the step", kind.name());
                }
            }
        }
    }
    assert_eq!(device.memory().current_total(), 0, "what models held is given back");
}

/// Steps of AdamW over batches of one shape with other tokens, with a batch of another shape between them.
fn trained(device: &Device, config: &ModelConfig, dtype: DType) -> Vec<u64> {
    let model = Model::random(config.clone(), 1, device, options(dtype)).unwrap();
    let mut prompt = prompt(&model, 6, 2);
    let mut optimizer = Optimizer::new(&OptimizerConfig::AdamW(AdamWConfig::default()), &prompt).unwrap();
    let mut bits = Vec::new();
    for step in 0..12 {
        let lengths: &[(usize, usize)] = if step == 7 { &[(3, 1), (9, 2)] } else { &[(6, 2), (6, 1), (5, 2)] };
        let found = model.loss_and_grad(&prompt, &batch(config, lengths, 10 + step)).unwrap();
        bits.push(found.loss.mean.to_bits());
        optimizer.step(&mut prompt, &found.grad, 0.05).unwrap();
    }
    bits.extend(prompt.to_f64_vec().unwrap().iter().map(|x| x.to_bits()));
    bits
}

#[test]
fn steps_of_one_shape_become_a_graph_and_change_no_bit() {
    for config in [llama(2), gpt2(2)] {
        for dtype in [DType::F32, DType::BF16] {
            for matmul in [Matmul::Own, Matmul::Auto] {
                let options = CudaOptions { pooled: true, graphs: true, matmul, ..CudaOptions::default() };
                let (with, without) = (cuda_with(options), cuda_with(CudaOptions { graphs: false, ..options }));
                let got = trained(&with, &config, dtype);
                assert!(got == trained(&without, &config, dtype), "{:?} {dtype} {matmul:?}", config.family);
                let launches = |device: &Device| match device {
                    Device::Cuda(gpu) => gpu.graph_launches(),
                    Device::Cpu(_) => unreachable!(),
                };
                assert!(launches(&with) >= 4, "{} of 12 steps were a graph", launches(&with));
                assert_eq!(launches(&without), 0);
                assert_eq!(with.memory().current_total(), 0, "all memory is given back");
            }
        }
    }
}

#[test]
fn weights_are_held_once_in_the_type_computed_in_or_as_stored() {
    let device = cuda();
    let weights = |dtype, storage| {
        let model =
            Model::random(llama(2), 1, &device, ModelOptions { dtype, weights: storage, ..ModelOptions::default() })
                .unwrap();
        let config = model.config().clone();
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let layer = width * (2 * queries + 2 * keys + 3 * inner + 2);
        let elements = config.vocab_size * width + config.num_hidden_layers * layer + width;
        (device.memory().current(Kind::Weights), elements)
    };
    for storage in [WeightStorage::Mapped, WeightStorage::Widened] {
        for dtype in [DType::F32, DType::BF16] {
            let (held, elements) = weights(dtype, storage);
            assert_eq!(held, elements * dtype.size(), "{dtype} {storage:?}");
        }
    }
}

#[test]
fn a_continuation_is_the_cpus() {
    let (cpu, gpu) = (Device::cpu(Some(1)).unwrap(), cuda());
    for config in [llama(2), qwen2(2), gpt2(2)] {
        let inputs: [&[u32]; 3] = [&[5, 9, 2], &[7], &[1, 1, 4, 3, 8, 6]];
        let run = |device: &Device| {
            let model = Model::random(config.clone(), 3, device, options(DType::F32)).unwrap();
            let prompt = prompt(&model, 4, 7);
            let sampling = Sampling::GREEDY;
            Generator::new(&model, &prompt).unwrap().generate(&inputs, 9, sampling, &mut |_| false).unwrap()
        };
        assert_eq!(run(&gpu), run(&cpu), "{:?}", config.family);
    }
}

/// A hash of the bits of a few steps, printed for [`no_bit_depends_on_the_order_of_blocks`].
#[test]
fn print_bits() {
    let device = cuda();
    let mut bits = Vec::new();
    for config in [llama(2), gpt2(2)] {
        for dtype in [DType::F32, DType::BF16] {
            let model = Model::random(config.clone(), 1, &device, options(dtype)).unwrap();
            let (prompt, batch) =
                (prompt(&model, 9, 2), batch(&config, &[(7, 1), (0, 2), (13, 3), (1, 1), (40, 5)], 3));
            let steps = [(); 2].map(|()| {
                let found = model.loss_and_grad(&prompt, &batch).unwrap();
                let numbers = std::iter::once(found.loss.mean).chain(found.grad.to_f64_vec().unwrap());
                numbers.flat_map(|x| x.to_bits().to_le_bytes()).collect::<Vec<u8>>()
            });
            assert!(steps[0] == steps[1], "{:?} {dtype}: two steps of one input differ", config.family);
            bits.extend(&steps[0]);
        }
    }
    println!("bits {}", softprompt::values::sha256_hex(&bits));
}

#[test]
fn no_bit_depends_on_the_order_of_blocks() {
    gpu::assert_order_of_blocks_changes_no_bit();
}
