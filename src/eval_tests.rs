use super::*;
use crate::data::{Encode, ExampleOptions, Skipped, TextEncoder};
use crate::device::Device;
use crate::dtype::DType;
use crate::models::ModelOptions;
use std::path::{Path, PathBuf};

fn model(name: &str) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let options = ModelOptions { dtype: DType::F64, ..ModelOptions::default() };
    Model::open(folder, &Device::cpu(Some(2)).unwrap(), options).unwrap()
}

fn prompt(model: &Model, rows: usize) -> Tensor {
    let values: Vec<f64> = (0..rows * model.config().hidden_size).map(|i| (i as f64 * 1.7).sin()).collect();
    model.prompt_from(rows, &values).unwrap()
}

fn dataset(rows: &[(&[u32], &[u32])]) -> Dataset {
    let example = |(index, (input, target)): (usize, &(&[u32], &[u32]))| Example {
        input_ids: input.to_vec(),
        target_ids: target.to_vec(),
        line: index as u64 + 1,
        target_text: None,
    };
    Dataset {
        path: PathBuf::from("rows.jsonl"),
        examples: rows.iter().enumerate().map(example).collect(),
        skipped: Skipped::default(),
    }
}

/// Labels of one token, of several, and of a first token in common.
const ROWS: [(&[u32], &[u32]); 5] =
    [(&[1, 2, 3], &[5]), (&[4], &[6, 7]), (&[9, 9], &[6, 8, 2]), (&[3, 1, 4, 1, 5], &[6, 7]), (&[7, 8], &[5])];

fn quiet(_: usize, _: usize) {}

fn ranked(model: &Model, prompt: &Tensor, data: &Dataset, score: Score, batch: usize) -> Result<Evaluation> {
    rank(model, prompt, data, &Labels::of(data, None)?, score, batch, &mut quiet)
}

/// A row's label scored on its own, as training scores it.
fn alone(model: &Model, prompt: &Tensor, input: &[u32], label: &[u32]) -> f64 {
    let mut batch = Batch::new();
    batch.push(input, label).unwrap();
    -model.loss(prompt, &batch).unwrap().by_example[0]
}

#[test]
fn scores_are_those_of_each_label_alone_whatever_the_batch() {
    for name in ["llama", "gpt2"] {
        let model = model(name);
        for rows in [0, 3] {
            let prompt = prompt(&model, rows);
            let mut all = ROWS.to_vec();
            if rows > 0 {
                all.push((&[], &[6, 8, 2]));
            }
            let data = dataset(&all);
            let labels = Labels::of(&data, None).unwrap();
            assert_eq!(labels.ids().len(), 3);
            for batch in [1, 2, 32] {
                for score in [Score::Sum, Score::Mean] {
                    let found = ranked(&model, &prompt, &data, score, batch).unwrap();
                    let (mut right, mut nll, mut tokens) = (0, 0.0, 0);
                    for ((input, target), row) in all.iter().zip(&found.predictions) {
                        let divisor = |label: &[u32]| if score == Score::Mean { label.len() as f64 } else { 1.0 };
                        let want: Vec<f64> =
                            labels.ids().iter().map(|ids| alone(&model, &prompt, input, ids) / divisor(ids)).collect();
                        for (got, want) in row.scores.iter().zip(&want) {
                            assert!((got - want).abs() <= 1e-10 * want.abs(), "{name} {rows} {batch}: {got} {want}");
                        }
                        let best = want.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        assert!((want[row.predicted] - best).abs() <= 1e-10 * best.abs());
                        assert_eq!(labels.ids()[row.truth], *target);
                        right += usize::from(row.predicted == row.truth);
                        nll -= alone(&model, &prompt, input, target);
                        tokens += target.len();
                    }
                    assert_eq!(found.accuracy, right as f64 / all.len() as f64);
                    assert_eq!((found.rows, found.label_tokens), (all.len(), tokens));
                    assert!((found.loss - nll / tokens as f64).abs() <= 1e-10 * found.loss);
                    let loss = mean_loss(&model, &prompt, &data, batch, &mut quiet).unwrap();
                    assert!((found.loss - loss).abs() <= 1e-10 * loss);
                }
            }
        }
    }
}

