//! Runs through the program: start prompts, event files, and going on from an earlier checkpoint.

mod common;

use common::bench::{Bench, letters, refused, run, text};
use common::{Golden, close, golden};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

/// Runs `train` on the workplace's model, with a prompt of 5 rows.
fn train(bench: &Bench, out: &str, more: &[&str]) -> Output {
    let (model, out) = (bench.at("model"), bench.at(out));
    let mut flags = vec!["train", "--json", "--quiet", "--model", &model, "--output-dir", &out];
    flags.extend(["--num-virtual-tokens", "5", "--learning-rate", "0.05", "--per-device-train-batch-size", "2"]);
    flags.extend(more);
    run(flags)
}

fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A workplace whose model has letters for tokens, and rows of text.
fn with_letters() -> Bench {
    let bench = Bench::new();
    bench.write("model/tokenizer.json", letters().1);
    let rows = [("one", "odd"), ("two", "even"), ("three", "odd"), ("four", "even")];
    let lines = rows.map(|(text, label)| format!("{}\n", json!({"text": text, "label": label})));
    bench.write("text.jsonl", lines.concat());
    bench
}

/// The mean of the embeddings of a text's tokens.
fn embedding(text: &str) -> Vec<f64> {
    let table = Golden::read(&golden("llama").join("model.safetensors"));
    let width = table.shape("model.embed_tokens.weight")[1];
    let (table, ids) = (table.numbers("model.embed_tokens.weight"), letters().0);
    let mut mean = vec![0.0; width];
    for letter in text.chars() {
        let id = ids.iter().find(|(token, _)| *token == letter).unwrap().1 as usize;
        let row = &table[id * width..(id + 1) * width];
        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / text.chars().count() as f64);
    }
    mean
}

#[test]
fn a_prompt_starts_from_a_text_or_from_labels() {
    let bench = with_letters();
    let data = bench.at("text.jsonl");
    let flags = ["--train-file", &data, "--template", "{text} is", "--target", "{label}", "--max-steps", "1"];
    let initial = |out: &str, more: &[&str]| {
        result(&train(&bench, out, &[&flags[..], more].concat()));
        Golden::read(&bench.path(out).join("initial/prompt.safetensors")).numbers("prompt")
    };
    let found = initial("text", &["--prompt-tuning-init", "text", "--prompt-tuning-init-text", "ab."]);
    let want: Vec<f64> = ["a", "b", ".", "a", "b"].into_iter().flat_map(embedding).collect();
    close("a text, repeated", &found, &want, 0.0);

    // The labels in the order of their texts, each as it follows an input; then rows of the vocabulary.
    let labels = [embedding(" even"), embedding(" odd")].concat();
    let found = initial("labels", &["--prompt-tuning-init", "class_labels"]);
    close("labels of the rows", &found[..labels.len()], &labels, 1e-7);
    assert!(found[labels.len()..].iter().all(|x| x.is_finite()) && found.len() == 5 * labels.len() / 2);
    let turned = [embedding(" odd"), embedding(" even")].concat();
    let found = initial("given", &["--prompt-tuning-init", "class_labels", "--labels", "odd", "--labels", "even"]);
    close("labels given", &found[..labels.len()], &turned, 1e-7);

    let refusal = |what: &str, code: i32, words: &[&str], more: &[&str]| {
        refused(what, &train(&bench, "refused", &[&flags[..], more].concat()), code, words);
        assert!(!bench.path("refused").exists(), "{what}");
    };
    let labels: Vec<&str> =
        ["--labels"; 6].into_iter().zip(["a", "b", "c", "d", "e", "f"]).flat_map(|(f, l)| [f, l]).collect();
    let many = [&["--prompt-tuning-init", "class_labels"][..], &labels].concat();
    refusal("more labels than rows", 3, &["num_virtual_tokens", "at least 6"], &many);
    refusal("no text", 3, &["prompt_tuning_init_text"], &["--prompt-tuning-init", "text"]);
}

#[test]
fn generation_is_evaluated_up_to_a_stop_text() {
    let bench = with_letters();
    let (model, data) = (bench.at("model"), bench.at("text.jsonl"));
    let generated = |out: &str, more: &[&str]| -> Vec<String> {
        let path = bench.at(out);
        let mut flags =
            vec!["eval", "--json", "--quiet", "--model", &model, "--data", &data, "--template", "{text} is"];
        flags.extend(["--target", "{label}", "--generate", "--max-new-tokens", "9", "--predictions", &path]);
        flags.extend(more);
        result(&run(flags));
        let lines = fs::read_to_string(&path).unwrap();
        let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.map(|row| row["predicted"].as_str().unwrap().to_owned()).collect()
    };
    let whole = generated("whole.jsonl", &[]);
    // Whatever the model of random weights says, it can be stopped at.
    let stop: String = whole.iter().find_map(|text| text.trim().chars().nth(1)).unwrap().to_string();
    let cut: Vec<String> = whole.iter().map(|text| text.split(&stop).next().unwrap().trim().to_owned()).collect();
    assert_eq!(generated("cut.jsonl", &["--stop", &stop]), cut);
    assert_ne!(whole, cut);
    let flags = ["eval", "--model", &model, "--data", &data, "--stop", "x"];
    refused("without --generate", &run(flags), 2, &["--generate"]);
}

