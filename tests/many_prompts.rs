//! Several prompts in one pass against each by itself.

mod cases;
mod common;
#[path = "common/cuda.rs"]
mod gpu;

use cases::models::{batch, gpt2, llama, prompt, qwen2};
use common::{close, golden};
use softprompt::device::CudaOptions;
use softprompt::layout::PromptOn;
use softprompt::models::ModelConfig;
use softprompt::{Batch, DType, Device, Model, ModelOptions, Tensor};

/// A prompt, its batch, and the label tokens of the larger one that the batch is part of.
type Member = (Tensor, Batch, usize);
/// Tokens of the input and of the label of each example.
type Lengths = &'static [(usize, usize)];

/// Prompts of uneven length with batches of uneven length and number; a single row, and a single label, among them.
fn members(model: &Model) -> Vec<Member> {
    let batches: [Lengths; 6] =
        [&[(6, 2), (3, 1)], &[(5, 1)], &[(29, 1); 8], &[(0, 2)], &[(1, 1), (9, 3), (0, 1)], &[(4, 1); 70]];
    let member = |(at, (rows, examples)): (usize, (usize, Lengths))| {
        // Without a prompt in front of it an input cannot be empty.
        let least = usize::from(model.prompt_place().on == PromptOn::Decoder);
        let examples: Vec<_> = examples.iter().map(|&(input, label)| (input.max(least), label)).collect();
        let batch = batch(model.config(), &examples, 3 + at as u64);
        let all = batch.label_tokens() + at;
        (prompt(model, rows, 4 + at as u64), batch, all)
    };
    [5, 1, 12, 3, 1, 40].into_iter().zip(batches).enumerate().map(member).collect()
}

fn found(model: &Model, members: &[Member]) -> Vec<(Vec<f64>, Vec<f64>)> {
    let prompts: Vec<&Tensor> = members.iter().map(|(prompt, ..)| prompt).collect();
    let batches: Vec<&Batch> = members.iter().map(|(_, batch, _)| batch).collect();
    let all: Vec<usize> = members.iter().map(|(.., all)| *all).collect();
    let found = model.losses_and_grads(&prompts, &batches, &all).unwrap();
    assert!(found.iter().zip(members).all(|(found, (prompt, ..))| found.grad.rows() == prompt.rows()));
    found.into_iter().map(|found| (found.loss.by_example, found.grad.to_f64_vec().unwrap())).collect()
}

fn alone(model: &Model, (prompt, batch, all): &Member) -> (Vec<f64>, Vec<f64>) {
    let found = model.loss_and_grad_of_part(prompt, batch, *all).unwrap();
    assert_eq!(found.loss.mean, found.loss.by_example.iter().sum::<f64>() / batch.label_tokens() as f64);
    (found.loss.by_example, found.grad.to_f64_vec().unwrap())
}

/// Whether the matrix library adds up an element's products in their order, whatever the number of rows.
fn sums_in_order() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[test]
fn each_gets_on_a_cpu_bit_for_bit_what_it_gets_by_itself() {
    let wide = ModelConfig { num_hidden_layers: 2, ..ModelConfig::named("smollm2-135m").unwrap() };
    let mut earlier = Vec::new();
    for threads in [1, 2] {
        let device = Device::cpu(Some(threads)).unwrap();
        let mut all = Vec::new();
        let configs = [llama(1), llama(3), qwen2(2), gpt2(2), wide.clone()];
        let mut kinds: Vec<(Option<ModelConfig>, PromptOn)> =
            configs.map(|config| (Some(config), PromptOn::Encoder)).into();
        kinds.extend([PromptOn::Encoder, PromptOn::Decoder].map(|place| (None, place)));
        for (config, place) in kinds {
            for dtype in [DType::F64, DType::F32] {
                let options = ModelOptions { dtype, prompt_on: place, ..ModelOptions::default() };
                let model = match &config {
                    Some(config) => Model::random(config.clone(), 1, &device, options).unwrap(),
                    None => Model::open(golden("t5_v11"), &device, options).unwrap(),
                };
                let config = model.config();
                let members = members(&model);
                let together = found(&model, &members);
                for (at, (member, (losses, grad))) in members.iter().zip(&together).enumerate() {
                    let what = format!("{:?} {} {place:?} {dtype} prompt {at}", config.family, config.hidden_size);
                    let (losses_alone, grad_alone) = alone(&model, member);
                    let tolerance = match dtype {
                        // The library has a kernel of its own for products of up to 4096 multiplications.
                        _ if sums_in_order() && config.hidden_size > 16 => 0.0,
                        DType::F64 => 1e-13,
                        _ => 1e-5,
                    };
                    close(&what, grad, &grad_alone, tolerance);
                    close(&what, losses, &losses_alone, tolerance);
                }
                all.push(together);
            }
        }
        assert!(earlier.is_empty() || earlier == all, "the bits depend on the threads");
        earlier = all;
    }
}

#[test]
fn each_gets_on_a_gpu_what_it_gets_by_itself() {
    gpu::with_stand_in();
    let device = gpu::cuda_with(CudaOptions { pooled: true, ..CudaOptions::default() });
    for config in [llama(2), gpt2(2)] {
        let model = Model::random(config.clone(), 1, &device, ModelOptions::default()).unwrap();
        let members = members(&model);
        // Often enough for the commands to become a graph.
        let mut together = found(&model, &members);
        for _ in 0..3 {
            let again = found(&model, &members);
            assert_eq!(again, together, "{:?}: another time, other bits", config.family);
            together = again;
        }
        for (at, (member, (losses, grad))) in members.iter().zip(&together).enumerate() {
            let what = format!("{:?} prompt {at}", config.family);
            let (losses_alone, grad_alone) = alone(&model, member);
            close(&what, grad, &grad_alone, 1e-5);
            close(&what, losses, &losses_alone, 1e-5);
        }
    }
}

#[test]
fn what_makes_no_pass_is_refused() {
    let device = Device::cpu(Some(1)).unwrap();
    let model = Model::random(llama(1), 1, &device, ModelOptions::default()).unwrap();
    let (good, batch) = (prompt(&model, 2, 1), batch(model.config(), &[(3, 1)], 1));
    let code = |prompts: &[&Tensor], batches: &[&Batch], all: &[usize]| {
        model.losses_and_grads(prompts, batches, all).unwrap_err().exit_code()
    };
    assert_eq!(code(&[], &[], &[]), 1);
    assert_eq!(code(&[&good, &good], &[&batch], &[1, 1]), 1);
    assert_eq!(code(&[&good], &[&batch], &[]), 1);
    let none = model.prompt_from(0, &[]).unwrap();
    assert_eq!(code(&[&good, &none], &[&batch, &batch], &[1, 1]), 4);
    let other = Model::random(gpt2(1), 1, &device, ModelOptions::default()).unwrap();
    assert_eq!(code(&[&good, &prompt(&other, 2, 1)], &[&batch, &batch], &[1, 1]), 4);
}