#[test]
fn several_prompts_in_one_pass_score_as_each_alone() {
    for name in ["llama", "gpt2"] {
        let model = model(name);
        let prompts = [prompt(&model, 3), prompt(&model, 0), prompt(&model, 7), prompt(&model, 1)];
        let data = dataset(&ROWS);
        let labels = Labels::of(&data, None).unwrap();
        for batch in [1, 2, 32] {
            let mut heard = 0;
            let mut hear = |done, _| heard = done;
            let together = rank_all(&model, &prompts, &data, &labels, Score::Sum, batch, &mut hear).unwrap();
            assert_eq!((together.len(), heard), (prompts.len(), ROWS.len()));
            for (found, prompt) in together.iter().zip(&prompts) {
                let alone = ranked(&model, prompt, &data, Score::Sum, batch).unwrap();
                assert!((found.loss - alone.loss).abs() <= 1e-12 * alone.loss);
                assert_eq!((found.accuracy, found.macro_f1), (alone.accuracy, alone.macro_f1));
                for (found, alone) in found.predictions.iter().zip(&alone.predictions) {
                    assert_eq!((found.line, found.truth, found.predicted), (alone.line, alone.truth, alone.predicted));
                    for (found, alone) in found.scores.iter().zip(&alone.scores) {
                        assert!((found - alone).abs() <= 1e-12 * alone.abs(), "{name} {batch}: {found} {alone}");
                    }
                }
            }
        }
        assert_eq!(rank_all(&model, &[], &data, &labels, Score::Sum, 2, &mut quiet).unwrap_err().exit_code(), 1);
    }
}

#[test]
fn of_several_prompts_the_shortest_and_the_longest_must_suit_every_row() {
    let model = model("llama");
    let limit = model.config().max_position_embeddings;
    let rank = |prompts: &[Tensor], data: &Dataset| {
        rank_all(&model, prompts, data, &Labels::of(data, None).unwrap(), Score::Sum, 8, &mut quiet)
    };
    let prompts = [prompt(&model, 2), prompt(&model, 0)];
    refused(rank(&prompts, &dataset(&[(&[1], &[5]), (&[], &[6])])), 4, "rows.jsonl:2: expected an input");
    let long = vec![3; limit - 1];
    let data = dataset(&[(&[1], &[5]), (&long, &[6])]);
    refused(rank(&prompts, &data), 4, "rows.jsonl:2: expected at most");
    assert!(rank(&prompts[1..], &data).is_ok());
}

#[test]
fn progress_counts_up_to_all_rows() {
    let model = model("llama");
    let (prompt, data) = (prompt(&model, 1), dataset(&ROWS));
    let labels = Labels::of(&data, None).unwrap();
    let mut heard = Vec::new();
    let mut hear = |done, total| heard.push((done, total));
    rank(&model, &prompt, &data, &labels, Score::Sum, 2, &mut hear).unwrap();
    mean_loss(&model, &prompt, &data, 3, &mut hear).unwrap();
    assert_eq!(heard, [(2, 5), (4, 5), (5, 5), (3, 5), (5, 5)]);
}

#[test]
fn many_long_labels_make_smaller_batches_of_at_least_one_row() {
    let labels: Vec<Vec<u32>> = vec![vec![1; MAX_ROWS / 5]; 2];
    let data = dataset(&[(&[1][..], &[1][..]); 6]);
    let rows: Vec<Row<'_>> = data.examples.iter().map(|example| Row { example, truth: 0, labels: &labels }).collect();
    assert_eq!(next_batch(&rows, 32, 1, 0).len(), 2);
    assert_eq!(next_batch(&rows, 1, 1, 0).len(), 1);
    assert_eq!(next_batch(&rows[..1], 0, 1, 0).len(), 1);
    let huge = vec![vec![1; MAX_ROWS * 2]; 2];
    let rows: Vec<Row<'_>> = rows.iter().map(|row| Row { labels: &huge, ..*row }).collect();
    assert_eq!(next_batch(&rows, 32, 1, 0).len(), 1);
}

