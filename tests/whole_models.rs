//! Whole models: the prompt's gradient against central differences, and that packing, sharing and trimming change
//! nothing.

mod cases;
mod common;

use cases::Random;
use cases::models::{batch, batch_of, examples, gpt2, llama, prompt, qwen2};
use common::{close, golden, golden_cases};
use softprompt::layout::{Layout, Sequence};
use softprompt::models::{ModelConfig, Recompute};
use softprompt::ops;
use softprompt::tape::{Tape, Var};
use softprompt::{Batch, DType, Device, Model, ModelOptions, Tensor};

const F64: ModelOptions = ModelOptions {
    dtype: DType::F64,
    weights: softprompt::WeightStorage::Mapped,
    recompute: softprompt::models::Recompute::None,
    trainable: false,
    init_weights: None,
    prompt_on: softprompt::layout::PromptOn::Encoder,
    prompt_mask: softprompt::layout::PromptMask::Full,
};

/// Few labels behind long inputs: a decoder then asks of the encoder's rows as they are, unless its weights are trained.
#[test]
fn a_decoder_that_asks_head_by_head_computes_what_one_with_keys_and_values_does() {
    let device = Device::cpu(Some(2)).unwrap();
    let open = |trainable, recompute| {
        let options = ModelOptions { trainable, recompute, ..F64 };
        Model::open(golden("t5_silu"), &device, options).unwrap()
    };
    let (frozen, trained) = (open(false, Recompute::None), open(true, Recompute::None));
    let mut batch = Batch::new();
    for (length, labels) in [(30, vec![7, 1]), (41, vec![9]), (33, vec![11]), (47, vec![1])] {
        let ids: Vec<u32> = (0..length).map(|at| (at * 7 + length) % 48).collect();
        batch.push(&ids, &labels).unwrap();
    }
    let values: Vec<f64> = (0..6 * 16).map(|at| (f64::from(at) * 1.3).sin()).collect();
    let prompt = frozen.prompt_from(6, &values).unwrap();
    let found = frozen.loss_and_grad(&prompt, &batch).unwrap();
    let close = |got: f64, want: f64, allowed: f64| {
        assert!((got - want).abs() <= allowed * want.abs().max(1e-3), "{got} {want}");
    };
    let layout = frozen.layout(&[&batch], &[6]).unwrap();
    let scored = layout.cross.unwrap().scored;
    // Products of queries and of pairs, as narrow ones twice, against those of keys and values.
    let (config, pairs, encoded) = (frozen.config(), scored.pairs(), scored.key_rows());
    let (width, heads) = (config.hidden_size, config.num_attention_heads);
    let all = heads * config.head_dim;
    assert!(2 * (5 * all * width + pairs * heads * width) < encoded * width * all + pairs * all);
    close(found.loss.mean, trained.loss(&prompt, &batch).unwrap().mean, 1e-12);
    let grad = found.grad.to_f64_vec().unwrap();
    for direction in 0..3 {
        let step: Vec<f64> = (0..values.len()).map(|at| (at as f64 * (2.1 + f64::from(direction))).cos()).collect();
        let at = |sign: f64| {
            let moved: Vec<f64> = values.iter().zip(&step).map(|(x, d)| x + sign * 1e-5 * d).collect();
            trained.loss(&trained.prompt_from(6, &moved).unwrap(), &batch).unwrap().mean
        };
        let slope: f64 = grad.iter().zip(&step).map(|(g, d)| g * d).sum();
        close(slope, (at(1.0) - at(-1.0)) / 2e-5, 1e-6);
    }
    for recompute in [Recompute::Mlp, Recompute::Layer] {
        let again = open(false, recompute).loss_and_grad(&prompt, &batch).unwrap();
        assert_eq!(again.grad.to_f64_vec().unwrap(), grad);
    }
}

fn configs() -> Vec<ModelConfig> {
    vec![llama(1), llama(3), qwen2(1), qwen2(2), gpt2(1), gpt2(2)]
}

fn random(config: &ModelConfig) -> Model {
    Model::random(config.clone(), 7, &Device::cpu(Some(2)).unwrap(), F64).unwrap()
}

const BATCHES: [&[(usize, usize)]; 6] = [
    &[(4, 1)],
    &[(0, 1)],
    &[(0, 3), (5, 2), (0, 1), (1, 1)],
    &[(1, 7), (12, 1), (3, 4)],
    &[(2, 1); 9],
    &[(40, 3), (1, 20)],
];

