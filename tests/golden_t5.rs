//! Encoder–decoders: losses, gradients and steps against what PEFT and transformers compute in float64.

mod common;

use common::t5::{Case, part, rows};
use common::{Golden, close, close_absolute, golden, golden_t5_cases};
use softprompt::models::Recompute;
use softprompt::optim::{AdamWConfig, Optimizer, OptimizerConfig, WeightOptimizer};
use softprompt::{Batch, DType, Device, Model, ModelOptions, WeightStorage};

#[test]
fn losses_and_gradients_are_those_of_peft_and_transformers() {
    let mut cases = 0;
    for (name, case) in golden_t5_cases() {
        for dtype in [DType::F64, DType::F32] {
            for (weights, recompute) in [
                (WeightStorage::Mapped, Recompute::None),
                (WeightStorage::Widened, Recompute::None),
                (WeightStorage::Mapped, Recompute::Mlp),
                (WeightStorage::Mapped, Recompute::Layer),
            ] {
                let options = ModelOptions { dtype, weights, recompute, ..ModelOptions::default() };
                let found = Case::open(&name, &case, options);
                let result = found.model.loss_and_grad(&found.prompt, &found.batch).unwrap();
                let (mean, grad) = (result.loss.mean, result.grad.to_f64_vec().unwrap());
                let want = found.file.numbers(&format!("{case}.grad_f64"));
                let loss = found.file.numbers(&format!("{case}.losses_f64"))[0];
                let what = format!("{} {weights:?} {recompute:?}", found.what);
                if dtype == DType::F64 {
                    close(&format!("{what} loss"), &[mean], &[loss], 1e-9);
                    close(&format!("{what} gradient"), &grad, &want, 1e-9);
                    let alone = found.model.loss(&found.prompt, &found.batch).unwrap().mean;
                    close(&format!("{what} loss alone"), &[alone], &[loss], 1e-9);
                } else {
                    // How far the reference's own float32 is from its float64, which may be little by luck.
                    let unit = f64::from(f32::EPSILON);
                    let largest = found.number("grad_max_abs");
                    let allowed = found.number("f32_peft_loss_abs_diff").max(loss * unit);
                    close_absolute(&format!("{what} loss"), &[mean], &[loss], 4.0 * allowed);
                    let allowed = found.number("f32_peft_grad_max_abs_diff").max(2.0 * largest * unit);
                    close_absolute(&format!("{what} gradient"), &grad, &want, 4.0 * allowed);
                }
            }
        }
        cases += 1;
    }
    assert_eq!(cases, 8 * 10, "golden files are missing");
}

#[test]
fn five_adamw_steps_end_where_theirs_do() {
    for (name, case) in golden_t5_cases() {
        let mut found = Case::open(&name, &case, ModelOptions { dtype: DType::F64, ..ModelOptions::default() });
        let adamw = AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let mut optimizer = Optimizer::new(&OptimizerConfig::AdamW(adamw), &found.prompt).unwrap();
        let mut losses = Vec::new();
        for _ in 0..5 {
            let step = found.model.loss_and_grad(&found.prompt, &found.batch).unwrap();
            losses.push(step.loss.mean);
            optimizer.step(&mut found.prompt, &step.grad, 0.05).unwrap();
        }
        losses.push(found.model.loss(&found.prompt, &found.batch).unwrap().mean);
        let (what, file) = (&found.what, &found.file);
        close(&format!("{what}: losses"), &losses, &file.numbers(&format!("{case}.losses_f64")), 1e-8);
        let after = found.prompt.to_f64_vec().unwrap();
        close(&format!("{what}: prompt"), &after, &file.numbers(&format!("{case}.prompt_after5_f64")), 1e-8);
    }
}

