use super::*;
use crate::device::Device;
use crate::dtype::DType;
use crate::layout::{PromptMask, PromptOn};
use crate::models::ModelOptions;
use std::path::Path;

const INPUTS: [&[u32]; 3] = [&[5, 9, 2, 7, 7, 11], &[3], &[8, 4, 1]];

fn model(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let options = ModelOptions { dtype: DType::F64, ..ModelOptions::default() };
    Model::open(folder, &Device::cpu(Some(2)).unwrap(), options).unwrap()
}

fn prompt(model: &Model, rows: usize) -> Tensor {
    let values: Vec<f64> = (0..rows * model.config().hidden_size).map(|i| (i as f64 * 1.7).sin()).collect();
    model.prompt_from(rows, &values).unwrap()
}

/// The logits after the last of `ids`, everything computed anew.
fn recomputed(model: &Model, prompt: &Tensor, ids: &[u32]) -> Vec<f64> {
    let end = Sequence { keep_last: true, score_end: true, ..Sequence::example(0, ids, ids.len()) };
    let layout = Layout::causal(&[prompt.rows()], &[end]).unwrap();
    let hidden = model.hidden(&mut Tape::new(), &Var::constant(prompt.clone()), &layout, None).unwrap();
    model.logits(&hidden).unwrap().to_f64_vec().unwrap()
}

#[track_caller]
fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 1e-9 * scale, "{got} {want}");
    }
}

fn greedy(model: &Model, prompt: &Tensor, ids: &[u32], count: usize) -> Vec<u32> {
    let mut all = ids.to_vec();
    for _ in 0..count {
        let logits = recomputed(model, prompt, &all);
        let best = (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
        all.push(best as u32);
    }
    all[ids.len()..].to_vec()
}

const SAMPLED: Sampling = Sampling { temperature: 1.5, top_k: 0, top_p: 0.95, seed: 7 };

fn never(_: &[u32]) -> bool {
    false
}

#[test]
fn logits_with_the_cache_are_those_without() {
    for name in ["llama", "qwen2", "gpt2"] {
        let model = model(name);
        for rows in [0, 1, 4] {
            let prompt = prompt(&model, rows);
            let generator = Generator::new(&model, &prompt).unwrap();
            if rows > 0 {
                close(generator.prompt_logits.as_ref().unwrap(), &recomputed(&model, &prompt, &[]));
            }
            let mut cache = model.new_cache(rows + 3 * 12).unwrap();
            cache.copy_prefix(&generator.prompt_cache, rows).unwrap();
            let mut sequences: Vec<Growing> = INPUTS
                .iter()
                .enumerate()
                .map(|(index, ids)| Growing {
                    ids: ids.to_vec(),
                    new: Vec::new(),
                    prompt: 0..rows,
                    read: Vec::new(),
                    first_row: rows + 12 * index,
                    cached: 0,
                    random: stream_of(0, ids),
                    is_done: false,
                })
                .collect();
            for step in 0..5u32 {
                // The second is left out once: the others must not notice.
                let mut active: Vec<&mut Growing> = sequences.iter_mut().collect();
                if step == 2 {
                    active.remove(1);
                }
                let logits = generator.step(&mut cache, &active).unwrap();
                for (row, sequence) in active.iter_mut().enumerate() {
                    let all = [sequence.ids.as_slice(), &sequence.new].concat();
                    close(logits.row::<f64>(row), &recomputed(&model, &prompt, &all));
                    sequence.cached = sequence.len();
                    sequence.new.push((3 * step + row as u32) % 16);
                }
            }
        }
    }
}

/// The likeliest tokens behind an encoder's input, the decoder computed anew for each.
fn written(model: &Model, prompt: &Tensor, input: &[u32], count: usize) -> Vec<u32> {
    let start = model.config().encoder_decoder.unwrap().decoder_start_token_id;
    let mut ids = vec![start];
    for _ in 0..count {
        let end = Sequence { keep_last: true, score_end: true, ..Sequence::example(0, &ids, ids.len()) };
        let inputs = [Input { prompt: 0, ids: input }];
        let layout = Layout::encoder_decoder(&[prompt.rows()], model.prompt_place(), &inputs, &[end]).unwrap();
        let hidden = model.hidden(&mut Tape::new(), &Var::constant(prompt.clone()), &layout, None).unwrap();
        let logits = model.logits(&hidden).unwrap().to_f64_vec().unwrap();
        ids.push((0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best }) as u32);
    }
    ids[1..].to_vec()
}

