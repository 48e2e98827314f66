//! The account of a step on paper against a real step: the same launches, as often; and against the count of its
//! arithmetic.

mod cases;
mod common;
#[path = "common/cuda.rs"]
mod gpu;

use cases::models::{batch, gpt2, llama, prompt, qwen2};
use softprompt::account::{self, Limit};
use softprompt::device::{CudaOptions, Matmul};
use softprompt::flops::{Product, attention_flops, frozen_products};
use softprompt::models::ModelConfig;
use softprompt::optim::{AdamWConfig, Optimizer, OptimizerConfig, clip_grad_norm, is_finite};
use softprompt::{Batch, DType, Device, Model, ModelOptions, WeightStorage};
use std::collections::BTreeMap;

type Counts = BTreeMap<String, usize>;

/// What `work` puts into the stream.
fn launched(device: &Device, work: impl FnOnce()) -> Counts {
    let Device::Cuda(cuda) = device else { unreachable!() };
    let before = cuda.launches();
    work();
    let since = |(name, count): (&'static str, usize)| {
        let count = count - before.get(name).copied().unwrap_or(0);
        (count > 0).then(|| (name.to_string(), count))
    };
    cuda.launches().into_iter().filter_map(since).collect()
}

fn counted(launches: &[account::Launch]) -> Counts {
    let mut counts = Counts::new();
    launches.iter().for_each(|launch| *counts.entry(launch.name.clone()).or_default() += 1);
    counts
}

#[track_caller]
fn same(what: &str, got: &Counts, want: &Counts) {
    let names: Vec<&String> = got.keys().chain(want.keys()).collect();
    let differs = |name: &&&String| got.get(**name) != want.get(**name);
    let different: Vec<String> = names
        .iter()
        .filter(differs)
        .map(|name| format!("{name}: launched {:?}, in the account {:?}", got.get(*name), want.get(*name)))
        .collect();
    assert!(different.is_empty(), "{what}\n{}", different.join("\n"));
}

#[test]
fn a_step_launches_what_the_account_lists() {
    gpu::with_stand_in();
    let options = CudaOptions { matmul: Matmul::CublasLt, pooled: gpu::is_real(), ..CudaOptions::default() };
    let device = Device::cuda(options).unwrap();
    if let (Device::Cuda(cuda), true) = (&device, gpu::is_real())
        && let Err(missing) = cuda.matmul_name()
    {
        return common::skip(&missing.to_string());
    }
    // The third has a prompt whose keys more queries see than one block takes.
    let batches: [&[(usize, usize)]; 4] = [&[(6, 2)], &[(1, 1), (9, 3), (0, 1)], &[(29, 1); 8], &[(0, 2), (4, 1)]];
    for config in [llama(1), llama(3), qwen2(2), gpt2(1), gpt2(2)] {
        for dtype in [DType::F32, DType::BF16] {
            let model_options = ModelOptions { dtype, weights: WeightStorage::Widened, ..ModelOptions::default() };
            let model = Model::random(config.clone(), 1, &device, model_options).unwrap();
            for examples in batches {
                let what = format!("{:?} {} layers {dtype} {examples:?}", config.family, config.num_hidden_layers);
                let (mut prompt, batch) = (prompt(&model, 5, 4), batch(&config, examples, 3));
                // Tables that stay are made by the first step.
                drop(model.loss_and_grad(&prompt, &batch).unwrap());
                let mut found = None;
                let got = launched(&device, || found = Some(model.loss_and_grad(&prompt, &batch).unwrap()));
                let list = account::step(&config, &batch.layout(5).unwrap(), dtype).unwrap();
                same(&what, &got, &counted(&list));

                let adamw = AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
                let mut optimizer = Optimizer::new(&OptimizerConfig::AdamW(adamw), &prompt).unwrap();
                let got = launched(&device, || {
                    // As a training step.
                    let kept = prompt.clone();
                    let mut gradient = found.unwrap().grad;
                    clip_grad_norm(&mut gradient, 1.0).unwrap();
                    optimizer.step(&mut prompt, &gradient, 0.1).unwrap();
                    assert!(is_finite(&prompt).unwrap());
                    drop(kept);
                });
                same(&what, &got, &counted(&account::optimizer(5, config.hidden_size)));
            }
            let batches = batches.map(|examples| batch(&config, examples, 3));
            let prompts = [5, 1, 3, 12].map(|rows| prompt(&model, rows, 4));
            let all = [9, 8, 9, 8];
            let together = || {
                let (prompts, batches) = (prompts.each_ref(), batches.each_ref());
                drop(model.losses_and_grads(&prompts, &batches, &all).unwrap());
            };
            together();
            let layout = Batch::layout_of_all(&batches.each_ref(), &[5, 1, 3, 12]).unwrap();
            let what = format!("{:?} {} layers {dtype}, four prompts", config.family, config.num_hidden_layers);
            same(&what, &launched(&device, together), &counted(&account::step(&config, &layout, dtype).unwrap()));
        }
    }
}

#[test]
fn the_accounts_arithmetic_is_that_of_the_count() {
    for name in ModelConfig::NAMES {
        let config = ModelConfig::named(name).unwrap();
        if config.is_encoder_decoder() {
            continue;
        }
        let mut batch = Batch::new();
        for length in [5, 32, 17, 128] {
            batch.push(&vec![1; length], &[2]).unwrap();
        }
        let layout = batch.layout(20).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let list = account::step(&config, &layout, dtype).unwrap();
            let sum = |is_meant: &dyn Fn(&account::Launch) -> bool| -> f64 {
                list.iter().filter(|launch| is_meant(launch)).map(|launch| launch.flops).sum()
            };
            let products = sum(&|launch| launch.name == "cublasLtMatmul");
            let want: f64 = frozen_products(&config, &layout).iter().map(Product::flops).sum();
            assert_eq!(products, want, "{name} {dtype}");
            // Two products of the seven; the backward pass makes the scores again for dk and dv, and in the first layer
            // less than all of it.
            let forward = sum(&|launch| launch.name.starts_with("attention_forward"));
            let all = attention_flops(&config, &layout);
            let first = if config.num_hidden_layers == 1 { 0.0 } else { forward };
            assert!(forward * 3.5 >= all * 0.999 && first > 0.0, "{name} {dtype}: {forward} of {all}");
            assert!(list.iter().all(|launch| launch.limit == Limit::Host || launch.bytes > 0.0), "{name} {dtype}");
        }
    }
}

#[test]
fn prompts_share_the_weights_in_the_account() {
    let config = ModelConfig::named("smollm2-135m").unwrap();
    let mut batch = Batch::new();
    for _ in 0..2 {
        batch.push(&[1; 31], &[2]).unwrap();
    }
    let h100 = account::GPUS.into_iter().find(|gpu| gpu.name.starts_with("H100")).unwrap();
    let seconds = |prompts: usize| {
        let layout = Batch::layout_of_all(&vec![&batch; prompts], &vec![5; prompts]).unwrap();
        let launches = account::training_step(&config, &layout, DType::BF16).unwrap();
        account::seconds(&h100, &launches, DType::BF16)
    };
    let (one, eight) = (seconds(1), seconds(8));
    let gain = [0, 1].map(|how| 8.0 * one[how] / eight[how]);
    assert!(gain[0] > 2.5 && gain[1] > 4.0, "{gain:?}");
}