#[test]
fn a_gguf_file_is_the_same_model() {
    for name in ["t5_v10", "t5_v11"] {
        let found = Case::open(name, "main", ModelOptions { dtype: DType::F64, ..ModelOptions::default() });
        let want = found.model.loss_and_grad(&found.prompt, &found.batch).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        common::gguf::write_t5(&golden(name), &path);
        let options = ModelOptions { dtype: DType::F64, ..ModelOptions::default() };
        let model = Model::open(&path, &Device::cpu(Some(2)).unwrap(), options).unwrap();
        let got = model.loss_and_grad(&found.prompt, &found.batch).unwrap();
        // The weights are f32 or narrower, so that the two differ in the norms' ε alone, which GGUF has in f32.
        close(&format!("{name} loss"), &[got.loss.mean], &[want.loss.mean], 1e-7);
        close(&format!("{name} gradient"), &got.grad.to_f64_vec().unwrap(), &want.grad.to_f64_vec().unwrap(), 1e-6);
        let trained = ModelOptions { trainable: true, ..options };
        assert!(Model::open(&path, &Device::cpu(Some(1)).unwrap(), trained).is_err());
    }
}

#[test]
fn each_examples_loss_follows_from_the_golden_logits() {
    let mut models = 0;
    for (name, case) in golden_t5_cases().into_iter().filter(|(_, case)| case == "main") {
        let found = Case::open(&name, &case, ModelOptions { dtype: DType::F64, ..ModelOptions::default() });
        let vocab = found.model.config().vocab_size;
        let logits = found.file.numbers("main.label_logits_f64");
        let mut logits = logits.chunks_exact(vocab);
        let want: Vec<f64> = rows(&found.file, "main")
            .iter()
            .map(|(_, label)| {
                let nll = |id: &u32| {
                    let row = logits.next().unwrap();
                    let largest = row.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                    largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() - row[*id as usize]
                };
                label.iter().map(nll).sum()
            })
            .collect();
        let loss = found.model.loss(&found.prompt, &found.batch).unwrap();
        close(&found.what, &loss.by_example, &want, 1e-9);
        assert_eq!(logits.next(), None);
        models += 1;
    }
    assert_eq!(models, 8);
}

#[test]
fn gradients_and_steps_of_all_weights_are_those_of_pytorch() {
    for name in ["t5_v10", "t5_v11"] {
        let folder = golden(name);
        let file = Golden::read(&folder.join("weight_grads.safetensors"));
        let golden = Golden::read(&folder.join("golden.safetensors"));
        let mut batch = Batch::new();
        for (input, label) in rows(&golden, "main") {
            batch.push(&input, &label).unwrap();
        }
        for dtype in [DType::F64, DType::F32] {
            for recompute in [Recompute::None, Recompute::Layer] {
                let options = ModelOptions { dtype, recompute, trainable: true, ..ModelOptions::default() };
                let model = Model::open(&folder, &Device::cpu(Some(2)).unwrap(), options).unwrap();
                let stored = file.names().iter().filter(|name| name.starts_with("grad.")).count();
                let mut named: Vec<_> = model.parameters().iter().map(|parameter| &parameter.place().name).collect();
                named.dedup();
                assert_eq!(named.len(), stored, "{name}: {named:?}");
                let found = model.loss_and_weight_grads(&batch).unwrap();
                let tolerance = if dtype == DType::F64 { 1e-9 } else { 1e-6 };
                close(&format!("{name} loss"), &[found.loss.mean], &file.numbers("loss"), tolerance);
                let allowed = if dtype == DType::F64 { 1e-10 } else { 4.0 * file.numbers("f32_error")[0] };
                for (parameter, grad) in model.parameters().iter().zip(&found.grads) {
                    let what = format!("{name} {} {dtype} {recompute:?}", parameter.place().name);
                    close_absolute(&what, &grad.to_f64_vec().unwrap(), &part(&file, "grad", parameter), allowed);
                }
                if dtype != DType::F64 {
                    continue;
                }
                let adamw = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
                let mut optimizer = WeightOptimizer::new(&OptimizerConfig::AdamW(adamw), model.parameters()).unwrap();
                for _ in 0..3 {
                    let grads = model.loss_and_weight_grads(&batch).unwrap().grads;
                    optimizer.step(grads, 0.01, 1.0).unwrap();
                }
                for parameter in model.parameters() {
                    let what = format!("{name} {} after 3 steps", parameter.place().name);
                    let got = parameter.value().to_f64_vec().unwrap();
                    close_absolute(&what, &got, &part(&file, "after3", parameter), 1e-9);
                }
            }
        }
    }
}