fn check_differences(what: &str, model: &Model, prompt: &Tensor, batch: &Batch) -> f64 {
    const STEP: f64 = 1e-3;
    let gradient = model.loss_and_grad(prompt, batch).unwrap().grad.to_f64_vec().unwrap();
    let values = prompt.to_f64_vec().unwrap();
    let length = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut worst = 0f64;
    for seed in 0..3 {
        let direction = Random::new(900 + seed).numbers(values.len());
        let at = |distance: f64| {
            let moved: Vec<f64> = values.iter().zip(&direction).map(|(x, d)| x + distance * d).collect();
            model.loss(&model.prompt_from(prompt.rows(), &moved).unwrap(), batch).unwrap().mean
        };
        let want = (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP);
        let got: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
        // What a random direction of this length sees of a gradient of this length.
        let size = length(&gradient) * length(&direction) / (values.len() as f64).sqrt();
        let error = (got - want).abs() / size;
        assert!(error <= 1e-6, "{what} direction {seed}: got {got}, want {want}: {error:e}");
        worst = worst.max(error);
    }
    worst
}

#[test]
fn gradients_are_directional_differences() {
    let mut worst = 0f64;
    for config in configs() {
        let model = random(&config);
        for lengths in BATCHES {
            for rows in [1, 4, 45] {
                let what = format!("{:?} {} layers P {rows} {lengths:?}", config.family, config.num_hidden_layers);
                let (prompt, batch) = (prompt(&model, rows, 11), batch(&config, lengths, 12));
                worst = worst.max(check_differences(&what, &model, &prompt, &batch));
            }
        }
    }
    let mut folders: Vec<String> = golden_cases().into_iter().map(|(folder, _)| folder).collect();
    folders.dedup();
    assert!(folders.len() >= 4);
    for folder in folders {
        let model = Model::open(golden(&folder), &Device::cpu(Some(2)).unwrap(), F64).unwrap();
        for (rows, lengths) in [(1, BATCHES[2]), (20, BATCHES[3])] {
            let (prompt, batch) = (prompt(&model, rows, 13), batch(model.config(), lengths, 14));
            worst = worst.max(check_differences(&folder, &model, &prompt, &batch));
        }
    }
    println!("worst relative error against directional differences {worst:e}");
}

/// Losses of the scored rows and the gradient of their sum, over a layout of one's own.
fn run(model: &Model, prompt: &Tensor, layout: &Layout) -> (Vec<f64>, Vec<f64>) {
    let mut tape = Tape::new();
    let leaf = tape.leaf(prompt.clone());
    let hidden = model.hidden(&mut tape, &leaf, layout, None).unwrap();
    let scored = model.cross_entropy(&mut tape, &hidden, layout, &vec![1.0; layout.labels.len()]).unwrap();
    (scored.nll.to_f64_vec().unwrap(), tape.backward(&scored.loss, &leaf).unwrap().to_f64_vec().unwrap())
}

/// The same without trimming: every row goes through every layer, then the scored ones are picked.
fn run_untrimmed(model: &Model, prompt: &Tensor, layout: &Layout) -> (Vec<f64>, Vec<f64>) {
    let mut tape = Tape::new();
    let leaf = tape.leaf(prompt.clone());
    let whole = Layout { scored_rows: (0..layout.rows()).collect(), scored: layout.all.clone(), ..layout.clone() };
    let hidden: Var = model.hidden(&mut tape, &leaf, &whole, None).unwrap();
    let hidden = ops::rows(&mut tape, &hidden, &layout.scored_rows.as_slice().into()).unwrap();
    let scored = model.cross_entropy(&mut tape, &hidden, layout, &vec![1.0; layout.labels.len()]).unwrap();
    (scored.nll.to_f64_vec().unwrap(), tape.backward(&scored.loss, &leaf).unwrap().to_f64_vec().unwrap())
}

fn add(total: &mut [f64], part: &[f64]) {
    total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
}

#[test]
fn packing_sharing_and_trimming_change_nothing() {
    for config in configs() {
        let model = random(&config);
        for lengths in BATCHES {
            let rows = 4;
            let what = format!("{:?} {} layers {lengths:?}", config.family, config.num_hidden_layers);
            let (prompt, examples) = (prompt(&model, rows, 21), examples(&config, lengths, 22));
            let packed = batch_of(&examples).layout(rows).unwrap();
            let (nll, gradient) = run(&model, &prompt, &packed);

            // Example by example.
            let (mut one_by_one, mut sum) = (Vec::new(), vec![0.0; gradient.len()]);
            for example in &examples {
                let alone = batch_of(std::slice::from_ref(example)).layout(rows).unwrap();
                let (nll, gradient) = run_untrimmed(&model, &prompt, &alone);
                one_by_one.extend(nll);
                add(&mut sum, &gradient);
            }
            close(&format!("{what}: losses one by one"), &nll, &one_by_one, 1e-12);
            close(&format!("{what}: gradient one by one"), &gradient, &sum, 1e-11);

            // A prompt of its own for every example.
            let ids: Vec<Vec<u32>> = examples.iter().map(|(input, label)| [&input[..], label].concat()).collect();
            let sequences: Vec<_> =
                (0..ids.len()).map(|i| Sequence::example(i, &ids[i], examples[i].0.len())).collect();
            let unshared = Layout::causal(&vec![rows; ids.len()], &sequences).unwrap();
            let copies = model.prompt_from(rows * ids.len(), &prompt.to_f64_vec().unwrap().repeat(ids.len())).unwrap();
            let (copied_nll, copied_gradient) = run(&model, &copies, &unshared);
            let mut sum = vec![0.0; gradient.len()];
            copied_gradient.chunks_exact(gradient.len()).for_each(|part| add(&mut sum, part));
            close(&format!("{what}: losses behind copies"), &nll, &copied_nll, 1e-12);
            close(&format!("{what}: gradient behind copies"), &gradient, &sum, 1e-11);

            // The batch's own account of it.
            let batch = batch_of(&examples);
            let found = model.loss_and_grad(&prompt, &batch).unwrap();
            let mean = nll.iter().sum::<f64>() / nll.len() as f64;
            close(&format!("{what}: mean"), &[found.loss.mean], &[mean], 1e-14);
            let scaled: Vec<f64> = gradient.iter().map(|g| g / nll.len() as f64).collect();
            close(&format!("{what}: mean gradient"), &found.grad.to_f64_vec().unwrap(), &scaled, 1e-12);
            close(&format!("{what}: loss alone"), &[model.loss(&prompt, &batch).unwrap().mean], &[mean], 1e-14);
        }
    }
}

