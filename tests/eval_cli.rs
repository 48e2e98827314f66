//! `softprompt eval` with several prompts, and with examples in front of every row.
#![allow(clippy::unwrap_used)]

mod common;

use common::bench::{Bench, letters, refused, run, text};
use common::close_absolute;
use serde_json::{Value, json};
use std::fs;
use std::process::Output;

fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn eval(bench: &Bench, data: &str, more: &[&str]) -> Output {
    let (model, data) = (bench.at("model"), bench.at(data));
    let flags = ["eval", "--quiet", "--model", &model, "--data", &data, "--dtype", "f64"];
    run([&flags[..], more].concat())
}

fn json_of(bench: &Bench, data: &str, more: &[&str]) -> Value {
    result(&eval(bench, data, &[more, &["--json"]].concat()))
}

fn ids(bench: &Bench, name: &str, rows: &[(&[u32], &[u32])]) {
    let lines = rows.iter().map(|(input, target)| format!("{}\n", json!({"input_ids": input, "target_ids": target})));
    bench.write(name, lines.collect::<String>());
}

#[test]
fn several_prompts_are_scored_alone_and_together() {
    let bench = Bench::new();
    ids(&bench, "data.jsonl", &[(&[1, 2], &[5]), (&[3], &[6, 7]), (&[9, 9], &[5]), (&[4], &[8])]);
    for (name, seed) in [("a", "1"), ("b", "2"), ("c", "3")] {
        let (model, out, data) = (bench.at("model"), bench.at(name), bench.at("rows.jsonl"));
        let flags =
            ["train", "--quiet", "--model", &model, "--output-dir", &out, "--train-file", &data, "--seed", seed];
        let rows = seed.parse::<usize>().unwrap().to_string();
        assert!(run([&flags[..], &["--max-steps", "1", "--num-virtual-tokens", &rows]].concat()).status.success());
    }
    let paths = ["a/final", "b/final", "c/final"].map(|name| bench.at(name));
    let several: Vec<&str> = paths.iter().flat_map(|path| ["--prompt", path]).collect();
    let predictions = bench.at("predictions.jsonl");
    let found = json_of(&bench, "data.jsonl", &[&several[..], &["--predictions", &predictions]].concat());
    assert_eq!(found["num_virtual_tokens"], json!([1, 2, 3]));
    for (index, path) in paths.iter().enumerate() {
        let alone = json_of(&bench, "data.jsonl", &["--prompt", path]);
        for metric in ["loss", "accuracy", "macro_f1"] {
            let number = |value: &Value| value[metric].as_f64().unwrap();
            close_absolute(metric, &[number(&found["prompts"][index])], &[number(&alone)], 1e-12);
        }
        assert!(alone.get("ensemble").is_none() && alone["num_virtual_tokens"] == index + 1);
    }
    assert_eq!(found["over_prompts"]["accuracy"]["n"], 3);
    assert!(found["ensemble"]["majority_vote"]["accuracy"].is_number());
    assert!(found["ensemble"]["mean_probability"]["macro_f1"].is_number());
    let best = found["best"]["loss"]["value"].as_f64().unwrap();
    assert!(found["prompts"].as_array().unwrap().iter().all(|one| one["loss"].as_f64().unwrap() >= best));
    let rows = fs::read_to_string(&predictions).unwrap();
    let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    assert_eq!((rows.lines().count(), row["predicted"].as_array().unwrap().len()), (4, 3));

    let shown = text(&eval(&bench, "data.jsonl", &several).stdout);
    for word in ["a/final", "mean ± sd", "best", "majority vote", "mean probability"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let flags = [&several[..], &["--generate"]].concat();
    refused("generated", &eval(&bench, "data.jsonl", &flags), 2, &["--prompt", "--generate"]);
    let no_prompt = bench.at("rows.jsonl");
    let flags = [&several[..], &["--prompt", &no_prompt]].concat();
    refused("no prompt", &eval(&bench, "data.jsonl", &flags), 4, &["rows.jsonl"]);
}

#[test]
fn examples_in_front_score_as_rows_that_begin_with_them() {
    let bench = Bench::new();
    ids(&bench, "few.jsonl", &[(&[1, 2], &[5]), (&[3], &[6, 7])]);
    ids(&bench, "data.jsonl", &[(&[9], &[5]), (&[4, 4], &[6, 7]), (&[], &[5])]);
    let few = bench.at("few.jsonl");
    let flags = ["--few-shot", "2", "--few-shot-file", &few, "--few-shot-joiner", "[13]"];
    let found = json_of(&bench, "data.jsonl", &flags);
    let order = found["few_shot_lines"].as_array().unwrap().iter().map(|line| line.as_u64().unwrap());
    let context: Vec<u32> =
        order.flat_map(|line| if line == 1 { vec![1, 2, 5, 13] } else { vec![3, 6, 7, 13] }).collect();
    assert_eq!((found["few_shot"].as_u64(), found["few_shot_tokens"].as_u64()), (Some(2), Some(8)));
    let written: Vec<Vec<u32>> = [&[9][..], &[4, 4], &[]].iter().map(|ids| [&context[..], ids].concat()).collect();
    ids(&bench, "written.jsonl", &[(&written[0], &[5]), (&written[1], &[6, 7]), (&written[2], &[5])]);
    let prompt = bench.at("prompt.safetensors");
    for prompt in [&[][..], &["--prompt", &prompt]] {
        let found = json_of(&bench, "data.jsonl", &[&flags[..], prompt].concat());
        let want = json_of(&bench, "written.jsonl", prompt);
        let loss = |value: &Value| value["loss"].as_f64().unwrap();
        close_absolute("loss", &[loss(&found)], &[loss(&want)], 1e-9);
        assert_eq!(found["accuracy"], want["accuracy"]);
    }
    // Another seed, another order or choice; the same one again.
    let seeded = |seed: &str| json_of(&bench, "data.jsonl", &[&flags[..], &["--few-shot-seed", seed]].concat());
    assert_eq!(seeded("0")["few_shot_lines"], found["few_shot_lines"]);
    assert!((1..9).any(|seed| seeded(&seed.to_string())["few_shot_lines"] != found["few_shot_lines"]));
}

#[test]
fn an_encoder_reads_examples_in_front_of_its_input() {
    let bench = Bench::new();
    let model = common::golden("t5_v11").to_str().unwrap().to_owned();
    ids(&bench, "few.jsonl", &[(&[11, 12], &[5])]);
    ids(&bench, "data.jsonl", &[(&[9], &[5]), (&[4, 4], &[6, 7])]);
    ids(&bench, "written.jsonl", &[(&[11, 12, 5, 13, 9], &[5]), (&[11, 12, 5, 13, 4, 4], &[6, 7])]);
    let (few, data, written) = (bench.at("few.jsonl"), bench.at("data.jsonl"), bench.at("written.jsonl"));
    let flags = ["eval", "--quiet", "--json", "--dtype", "f64", "--model", &model, "--data"];
    let examples = ["--few-shot", "1", "--few-shot-file", &few, "--few-shot-joiner", "[13]"];
    let found = result(&run([&flags[..], &[&data], &examples].concat()));
    let want = result(&run([&flags[..], &[&written]].concat()));
    close_absolute("loss", &[found["loss"].as_f64().unwrap()], &[want["loss"].as_f64().unwrap()], 1e-9);
    let elsewhere = run([&flags[..], &[&data], &examples, &["--prompt-on", "decoder"]].concat());
    refused("a prompt on the decoder", &elsewhere, 3, &["few_shot", "prompt_on"]);
}

#[test]
fn examples_are_text_where_rows_are() {
    let bench = Bench::new();
    bench.write("model/tokenizer.json", letters().1);
    let lines = |rows: &[(&str, &str)]| -> String {
        rows.iter().map(|(text, label)| format!("{}\n", json!({"text": text, "label": label}))).collect()
    };
    bench.write("few.jsonl", lines(&[("one", "odd"), ("two", "even")]));
    bench.write("data.jsonl", lines(&[("three", "odd"), ("four", "even")]));
    let few = bench.at("few.jsonl");
    let rows = ["--template", "{text} is", "--target", "{label}"];
    let flags = ["--few-shot", "2", "--few-shot-file", &few, "--few-shot-joiner", ". "];
    let found = json_of(&bench, "data.jsonl", &[&rows[..], &flags].concat());
    let first = found["few_shot_lines"][0] == 1;
    let context = if first { "one is odd. two is even. " } else { "two is even. one is odd. " };
    bench.write("written.jsonl", lines(&[(&format!("{context}three"), "odd"), (&format!("{context}four"), "even")]));
    let want = json_of(&bench, "written.jsonl", &rows);
    let loss = |value: &Value| value["loss"].as_f64().unwrap();
    close_absolute("loss", &[loss(&found)], &[loss(&want)], 1e-9);
    assert_eq!(found["few_shot_tokens"], context.len());

    // Generating goes on from the examples too.
    let generated = |data: &str, more: &[&str]| {
        let path = bench.at("generated.jsonl");
        let flags = ["--generate", "--max-new-tokens", "4", "--force", "--predictions", &path];
        json_of(&bench, data, &[&rows[..], &flags, more].concat());
        let text = fs::read_to_string(&path).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["predicted"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(generated("data.jsonl", &flags), generated("written.jsonl", &[]));
}

#[test]
fn examples_that_cannot_be_had_are_refused() {
    let bench = Bench::new();
    ids(&bench, "few.jsonl", &[(&[1, 2], &[5]), (&[3], &[6, 7])]);
    ids(&bench, "data.jsonl", &[(&[9], &[5]), (&[4; 120], &[6, 7])]);
    let few = bench.at("few.jsonl");
    let with = |more: &[&str]| eval(&bench, "data.jsonl", more);
    refused("no file", &with(&["--few-shot", "2"]), 2, &["--few-shot-file"]);
    refused("no number", &with(&["--few-shot-file", &few]), 2, &["--few-shot"]);
    refused("too many", &with(&["--few-shot", "3", "--few-shot-file", &few]), 3, &["few_shot", "1 to 2", "few.jsonl"]);
    let flags = ["--few-shot", "1", "--few-shot-file", &few, "--few-shot-joiner"];
    refused("a text without tokenizer", &with(&[&flags[..], &["x"]].concat()), 2, &["--few-shot-joiner", "[13]"]);
    refused("an id too high", &with(&[&flags[..], &["[999]"]].concat()), 2, &["below 256", "[999]"]);
    let limit = vec![13u32; 10];
    let long = serde_json::to_string(&limit).unwrap();
    refused("a row without room", &with(&[&flags[..], &[long.as_str()]].concat()), 4, &["data.jsonl:2", "at most"]);
}
