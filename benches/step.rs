//! A training step against the rate of the matrix library at the same shapes, in one run.
//!
//! `cargo bench --bench step -- [MODEL] [P] [B] [T] [threads]`; MODEL is a named shape with random weights.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use softprompt::flops::{Product, attention_flops, frozen_products};
use softprompt::{Batch, DType, Device, Model, ModelConfig, ModelOptions, WeightStorage, device::Kind};
use std::time::Instant;

const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let text = |index: usize, default: &str| arguments.get(index).cloned().unwrap_or_else(|| default.to_string());
    let number = |index: usize, default: usize| text(index, &default.to_string()).parse().expect("a number");
    let name = text(0, "smollm2-135m");
    let (prompt_rows, examples, length, threads) = (number(1, 100), number(2, 32), number(3, 32), number(4, 2));
    let config = ModelConfig::named(&name).unwrap_or_else(|| panic!("one of {:?}", ModelConfig::NAMES));

    let device = Device::cpu(Some(threads)).expect("threads");
    let options = ModelOptions { dtype: DType::F32, weights: WeightStorage::Mapped };
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
    println!("{name} P={prompt_rows} B={examples} T={length} f32, {threads} threads: {:.1} GFLOP a step", flops / 1e9);
    println!("step     {:8.3} s  {step:6.1} GFLOP/s", flops / 1e9 / step);
    println!("library  {:8.3} s  {library:6.1} GFLOP/s on the frozen products alone", frozen / 1e9 / library);
    println!(
        "ratio    {:8.3}    (median of {ROUNDS} rounds, {:.3} to {:.3})",
        step / library,
        ratio(rounds[0]),
        ratio(rounds[ROUNDS - 1])
    );
    let memory = device.memory();
    for kind in Kind::ALL {
        println!("peak     {:>18} {:9.1} MiB", kind.name(), memory.at_peak(kind) as f64 / f64::from(1 << 20));
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