/// What TensorBoard shows of a run: it reads the files in order, and drops what a restart will write anew.
fn events(dir: &Path) -> BTreeMap<(String, u64), f32> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut shown = BTreeMap::new();
    for file in files {
        let bytes = fs::read(file).unwrap();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u64::from_le_bytes(*rest.first_chunk().unwrap()) as usize;
            let event = fields(&rest[12..12 + length]);
            rest = &rest[16 + length..];
            let step = event.iter().find(|(field, ..)| *field == 2).map_or(0, |(_, number, _)| *number);
            for (field, _, content) in &event {
                match field {
                    5 => shown.extend(fields(content).into_iter().map(|(_, _, entry)| {
                        let entry = fields(entry);
                        let tag = String::from_utf8(entry[0].2.to_vec()).unwrap();
                        ((tag, step), f32::from_bits(entry[1].1 as u32))
                    })),
                    7 => shown.retain(|(_, of), _| *of < step),
                    _ => {}
                }
            }
        }
    }
    shown
}

/// The fields of a protobuf message: number, value, bytes.
fn fields(mut rest: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(rest: &mut &[u8]) -> u64 {
        let length = rest.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let (bytes, after) = rest.split_at(length);
        *rest = after;
        bytes.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
    }
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest);
        let (value, length) = match key & 7 {
            0 => (varint(&mut rest), 0),
            1 => (u64::from_le_bytes(*rest.first_chunk().unwrap()), 8),
            2 => (0, varint(&mut rest) as usize),
            5 => (u32::from_le_bytes(*rest.first_chunk().unwrap()).into(), 4),
            other => panic!("wire type {other}"),
        };
        let (content, after) = rest.split_at(length);
        found.push((key >> 3, value, content));
        rest = after;
    }
    found
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// The step that the prompt in `dir` is of.
fn step_of(bench: &Bench, dir: &str) -> String {
    result(&run(["inspect", "--json", &bench.at(dir)]))["meta"]["step"].as_str().unwrap().to_owned()
}

#[test]
fn a_run_goes_on_from_an_earlier_checkpoint_as_if_it_had_stopped_there() {
    let bench = Bench::new();
    let rows = bench.at("rows.jsonl");
    // Held out are the training rows: every step makes the best prompt.
    let flags = ["--train-file", &rows, "--eval-file", &rows, "--eval-steps", "1", "--save-steps", "1"];
    let flags = [&flags[..], &["--logging-steps", "1"]].concat();
    let go = |out: &str, more: &[&str]| result(&train(&bench, out, &[&flags[..], more].concat()));
    let whole = go("whole", &["--max-steps", "6"]);
    assert_eq!((&whole["best"]["step"], step_of(&bench, "whole/best").as_str()), (&json!(6), "6"));
    let shown = events(&bench.path("whole/tensorboard"));
    assert_eq!(shown.iter().filter(|((tag, _), _)| tag == "train/loss").count(), 6);

    // A shorter run: best/ goes back with it.
    let earlier = bench.at("whole/checkpoint-5");
    copy_dir(&bench.path("whole/checkpoint-5"), &bench.path("kept"));
    let found = go("whole", &["--max-steps", "5", "--resume", &earlier]);
    assert_eq!((&found["best"]["step"], step_of(&bench, "whole/best").as_str()), (&json!(5), "5"));
    let back = events(&bench.path("whole/tensorboard"));
    assert!(back.iter().all(|(key, value)| key.1 <= 5 && shown[key] == *value));
    assert!(bench.path("whole/checkpoint-6").exists() && bench.path("whole/checkpoint-5").exists());

    // To the end again, from a copy of the checkpoint: the same bits, every step shown once.
    let found = go("whole", &["--max-steps", "6", "--resume", &bench.at("kept")]);
    assert_eq!((&found["prompt_sha256"], &found["best"]), (&whole["prompt_sha256"], &whole["best"]));
    assert_eq!(events(&bench.path("whole/tensorboard")), shown);
    let metrics = fs::read_to_string(bench.path("whole/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 12, "{metrics}");

    // In a directory of its own: best/ comes along.
    go("other", &["--max-steps", "5", "--resume", &bench.at("kept")]);
    assert_eq!(step_of(&bench, "other/best"), "5");

    // Not in that of another run.
    go("another", &["--max-steps", "2", "--seed", "9"]);
    let before = fs::read(bench.path("another/run.toml")).unwrap();
    let kept = bench.at("kept");
    let flags = [&flags[..], &["--max-steps", "6", "--resume", &kept]].concat();
    refused("another run", &train(&bench, "another", &flags), 3, &["another run", "--output-dir"]);
    assert_eq!(fs::read(bench.path("another/run.toml")).unwrap(), before);
    assert_eq!(step_of(&bench, "another/best"), "2");
}

#[test]
fn imports_go_to_a_safetensors_file_or_a_directory() {
    let bench = Bench::new();
    let prompt = bench.at("prompt.safetensors");
    for name in ["out.npy", "out.pt"] {
        refused(name, &run(["import", &prompt, "--out", &bench.at(name)]), 2, &[name, "safetensors"]);
        assert!(!bench.path(name).exists(), "{name}");
    }
    for (name, file) in [("out.safetensors", "out.safetensors"), ("v1.2", "v1.2/prompt.safetensors")] {
        assert!(run(["import", &prompt, "--out", &bench.at(name)]).status.success());
        assert!(bench.path(file).is_file(), "{file}");
    }
}
