//! The program on an encoder–decoder that reads text: training, ranking, generating, adapters, and what is refused by name.

mod common;

use common::bench::{Bench, refused, run, text};
use common::golden;
use serde_json::{Value, json};
use std::fs;
use std::process::Output;

/// A workplace whose `model` is the golden T5 v1.1 with a tokenizer, and whose `rows.jsonl` has two classes.
fn workplace() -> Bench {
    let bench = Bench::new();
    for file in ["config.json", "model.safetensors"] {
        bench.write(&format!("model/{file}"), fs::read(golden("t5_v11").join(file)).unwrap());
    }
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        bench.write(&format!("model/{file}"), fs::read(golden("t5_tokenizer").join(file)).unwrap());
    }
    let row = |(input, target): (&str, &str)| format!("{}\n", json!({"input": input, "target": target}));
    let rows = [("a good movie", "good"), ("the plot was bad", "bad"), ("good acting", "good"), ("a bad story", "bad")];
    bench.write("rows.jsonl", rows.map(row).concat());
    bench
}

/// Runs `train` for a prompt of three rows.
fn train(bench: &Bench, out: &str, more: &[&str]) -> Output {
    let (model, rows, out) = (bench.at("model"), bench.at("rows.jsonl"), bench.at(out));
    let mut flags = vec!["train", "--json", "--quiet", "--model", &model, "--train-file", &rows, "--output-dir", &out];
    flags.extend(["--num-virtual-tokens", "3", "--per-device-train-batch-size", "3", "--learning-rate", "0.3"]);
    flags.extend(more);
    run(flags)
}

fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_prompt_on_either_half_learns_and_says_where_it_stands() {
    let bench = workplace();
    let (model, rows) = (bench.at("model"), bench.at("rows.jsonl"));
    for (name, flags) in [
        ("encoder", &[][..]),
        ("decoder", &["--prompt-on", "decoder"]),
        ("both", &["--prompt-on", "both"]),
        ("prompt_only", &["--prompt-mask", "prompt_only"]),
        ("both_prompt_only", &["--prompt-on", "both", "--prompt-mask", "prompt_only"]),
    ] {
        let held_out = ["--eval-file", &rows, "--metric-for-best-model", "accuracy", "--eval-steps", "10"];
        let go = |out: &str, more: &[&str]| result(&train(&bench, out, &[flags, &held_out, more].concat()));
        let first = go(&format!("{name}-1"), &["--max-steps", "1"]);
        let whole = go(name, &["--max-steps", "20"]);
        let (before, after) = (first["loss"].as_f64().unwrap(), whole["loss"].as_f64().unwrap());
        assert!(after < before - 0.1, "{name}: {before} to {after}");
        let resumed = format!("{name}-resumed");
        go(&resumed, &["--max-steps", "10"]);
        let resumed = go(&resumed, &["--max-steps", "20", "--resume", "true", "--threads", "1"]);
        assert_eq!(resumed["prompt_sha256"], whole["prompt_sha256"], "{name}");

        let prompt = bench.at(&format!("{name}/final"));
        let common = ["--json", "--model", &model, "--prompt", &prompt];
        let eval = |flags: &[&str]| run([&["eval"], &common[..], &["--data", &rows], flags].concat());
        let told = result(&eval(flags));
        assert!(told["loss"].as_f64().unwrap() < before, "{name}: {told}");
        let text =
            run([&["generate"], &common[..], &["--text", "a good movie", "--max-new-tokens", "4"], flags].concat());
        assert!(text.status.success(), "{name}: {}", common::bench::text(&text.stderr));
        if flags.is_empty() {
            refused("another place", &eval(&["--prompt-on", "decoder"]), 2, &["prompt_on", "encoder"]);
        } else {
            // Without the flags the prompt would stand elsewhere.
            refused(name, &eval(&[]), 2, &["prompt_", flags[1], "hint: give --prompt-"]);
        }
        let adapter = bench.at(&format!("{name}-adapter"));
        let export = run(["export", &prompt, "--format", "peft", "--out", &adapter]);
        if !flags.is_empty() {
            refused(name, &export, 2, &["prompt_", "PEFT"]);
            continue;
        }
        assert!(export.status.success(), "{}", common::bench::text(&export.stderr));
        let config: Value =
            serde_json::from_slice(&fs::read(bench.path("encoder-adapter/adapter_config.json")).unwrap()).unwrap();
        assert_eq!((&config["task_type"], &config["num_transformer_submodules"]), (&json!("SEQ_2_SEQ_LM"), &json!(1)));
        let again = run(["eval", "--json", "--model", &model, "--prompt", &adapter, "--data", &rows]);
        assert_eq!(result(&again)["loss"], told["loss"]);
    }
}

#[test]
fn pefts_adapters_of_both_forms_give_the_golden_loss() {
    let bench = workplace();
    let file = common::Golden::read(&golden("t5_v11").join("golden.safetensors"));
    let numbers = |name: &str| file.numbers(&format!("main.{name}"));
    let (ids, mask, labels) = (numbers("input_ids"), numbers("attention_mask"), numbers("labels"));
    let (width, label_width) = (file.shape("main.input_ids")[1], file.shape("main.labels")[1]);
    let rows = (0..ids.len() / width).map(|row| {
        let input: Vec<u32> =
            (0..width).map(|at| row * width + at).filter(|&at| mask[at] == 1.0).map(|at| ids[at] as u32).collect();
        let label = &labels[row * label_width..][..label_width];
        let target: Vec<u32> = label.iter().filter(|&&id| id >= 0.0).map(|&id| id as u32).collect();
        format!("{}\n", json!({"input_ids": input, "target_ids": target}))
    });
    bench.write("golden.jsonl", rows.collect::<String>());
    let (model, data) = (bench.at("model"), bench.at("golden.jsonl"));
    for adapter in ["adapter_after5_f32", "adapter_one_submodule"] {
        let adapter = golden("t5_v11").join(adapter);
        let out = bench.at("out.safetensors");
        let flags = ["--model", &model, "--prompt", adapter.to_str().unwrap(), "--data", &data, "--dtype", "f64"];
        let found = run([&["gradient", "--json", "--force", "--out", &out], &flags[..]].concat());
        let loss = result(&found)["loss"].as_f64().unwrap();
        // The adapter was made in f32.
        assert!((loss - numbers("losses_f64")[5]).abs() < 1e-5, "{loss}");
    }
}

#[test]
fn what_means_nothing_to_this_kind_of_model_is_refused_by_name() {
    let bench = workplace();
    let refuse = |what: &str, flags: &[&str], code: i32, words: &[&str]| {
        refused(what, &train(&bench, "refused", flags), code, words);
    };
    refuse("a separator", &["--separator", "#"], 3, &["separator", "encoder–decoder"]);
    refuse("a long label", &["--max-target-length", "2"], 4, &["rows.jsonl:1", "max_target_length"]);
    bench.model(|_| ());
    let ids = format!("{}\n", json!({"input_ids": [3, 4], "target_ids": [5]}));
    bench.write("rows.jsonl", ids);
    for (flags, word) in [
        (["--prompt-on", "decoder"], "prompt_on"),
        (["--prompt-mask", "prompt_only"], "prompt_mask"),
        (["--max-target-length", "4"], "max_target_length"),
    ] {
        refuse("on a causal model", &flags, 3, &[word, "encoder–decoder"]);
    }
    assert!(!bench.path("refused").exists());
}
