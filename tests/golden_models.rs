//! Losses and prompt gradients against what PEFT computes in float64.

mod common;

use common::{Golden, causal_rows, close, close_absolute, golden, golden_cases};
use softprompt::optim::{AdamWConfig, Optimizer, OptimizerConfig};
use softprompt::{Batch, DType, Device, Model, ModelOptions, WeightStorage};

fn check(name: &str, case: &str, dtype: DType, weights: WeightStorage) {
    let folder = golden(name);
    let file = Golden::read(&folder.join("golden.safetensors"));
    let device = Device::cpu(Some(2)).unwrap();
    let model = Model::open(&folder, &device, ModelOptions { dtype, weights, ..ModelOptions::default() }).unwrap();
    let rows = file.shape(&format!("{case}.prompt"))[0];
    let prompt = model.prompt_from(rows, &file.numbers(&format!("{case}.prompt"))).unwrap();
    let mut batch = Batch::new();
    for (input, target) in causal_rows(&file, case) {
        batch.push(&input, &target).unwrap();
    }
    let result = model.loss_and_grad(&prompt, &batch).unwrap();
    let what = format!("{name} {case} {dtype}");
    let want = file.numbers(&format!("{case}.grad_f64"));
    let loss = file.numbers(&format!("{case}.losses_f64"))[0];
    match dtype {
        DType::F64 => {
            close(&format!("{what} loss"), &[result.loss.mean], &[loss], 1e-9);
            close(&format!("{what} gradient"), &result.grad.to_f64_vec().unwrap(), &want, 1e-9);
        }
        DType::F32 => {
            // How far PEFT's own float32 is from its float64.
            let meta = std::fs::read(folder.join("meta.json")).unwrap();
            let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
            let error = meta["cases"][case]["f32_peft_grad_max_abs_diff"].as_f64().unwrap();
            let allowed = meta["cases"][case]["f32_peft_loss_abs_diff"].as_f64().unwrap();
            // Where PEFT's loss happens to be exact, the spacing of float32 numbers is the yardstick.
            let allowed = allowed.max(loss * f64::from(f32::EPSILON));
            close_absolute(&format!("{what} loss"), &[result.loss.mean], &[loss], 4.0 * allowed);
            close_absolute(&format!("{what} gradient"), &result.grad.to_f64_vec().unwrap(), &want, 4.0 * error);
        }
        DType::BF16 => unreachable!("a CPU computes in f32 and f64"),
    }
}

#[test]
fn losses_and_gradients_are_those_of_peft() {
    let mut cases = 0;
    for (name, case) in golden_cases() {
        for dtype in [DType::F64, DType::F32] {
            check(&name, &case, dtype, WeightStorage::Mapped);
            check(&name, &case, dtype, WeightStorage::Widened);
            cases += 1;
        }
    }
    assert!(cases >= 2 * (4 * 3 + 13 * 4), "golden files are missing: {cases} cases");
}

#[test]
fn five_adamw_steps_end_where_pefts_do() {
    for (name, case) in golden_cases() {
        let folder = golden(&name);
        let file = Golden::read(&folder.join("golden.safetensors"));
        let options = ModelOptions { dtype: DType::F64, ..ModelOptions::default() };
        let model = Model::open(&folder, &Device::cpu(Some(2)).unwrap(), options).unwrap();
        let values = file.numbers(&format!("{case}.prompt"));
        let shape = file.shape(&format!("{case}.prompt"));
        let mut batch = Batch::new();
        for (input, target) in causal_rows(&file, &case) {
            batch.push(&input, &target).unwrap();
        }
        let adamw = AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let mut prompt = model.prompt_from(shape[0], &values).unwrap();
        let mut optimizer = Optimizer::new(&OptimizerConfig::AdamW(adamw), &prompt).unwrap();
        let mut losses = Vec::new();
        for _ in 0..5 {
            let found = model.loss_and_grad(&prompt, &batch).unwrap();
            losses.push(found.loss.mean);
            optimizer.step(&mut prompt, &found.grad, 0.05).unwrap();
        }
        losses.push(model.loss(&prompt, &batch).unwrap().mean);
        let values = prompt.to_f64_vec().unwrap();
        let what = format!("{name} {case} after 5 steps");
        close(&format!("{what}: losses"), &losses, &file.numbers(&format!("{case}.losses_f64")), 1e-8);
        close(&format!("{what}: prompt"), &values, &file.numbers(&format!("{case}.prompt_after5_f64")), 1e-8);
    }
}