#[track_caller]
fn refused(found: Result<impl std::fmt::Debug>, code: u8, start: &str) {
    let error = found.unwrap_err();
    assert_eq!(error.exit_code(), code, "{error}");
    assert!(error.to_string().starts_with(start), "{error}");
}

#[test]
fn what_cannot_be_scored_names_its_row() {
    let model = model("llama");
    let (none, one) = (prompt(&model, 0), prompt(&model, 1));
    let empty = dataset(&[(&[1], &[5]), (&[], &[6])]);
    refused(ranked(&model, &none, &empty, Score::Sum, 8), 4, "rows.jsonl:2: expected an input");
    refused(mean_loss(&model, &none, &empty, 8, &mut quiet), 4, "rows.jsonl:2: expected an input");

    let limit = model.config().max_position_embeddings;
    // The row's own label fits; the other candidate, of two tokens, needs one position more than there are.
    let long = vec![3; limit - 1];
    let fits = dataset(&[(&[1], &[6, 7]), (&long[1..], &[5])]);
    assert!(ranked(&model, &one, &fits, Score::Sum, 8).is_ok());
    let long = dataset(&[(&[1], &[6, 7]), (&long, &[5])]);
    refused(ranked(&model, &one, &long, Score::Sum, 8), 4, "rows.jsonl:2: expected at most");
    assert!(mean_loss(&model, &one, &long, 8, &mut quiet).is_ok());

    let other = Labels::of(&dataset(&[(&[1], &[5]), (&[1], &[7])]), None).unwrap();
    let found = rank(&model, &one, &empty, &other, Score::Sum, 8, &mut quiet);
    refused(found, 4, "rows.jsonl:2: expected a target among the labels");
    refused(Labels::of(&dataset(&[(&[1], &[5]), (&[2], &[5])]), None), 4, "rows.jsonl: labels: expected at least two");

    let broken = model.prompt_from(1, &vec![f64::NAN; model.config().hidden_size]).unwrap();
    refused(ranked(&model, &broken, &dataset(&ROWS), Score::Sum, 8), 5, "rows.jsonl:1: expected finite");
}

/// A token is a character, or a space with the character behind it.
struct Bytes;

impl Encode for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let joined = if c == ' ' { chars.next().map(|next| 1000 + u32::from(next)) } else { None };
            ids.push(joined.unwrap_or(u32::from(c)));
        }
        Ok(ids)
    }

    fn eos_id(&self) -> Option<u32> {
        None
    }

    fn bos_id(&self) -> Option<u32> {
        None
    }

    fn adds_bos(&self) -> bool {
        false
    }
}

#[test]
fn a_label_is_one_label_whether_or_not_the_input_ends_in_white_space() {
    let options = ExampleOptions::default();
    let encoder = TextEncoder::new(&Bytes, &options).unwrap();
    let mut data = dataset(&[]);
    for (line, (input, target)) in [("x", "a"), ("x ", "a"), ("y", "b")].into_iter().enumerate() {
        data.examples.push(Example {
            input_ids: encoder.input(input).unwrap(),
            target_ids: encoder.target(input, target).unwrap(),
            line: line as u64 + 1,
            target_text: Some(target.into()),
        });
    }
    let given = Labels::encode(&["a".into(), "b".into()], &encoder).unwrap();
    for labels in [Labels::of(&data, Some(&encoder)).unwrap(), given] {
        assert_eq!(labels.texts(), ["a", "b"]);
        let rows: Vec<Row<'_>> = data.examples.iter().map(|example| labels.row(example).unwrap()).collect();
        assert_eq!(rows.iter().map(|row| row.truth).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!(rows[0].labels, [[1000 + u32::from(b'a')], [1000 + u32::from(b'b')]]);
        assert_eq!(rows[1].labels, [[u32::from(b'a')], [u32::from(b'b')]]);
    }
    assert_eq!(Labels::of(&data, None).unwrap().texts(), ["a", "a", "b"]);
}