#[test]
fn prompts_of_several_lengths_share_a_stream() {
    for config in configs() {
        let (model, width) = (random(&config), config.hidden_size);
        let prompts = [prompt(&model, 3, 31), prompt(&model, 5, 32)];
        let examples = examples(&config, &[(4, 2), (0, 1), (1, 1), (0, 4), (9, 3)], 33);
        let owner = [0, 1, 1, 0, 1];
        let ids: Vec<Vec<u32>> = examples.iter().map(|(input, label)| [&input[..], label].concat()).collect();
        let all = prompts.iter().flat_map(|prompt| prompt.to_f64_vec().unwrap()).collect::<Vec<_>>();
        let sequences: Vec<_> = (0..5).map(|i| Sequence::example(owner[i], &ids[i], examples[i].0.len())).collect();
        let layout = Layout::causal(&[3, 5], &sequences).unwrap();
        let (nll, gradient) = run(&model, &model.prompt_from(8, &all).unwrap(), &layout);

        let mut first = 0;
        for (which, prompt) in prompts.iter().enumerate() {
            let own: Vec<_> = (0..5).filter(|&i| owner[i] == which).map(|i| examples[i].clone()).collect();
            let (alone_nll, alone) = run(&model, prompt, &batch_of(&own).layout(prompt.rows()).unwrap());
            let mine: Vec<f64> =
                (0..nll.len()).filter(|&row| owner[layout.sequence_of[row]] == which).map(|row| nll[row]).collect();
            let what = format!("{:?} {} layers prompt {which}", config.family, config.num_hidden_layers);
            close(&format!("{what}: losses"), &mine, &alone_nll, 1e-12);
            close(&format!("{what}: gradient"), &gradient[first * width..][..alone.len()], &alone, 1e-11);
            first += prompt.rows();
        }
    }
}

#[test]
fn a_stream_with_nothing_scored_has_no_gradient() {
    for config in configs() {
        let model = random(&config);
        let prompt = prompt(&model, 3, 41);
        let result = model.loss_and_grad(&prompt, &Batch::new()).unwrap();
        assert_eq!(result.loss.mean, 0.0);
        assert_eq!(result.grad.to_f64_vec().unwrap(), vec![0.0; 3 * config.hidden_size]);
    }
}

#[test]
fn wide_models_in_f32_are_near_those_in_f64() {
    // Wide enough that products and heads are summed in f32, which narrow models' are not.
    let wide = |config: ModelConfig| ModelConfig {
        hidden_size: config.num_attention_heads * 34,
        intermediate_size: 300,
        head_dim: 34,
        vocab_size: 700,
        ..config
    };
    for config in [llama(3), qwen2(2), gpt2(3)].map(wide) {
        for lengths in BATCHES {
            let [narrow, exact] = [DType::F32, DType::F64].map(|dtype| {
                let options = ModelOptions { dtype, ..F64 };
                let model = Model::random(config.clone(), 7, &Device::cpu(Some(2)).unwrap(), options).unwrap();
                // A prompt that f32 holds exactly.
                let values: Vec<f64> = Random::new(51).numbers(9 * config.hidden_size);
                let values: Vec<f64> = values.into_iter().map(|x| f64::from(x as f32)).collect();
                let prompt = model.prompt_from(9, &values).unwrap();
                let found = model.loss_and_grad(&prompt, &batch(&config, lengths, 52)).unwrap();
                (found.loss.mean, found.grad.to_f64_vec().unwrap())
            });
            let what = format!("{:?} {lengths:?}", config.family);
            close(&format!("{what}: loss"), &[narrow.0], &[exact.0], 1e-6);
            close(&format!("{what}: gradient"), &narrow.1, &exact.1, 2e-5);
        }
    }
}
