//! A training step against the rate of the matrix library at the same shapes, in one run; on a GPU against the account
//! of `softprompt doctor --kernels`.
//!
//! `cargo bench --bench step -- [MODEL] [P] [B] [T] [threads]`; MODEL is a named shape with random weights.
//! `SOFTPROMPT_BENCH_DEVICE` is `cpu`, `cuda` or `cuda:N`, `SOFTPROMPT_BENCH_DTYPE` the type to compute in.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use softprompt::account::{self, GPUS};
use softprompt::flops::{Product, attention_flops, frozen_products};
use softprompt::layout::Layout;
use softprompt::{Batch, DType, Device, Model, ModelConfig, ModelOptions, WeightStorage, device::Kind};
use std::time::Instant;

const ROUNDS: usize = 5;
/// Rounds on a GPU, at most and at least; they end when they have taken so many seconds.
const GPU_ROUNDS: std::ops::Range<usize> = 3..50;
const GPU_SECONDS: f64 = 10.0;
/// Rounds before them, in which the step becomes a graph.
const GPU_WARM_UP: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let text = |index: usize, default: &str| arguments.get(index).cloned().unwrap_or_else(|| default.to_string());
    let number = |index: usize, default: usize| text(index, &default.to_string()).parse().expect("a number");
    let name = text(0, "smollm2-135m");
    let (prompt_rows, examples, length, threads) = (number(1, 100), number(2, 32), number(3, 32), number(4, 2));
    let config = ModelConfig::named(&name).unwrap_or_else(|| panic!("one of {:?}", ModelConfig::NAMES));

    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_string());
    let device = Device::named(&setting("SOFTPROMPT_BENCH_DEVICE", "cpu"), Some(threads)).expect("a device");
    let dtype = DType::named(&setting("SOFTPROMPT_BENCH_DTYPE", "f32")).expect("a type");
    let options = ModelOptions { dtype, weights: WeightStorage::Mapped, ..ModelOptions::default() };
    let model = Model::random(config.clone(), 0, &device, options).expect("a model");
    let mut batch = Batch::new();
    for example in 0..examples {
        let ids: Vec<u32> = (0..length).map(|at| ((example * 131 + at * 17) % config.vocab_size) as u32).collect();
        batch.push(&ids[..length - 1], &ids[length - 1..]).expect("an example");
    }
    let values: Vec<f64> =
        (0..prompt_rows * config.hidden_size).map(|i| ((i * 37 % 101) as f64 - 50.0) / 500.0).collect();
    let prompt = model.prompt_from(prompt_rows, &values).expect("a prompt");
    let layout = batch.layout(prompt_rows).expect("a layout");
    let products = frozen_products(&config, &layout);
    let frozen: f64 = products.iter().map(Product::flops).sum();
    let flops = frozen + attention_flops(&config, &layout);

    model.loss_and_grad(&prompt, &batch).expect("a step");
    device.reset_peak();
    let shape = format!("{name} P={prompt_rows} B={examples} T={length} {dtype}");
    if let Device::Cuda(_) = device {
        println!("{shape}: {:.1} GFLOP a step", flops / 1e9);
        on_gpu(|| drop(model.loss_and_grad(&prompt, &batch).expect("a step")), flops, examples);
        on_paper(&config, &layout, dtype);
        return print_memory(&device);
    }
    let mut rounds: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            model.loss_and_grad(&prompt, &batch).expect("a step");
            let step = flops / start.elapsed().as_secs_f64() / 1e9;
            (step, frozen / library(&device, &products, threads) / 1e9)
        })
        .collect();
    rounds.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    let (step, library) = rounds[ROUNDS / 2];
    println!("{shape}, {threads} threads: {:.1} GFLOP a step", flops / 1e9);
    println!("step     {:8.3} s  {step:6.1} GFLOP/s", flops / 1e9 / step);
    println!("library  {:8.3} s  {library:6.1} GFLOP/s on the frozen products alone", frozen / 1e9 / library);
    println!(
        "ratio    {:8.3}    (median of {ROUNDS} rounds, {:.3} to {:.3})",
        step / library,
        ratio(rounds[0]),
        ratio(rounds[ROUNDS - 1])
    );
    print_memory(&device);
}

fn print_memory(device: &Device) {
    let memory = device.memory();
    for kind in Kind::ALL {
        println!("peak     {:>18} {:9.1} MiB", kind.name(), memory.at_peak(kind) as f64 / f64::from(1 << 20));
    }
}

/// Times `step`, which ends by waiting for the GPU, by the wall clock.
fn on_gpu(step: impl Fn(), flops: f64, examples: usize) {
    let time = || {
        let start = Instant::now();
        step();
        start.elapsed().as_secs_f64()
    };
    (0..GPU_WARM_UP).for_each(|_| step());
    let (mut seconds, start) = (Vec::new(), Instant::now());
    while seconds.len() < GPU_ROUNDS.end
        && (seconds.len() < GPU_ROUNDS.start || start.elapsed().as_secs_f64() < GPU_SECONDS)
    {
        seconds.push(time());
    }
    seconds.sort_by(f64::total_cmp);
    let rounds = seconds.len();
    let [least, median, most] = [0, rounds / 2, rounds - 1].map(|at| seconds[at]);
    println!(
        "step     {:8.3} ms {:7.2} TFLOP/s {:9.0} examples/s (median of {rounds} rounds, {:.3} to {:.3} ms)",
        median * 1e3,
        flops / median / 1e12,
        examples as f64 / median,
        least * 1e3,
        most * 1e3
    );
}

/// What the account gives as the least time of the same step, without the optimizer's.
fn on_paper(config: &ModelConfig, layout: &Layout, dtype: DType) {
    let launches = account::step(config, layout, dtype).expect("an account");
    for gpu in GPUS {
        let seconds: f64 = launches.iter().map(|launch| gpu.seconds(launch, dtype)).sum();
        println!("account  {:8.3} ms at least on {}, {} launches", seconds * 1e3, gpu.name, launches.len());
    }
}

fn library(device: &Device, products: &[Product], threads: usize) -> f64 {
    device.run(|| Ok(library_seconds(products, threads))).expect("the library's rate")
}

fn ratio((step, library): (f64, f64)) -> f64 {
    step / library
}

/// Seconds that the library takes for the products, threaded by itself; each shape is measured once and counted as often
/// as it occurs.
fn library_seconds(products: &[Product], threads: usize) -> f64 {
    let seconds = products.iter().filter(|product| product.m > 0).map(|product| {
        // Row-major operands, as the step has them; the weight is read as it lies for the forward pass.
        let x = Mat::<f32>::full(product.k, product.m, 0.5);
        let w = Mat::<f32>::full(product.k, product.n, 0.25);
        let mut y = Mat::<f32>::zeros(product.n, product.m);
        let start = Instant::now();
        matmul(
            y.as_mut().transpose_mut(),
            Accum::Replace,
            x.as_ref().transpose(),
            w.as_ref(),
            1.0,
            Par::rayon(threads),
        );
        start.elapsed().as_secs_f64() * product.count as f64
    });
    seconds.sum()
}
