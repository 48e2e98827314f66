//! The bytes that a step saves for its backward pass, by a formula from the model's sizes and the examples' lengths, and
//! what is left when the step is over.

mod cases;
mod common;

use cases::models::{batch, gpt2, llama, prompt};
use softprompt::device::Kind;
use softprompt::models::{Family, ModelConfig};
use softprompt::{DType, Device, Model, ModelOptions, WeightStorage};

/// Elements saved. `rows` is the whole stream, `scored` the label rows.
fn saved(config: &ModelConfig, prompt: usize, rows: usize, scored: usize) -> usize {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let in_mlp = if config.family == Family::Gpt2 { inner } else { 2 * inner };
    let layers = config.num_hidden_layers;
    let of_layers = (0..layers).map(|layer| {
        // Before the first attention only prompt rows carry gradient; after the last only label rows are read.
        let before = if layer == 0 { prompt } else { rows };
        let after = if layer + 1 == layers { scored } else { rows };
        let input = before * width;
        let attention = 2 * before * keys + after * (queries + queries + config.num_attention_heads);
        let mlp = after * (width + in_mlp);
        input + attention + mlp
    });
    let final_norm_and_loss = 2 * scored * width;
    of_layers.sum::<usize>() + final_norm_and_loss
}

fn check(config: &ModelConfig, dtype: DType, prompt_rows: usize, examples: &[(usize, usize)]) {
    let what = format!("{:?} {} layers {dtype} P {prompt_rows} {examples:?}", config.family, config.num_hidden_layers);
    let device = Device::cpu(Some(2)).unwrap();
    let options = ModelOptions { dtype, weights: WeightStorage::Mapped, ..ModelOptions::default() };
    let model = Model::random(config.clone(), 1, &device, options).unwrap();
    let batch = batch(config, examples, 3);
    let prompt = prompt(&model, prompt_rows, 4);
    // Tables that stay are made by the first step.
    drop(model.loss_and_grad(&prompt, &batch).unwrap());

    let before = device.memory();
    assert_eq!(before.current(Kind::SavedActivations), 0, "{what}");
    device.reset_peak();
    let result = model.loss_and_grad(&prompt, &batch).unwrap();
    let rows = prompt_rows + examples.iter().map(|(input, label)| input + label - 1).sum::<usize>();
    let want = saved(config, prompt_rows, rows, batch.label_tokens()) * dtype.size();
    let after = device.memory();
    assert_eq!(after.peak(Kind::SavedActivations), want, "{what}");

    let gradient = prompt_rows * config.hidden_size * dtype.size();
    for kind in Kind::ALL {
        let kept = if kind == Kind::Gradients { gradient } else { 0 };
        assert_eq!(after.current(kind), before.current(kind) + kept, "{what}: {} after the step", kind.name());
    }
    drop(result);
    assert_eq!(device.memory().current_total(), before.current_total(), "{what}");
    // A loss without a gradient saves nothing.
    device.reset_peak();
    model.loss(&prompt, &batch).unwrap();
    assert_eq!(device.memory().peak(Kind::SavedActivations), 0, "{what}");
    assert_eq!(device.memory().current_total(), before.current_total(), "{what}");
}

#[test]
fn a_step_saves_what_the_design_lists() {
    let batches: [&[(usize, usize)]; 5] =
        [&[(6, 2)], &[(1, 1), (9, 3), (4, 1)], &[(3, 1); 20], &[(30, 20), (1, 40)], &[(5, 1), (2, 3), (7, 2), (1, 1)]];
    for config in [llama(1), llama(2), llama(4), gpt2(1), gpt2(3)] {
        for dtype in [DType::F32, DType::F64] {
            for examples in batches {
                for prompt_rows in [1, 5, 33] {
                    check(&config, dtype, prompt_rows, examples);
                }
            }
        }
    }
}

#[test]
fn a_label_predicted_by_the_prompt_changes_nothing_in_deeper_models() {
    for config in [llama(2), gpt2(3)] {
        check(&config, DType::F32, 5, &[(0, 1)]);
        check(&config, DType::F64, 5, &[(0, 3), (4, 1), (0, 1)]);
    }
}
