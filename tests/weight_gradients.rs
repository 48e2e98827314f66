//! Full fine-tuning's gradients: of every weight against central differences in f64, whatever is recomputed and however
//! the batch is divided.

#[path = "cases/mod.rs"]
mod cases;
#[path = "naive/mod.rs"]
mod naive;

use cases::Random;
use cases::models::{batch, gpt2, llama, prompt, qwen2, t5_v11};
use softprompt::models::Recompute;
use softprompt::{DType, Device, Model, ModelConfig, ModelOptions, Tensor};

const LENGTHS: [(usize, usize); 4] = [(3, 2), (1, 4), (7, 1), (2, 2)];

fn open(config: ModelConfig, dtype: DType, recompute: Recompute, trainable: bool, threads: usize) -> Model {
    let options = ModelOptions { dtype, recompute, trainable, ..ModelOptions::default() };
    Model::random(config, 5, &Device::cpu(Some(threads)).unwrap(), options).unwrap()
}

fn values(tensors: &[Tensor]) -> Vec<Vec<f64>> {
    tensors.iter().map(|tensor| tensor.to_f64_vec().unwrap()).collect()
}

/// `Σ (a − b)² / Σ b²`, of all gradients together.
fn squared_error(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let pairs = || a.iter().flatten().zip(b.iter().flatten());
    pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>() / pairs().map(|(_, b)| b * b).sum::<f64>()
}

#[test]
fn every_weights_gradient_is_that_of_central_differences() {
    // No ReLU: differences across its kink are no gradient.
    for config in [llama(3), qwen2(2), gpt2(2), t5_v11(1)] {
        let model = open(config.clone(), DType::F64, Recompute::None, true, 2);
        let batch = batch(&config, &LENGTHS, 3);
        let found = model.loss_and_weight_grads(&batch).unwrap();
        assert_eq!(found.grads.len(), model.parameters().len());
        assert!(
            (found.loss.mean - model.loss(&model.prompt_from(0, &[]).unwrap(), &batch).unwrap().mean).abs() < 1e-12
        );
        for (parameter, grad) in model.parameters().iter().zip(&found.grads) {
            let name = &parameter.place().name;
            let direction = Random::new(77).numbers(grad.len());
            let before = parameter.value().to_f64_vec().unwrap();
            let loss = |step: f64| {
                let moved: Vec<f64> = before.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
                parameter
                    .update(|value| {
                        value.make_mut::<f64>().copy_from_slice(&moved);
                        Ok(())
                    })
                    .unwrap();
                model.loss(&model.prompt_from(0, &[]).unwrap(), &batch).unwrap().mean
            };
            // Five points: the error is of the fourth order.
            const H: f64 = 1e-4;
            let difference = (8.0 * (loss(H) - loss(-H)) - (loss(2.0 * H) - loss(-2.0 * H))) / (12.0 * H);
            loss(0.0);
            let grad = grad.to_f64_vec().unwrap();
            let along: f64 = grad.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let scale = along.abs().max(grad.iter().map(|g| g * g).sum::<f64>().sqrt());
            // A key's bias shifts a row's scores alike: its gradient is 0 but for rounding.
            let error = (along - difference).abs() / (scale + 1e-6);
            assert!(error < 1e-6, "{name}: {along} by the tape, {difference} by differences");
        }
    }
}

#[test]
fn recomputing_changes_no_bit() {
    for config in [llama(3), gpt2(3)] {
        let batch = batch(&config, &LENGTHS, 3);
        let weights = |recompute, threads| {
            let model = open(config.clone(), DType::F32, recompute, true, threads);
            values(&model.loss_and_weight_grads(&batch).unwrap().grads)
        };
        let prompts = |recompute| {
            let model = open(config.clone(), DType::F32, recompute, false, 2);
            let found = model.loss_and_grad(&prompt(&model, 5, 9), &batch).unwrap();
            (found.loss.mean, found.grad.to_f64_vec().unwrap())
        };
        let (whole, of_prompt) = (weights(Recompute::None, 2), prompts(Recompute::None));
        assert_eq!(whole, weights(Recompute::None, 1));
        for policy in [Recompute::Mlp, Recompute::Layer] {
            assert_eq!(whole, weights(policy, 2), "{} {policy:?}", config.num_hidden_layers);
            assert_eq!(of_prompt, prompts(policy), "{policy:?}");
        }
    }
}

#[test]
fn the_parts_of_a_batch_add_up() {
    let config = llama(2);
    let model = open(config.clone(), DType::F64, Recompute::Layer, true, 2);
    let whole = batch(&config, &LENGTHS, 3);
    let examples = cases::models::examples(&config, &LENGTHS, 3);
    let mut grads = Vec::new();
    for part in examples.chunks(3) {
        let part = cases::models::batch_of(part);
        grads = model.loss_and_weight_grads_of_part(&part, whole.label_tokens(), grads).unwrap().grads;
    }
    let error = squared_error(&values(&grads), &values(&model.loss_and_weight_grads(&whole).unwrap().grads));
    assert!(error < 1e-24, "{error:e}");
    let frozen = open(config.clone(), DType::F64, Recompute::None, false, 2);
    let refused = frozen.loss_and_weight_grads(&whole).unwrap_err().to_string();
    assert!(refused.contains("opened as trainable"), "{refused}");
}

#[test]
fn f32_is_f64_but_for_rounding() {
    for config in [llama(3), qwen2(2), gpt2(2)] {
        let batch = batch(&config, &LENGTHS, 3);
        let grads = |dtype| {
            let model = open(config.clone(), dtype, Recompute::None, true, 2);
            values(&model.loss_and_weight_grads(&batch).unwrap().grads)
        };
        let error = squared_error(&grads(DType::F32), &grads(DType::F64));
        assert!(error < 1e-11, "{error:e}");
    }
}