#[test]
fn an_encoder_decoder_writes_the_same_with_the_cache_and_without() {
    let inputs: [&[u32]; 3] = [INPUTS[0], &[3; 40], INPUTS[2]];
    for name in ["t5_v10", "t5_buckets", "byt5"] {
        for on in [PromptOn::Encoder, PromptOn::Decoder, PromptOn::Both] {
            for mask in [PromptMask::Full, PromptMask::PromptOnly] {
                let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
                let options =
                    ModelOptions { dtype: DType::F64, prompt_on: on, prompt_mask: mask, ..ModelOptions::default() };
                let model = Model::open(folder, &Device::cpu(Some(2)).unwrap(), options).unwrap();
                for rows in [0, 6] {
                    let prompt = prompt(&model, rows);
                    let generator = Generator::new(&model, &prompt).unwrap();
                    let got = generator.generate(&inputs, 24, Sampling::GREEDY, &mut never).unwrap();
                    for (got, input) in got.iter().zip(inputs) {
                        assert_eq!(*got, written(&model, &prompt, input, 24), "{name} {on:?} {mask:?} {rows}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_encoder_without_rows_is_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/t5_v10");
    let options = ModelOptions { prompt_on: PromptOn::Decoder, ..ModelOptions::default() };
    let model = Model::open(folder, &Device::cpu(Some(1)).unwrap(), options).unwrap();
    let generator = Generator::new(&model, &prompt(&model, 2)).unwrap();
    let error = generator.generate(&[&[]], 4, Sampling::GREEDY, &mut never).unwrap_err();
    assert!(error.to_string().contains("no prompt on the encoder"), "{error}");
}

#[test]
fn a_batch_of_uneven_inputs_is_continued_as_each_alone() {
    for name in ["llama", "gpt2"] {
        let model = model(name);
        let prompt = prompt(&model, 3);
        let generator = Generator::new(&model, &prompt).unwrap();
        let inputs: Vec<&[u32]> = INPUTS.into_iter().chain([[].as_slice()]).collect();
        for sampling in [Sampling::GREEDY, SAMPLED] {
            let together = generator.generate(&inputs, 6, sampling, &mut never).unwrap();
            for (ids, new) in inputs.iter().zip(&together) {
                assert_eq!(generator.generate(&[ids], 6, sampling, &mut never).unwrap(), [new.as_slice()]);
                if sampling == Sampling::GREEDY {
                    assert_eq!(*new, greedy(&model, &prompt, ids, 6));
                }
            }
            let reversed: Vec<&[u32]> = inputs.iter().rev().copied().collect();
            let mut again = generator.generate(&reversed, 6, sampling, &mut never).unwrap();
            again.reverse();
            assert_eq!(again, together);
        }
    }
}

#[test]
fn sampling_follows_its_seed_and_one_candidate_is_the_likeliest() {
    let model = model("llama");
    let generator = Generator::new(&model, &prompt(&model, 2)).unwrap();
    let run = |sampling| generator.generate(&INPUTS, 8, sampling, &mut never).unwrap();
    assert_eq!(run(SAMPLED), run(SAMPLED));
    assert_ne!(run(SAMPLED), run(Sampling { seed: 8, ..SAMPLED }));
    assert_eq!(run(Sampling { top_k: 1, ..SAMPLED }), run(Sampling::GREEDY));
    assert_eq!(run(Sampling { top_p: 1e-9, ..SAMPLED }), run(Sampling::GREEDY));
    for bad in [Sampling { top_p: 0.0, ..SAMPLED }, Sampling { temperature: f64::NAN, ..SAMPLED }] {
        assert_eq!(generator.generate(&INPUTS, 1, bad, &mut never).unwrap_err().exit_code(), 3);
    }
}

#[test]
fn a_model_without_a_prompt_generates_and_nothing_at_all_is_refused() {
    let model = model("llama");
    let none = prompt(&model, 0);
    let generator = Generator::new(&model, &none).unwrap();
    let new = generator.generate(&INPUTS, 4, Sampling::GREEDY, &mut never).unwrap();
    for (ids, new) in INPUTS.iter().zip(&new) {
        assert_eq!(*new, greedy(&model, &none, ids, 4));
    }
    assert_eq!(generator.generate(&[&[]], 4, Sampling::GREEDY, &mut never).unwrap_err().exit_code(), 4);
    assert_eq!(generator.generate(&[], 4, Sampling::GREEDY, &mut never).unwrap(), Vec::<Vec<u32>>::new());
}

#[test]
fn generation_ends_at_its_number_at_a_stop_and_at_the_last_position() {
    for name in ["llama", "gpt2"] {
        let model = model(name);
        let generator = Generator::new(&model, &prompt(&model, 3)).unwrap();
        let run = |ids: &[u32], count, stop: &mut dyn FnMut(&[u32]) -> bool| {
            generator.generate(&[ids], count, Sampling::GREEDY, stop).map(|mut new| new.remove(0))
        };
        let long = run(&[4, 5], 5, &mut never).unwrap();
        assert_eq!(long.len(), 5);
        assert_eq!(run(&[4, 5], 1, &mut never).unwrap(), long[..1]);
        assert!(run(&[4, 5], 0, &mut never).unwrap().is_empty());
        assert_eq!(run(&[4, 5], 5, &mut |new| new.len() == 3).unwrap(), long[..3]);
        let room = model.config().max_position_embeddings - 3;
        assert_eq!(run(&vec![4; room - 2], 9, &mut never).unwrap().len(), 2);
        assert!(run(&vec![4; room], 9, &mut never).unwrap().is_empty());
        assert_eq!(run(&vec![4; room + 1], 9, &mut never).unwrap_err().exit_code(), 4);
        assert_eq!(run(&[u32::MAX], 9, &mut never).unwrap_err().exit_code(), 4);
    }
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    let model = model("llama");
    let broken = model.prompt_from(1, &vec![f64::NAN; model.config().hidden_size]).unwrap();
    let generator = Generator::new(&model, &broken).unwrap();
    for ids in [&[][..], &[3]] {
        assert_eq!(generator.generate(&[ids], 2, Sampling::GREEDY, &mut never).unwrap_err().exit_code(), 5);
    }
}

#[test]
fn choices_follow_the_probabilities() {
    let logits: Vec<f64> = [0.1f64, 0.6, 0.3].iter().map(|p| p.ln()).collect();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let plain = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    let mut draw = |sampling: Sampling| {
        let mut counts = [0f64; 3];
        for _ in 0..20_000 {
            counts[choose(&logits, sampling, &mut random) as usize] += 1.0 / 20_000.0;
        }
        counts
    };
    for (got, want) in draw(plain).iter().zip([0.1, 0.6, 0.3]) {
        assert!((got - want).abs() < 0.02);
    }
    assert_eq!(draw(Sampling { top_k: 1, ..plain })[1].round(), 1.0);
    assert_eq!(draw(Sampling { top_p: 0.7, ..plain })[0], 0.0);
    assert_eq!(draw(Sampling::GREEDY)[1].round(), 1.0);
}
