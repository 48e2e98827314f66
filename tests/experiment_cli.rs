//! `softprompt experiment`, every one of them on a model of a few thousand weights, and `softprompt report` on what they leave.
#![allow(clippy::unwrap_used)]

mod common;

use common::bench::{Bench, letters, refused, run, text};
use serde_json::{Value, json};
use std::fs;
use std::process::Output;

/// A workplace whose model has letters for tokens, and rows of text.
fn workplace() -> Bench {
    let bench = Bench::new();
    bench.write("model/tokenizer.json", letters().1);
    let rows = |texts: &[(&str, &str)]| -> String {
        texts.iter().map(|(text, label)| format!("{}\n", json!({"text": text, "label": label}))).collect()
    };
    let train = [("one", "odd"), ("two", "even"), ("three", "odd"), ("four", "even"), ("five", "odd"), ("six", "even")];
    bench.write("train.jsonl", rows(&train));
    bench.write("dev.jsonl", rows(&[("seven", "odd"), ("eight", "even"), ("nine", "odd")]));
    bench.write("test.jsonl", rows(&[("eleven", "odd"), ("twelve", "even")]));
    bench.write("other.jsonl", rows(&[("twenty", "even"), ("thirty one", "odd"), ("forty", "even")]));
    bench
}

fn experiment(bench: &Bench, name: &str, out: &str, more: &[&str]) -> Output {
    let (model, train, dev, out) = (bench.at("model"), bench.at("train.jsonl"), bench.at("dev.jsonl"), bench.at(out));
    let mut flags = vec!["experiment", name, "--json", "--quiet", "--output-dir", &out];
    if name != "model-size" {
        flags.extend(["--model", &model]);
    }
    flags.extend(["--train-file", &train, "--eval-file", &dev, "--template", "{text} is", "--target", "{label}"]);
    flags.extend(["--max-steps", "2", "--per-device-train-batch-size", "2", "--eval-steps", "1", "--seeds", "2"]);
    flags.extend(["--metric-for-best-model", "accuracy"]);
    if name != "length" {
        flags.extend(["--num-virtual-tokens", "3"]);
    }
    run([&flags[..], more].concat())
}

/// What the experiment found, after a look at the files it left.
#[track_caller]
fn found(bench: &Bench, name: &str, out: &str, more: &[&str]) -> Value {
    let output = experiment(bench, name, out, more);
    assert!(output.status.success(), "{name}: {}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let saved: Value = serde_json::from_slice(&fs::read(bench.path(&format!("{out}/results.json"))).unwrap()).unwrap();
    assert_eq!(json, saved, "{name}");
    assert_eq!(json["experiment"], name);
    assert!(fs::read_to_string(bench.path(&format!("{out}/table.md"))).unwrap().contains("\n\n| "));
    assert!(fs::read_to_string(bench.path(&format!("{out}/plot.svg"))).unwrap().starts_with("<svg"));
    json
}

/// Names of the rows, and for each the number of figures in each column.
fn shape(found: &Value) -> Vec<(String, Vec<u64>)> {
    let rows = found["rows"].as_array().unwrap().iter();
    let counts =
        |row: &Value| row["measured"].as_object().unwrap().values().map(|one| one["n"].as_u64().unwrap()).collect();
    rows.map(|row| (row["name"].as_str().unwrap().to_owned(), counts(row))).collect()
}

fn rows(names: &[(&str, &[u64])]) -> Vec<(String, Vec<u64>)> {
    names.iter().map(|(name, counts)| ((*name).to_owned(), counts.to_vec())).collect()
}

#[test]
fn lengths_and_inits_are_compared_over_seeds() {
    let bench = workplace();
    let test = format!("test={}", bench.at("test.jsonl"));
    let length = found(&bench, "length", "length", &["--lengths", "1,4", "--test-file", &test]);
    assert_eq!(shape(&length), rows(&[("P1", &[2, 2]), ("P4", &[2, 2])]));
    assert_eq!(length["rows"][1]["x"], 4.0);
    assert!(bench.path("length/P4/seed-1/best/prompt.safetensors").is_file());
    // The figure of a run is that of its best prompt on the test rows.
    let (model, data, prompt) = (bench.at("model"), bench.at("test.jsonl"), bench.at("length/P4/seed-1/best"));
    let flags = ["eval", "--json", "--model", &model, "--data", &data, "--prompt", &prompt];
    let alone = run([&flags[..], &["--template", "{text} is", "--target", "{label}"]].concat());
    let alone: Value = serde_json::from_slice(&alone.stdout).unwrap();
    assert_eq!(length["rows"][1]["measured"]["test"]["values"][1], alone["accuracy"]);

    let init = found(&bench, "init", "init", &["--init-text", "a b"]);
    let names = ["uniform", "sample_vocab", "class_labels", "text"];
    assert_eq!(shape(&init), rows(&names.map(|name| (name, &[2][..]))));
    assert_eq!(shape(&found(&bench, "init", "some", &["--inits", "uniform"])), rows(&[("uniform", &[2])]));
    // What cannot begin is refused with all of it.
    let output = experiment(&bench, "init", "twice", &["--inits", "uniform", "--num-virtual-tokens", "1"]);
    refused("a key twice", &output, 2, &["--num-virtual-tokens"]);
    let labels = ["--inits", "uniform,class_labels", "--labels", "[\"odd\", \"even\", \"a\", \"b\"]"];
    refused("more labels than rows", &experiment(&bench, "init", "labels", &labels), 3, &["num_virtual_tokens"]);
    assert!(!bench.path("labels").exists());
}

#[test]
fn models_and_methods_are_compared() {
    let bench = workplace();
    let (one, two) = (bench.at("model"), bench.at("second"));
    fs::create_dir_all(&two).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(bench.path("model").join(file), bench.path("second").join(file)).unwrap();
    }
    let sizes = found(&bench, "model-size", "sizes", &["--model", &one, "--model", &two]);
    assert_eq!(shape(&sizes), rows(&[("1 model", &[2]), ("2 second", &[2])]));
    assert!(sizes["rows"][0]["x"].as_f64().unwrap() > 1000.0);
    assert_eq!(sizes["rows"][0]["measured"], sizes["rows"][1]["measured"]);

    let both = ["--model", &one, "--model", &two, "--methods", "prompt,full", "--seeds", "1"];
    let output = experiment(&bench, "model-size", "both", &both);
    refused("seeds twice", &output, 2, &["--seeds"]);
    let both = found(&bench, "model-size", "both", &both[..6]);
    assert_eq!(shape(&both), rows(&[("1 model", &[2, 2]), ("2 second", &[2, 2])]));
    let columns: Vec<&String> = both["rows"][0]["measured"].as_object().unwrap().keys().collect();
    assert_eq!(columns, ["prompt, held-out rows", "full, held-out rows"]);
    assert!(bench.path("both/2-second/full/seed-1/best/model.safetensors").is_file());

    // A run that diverges is told, and the others go on; its model has numbers that are none.
    let mut weights = fs::read(bench.path("second/model.safetensors")).unwrap();
    let end = weights.len();
    weights[end - 64..].fill(0xff);
    bench.write("second/model.safetensors", weights);
    let failing = found(&bench, "model-size", "failing", &["--model", &one, "--model", &two]);
    assert_eq!(shape(&failing), rows(&[("1 model", &[2]), ("2 second", &[0])]));
    assert_eq!(failing["failures"].as_array().unwrap().len(), 2);
    assert!(failing["failures"][0]["run"].as_str().unwrap().ends_with("2-second/seed-0"));
    bench.write("third/tokenizer.json", letters().1);
    for file in ["config.json", "model.safetensors"] {
        fs::copy(bench.path("second").join(file), bench.path("third").join(file)).unwrap();
    }
    let third = bench.at("third");
    refused(
        "all diverge",
        &experiment(&bench, "model-size", "all", &["--model", &two, "--model", &third]),
        5,
        &["finite"],
    );

    let other = bench.at("other.jsonl");
    let more = ["--few-shot", "2,4", "--test-file", &other, "--full-max-steps", "1", "--few-shot-joiner", ". "];
    let methods = found(&bench, "methods", "methods", &more);
    let want =
        [("zero-shot", &[1, 1][..]), ("2-shot", &[2, 2]), ("4-shot", &[2, 2]), ("prompt", &[2, 2]), ("full", &[2, 2])];
    assert_eq!(shape(&methods), rows(&want));
    assert!(bench.path("methods/full/seed-0/best/model.safetensors").is_file());

    let test = format!("here={}", bench.at("test.jsonl"));
    let there = format!("there={other}");
    let transfer = found(&bench, "transfer", "transfer", &["--test-file", &test, "--test-file", &there]);
    assert_eq!(shape(&transfer), rows(&[("prompt", &[2, 2, 2]), ("full", &[2, 2, 2])]));
    let columns: Vec<&String> = transfer["rows"][0]["measured"].as_object().unwrap().keys().collect();
    assert_eq!(columns, ["held-out rows", "here", "there"]);
    let of = |row: &Value| {
        let values = |column| row["measured"][column]["values"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap());
        columns.iter().flat_map(|column| values(column.as_str())).collect::<Vec<f64>>()
    };
    let [prompt, full, difference] = [&transfer["rows"][0], &transfer["rows"][1], &transfer["differences"][0]].map(of);
    assert_eq!(difference, prompt.iter().zip(&full).map(|(a, b)| a - b).collect::<Vec<_>>());
    assert_eq!(transfer["differences"][0]["name"], "prompt − full");

    // The runs of all of it on one page.
    let (page, all) = (bench.at("report.html"), bench.at("methods"));
    let output = run(["report", &all, &two.replace("second", "transfer"), "--out", &page, "--json", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["runs"].as_array().unwrap().len(), 8);
    assert!(report["varied"].as_array().unwrap().contains(&json!("method")));
    let prompts = report["runs"].as_array().unwrap().iter().filter(|run| run["neighbours"].is_array());
    assert_eq!(prompts.count(), 4);
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("there is no prompt") && html.contains("<svg") && !html.contains("<script"));
    refused("a page that is there", &run(["report", &all, "--out", &page]), 2, &["report.html", "--force"]);
    refused("no runs", &run(["report", &one, "--out", &page, "--force"]), 4, &["model", "run.toml"]);
    // Without the model there are no neighbours, unless it was asked for by name.
    fs::rename(bench.path("model"), bench.path("gone")).unwrap();
    let output = run(["report", &all, "--out", &page, "--force", "--quiet"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(fs::read_to_string(&page).unwrap().contains("the model could not be opened"));
    refused("no model", &run(["report", &all, "--out", &page, "--force", "--model", &one]), 4, &["model"]);
}

#[test]
fn steps_votes_and_neighbours_are_shown() {
    let bench = workplace();
    let steps = found(&bench, "steps", "steps", &[]);
    assert_eq!(shape(&steps), rows(&[("1", &[2]), ("2", &[2])]));

    let test = bench.at("test.jsonl");
    let ensemble = found(&bench, "ensemble", "ensemble", &["--test-file", &test]);
    let names = ["each prompt alone", "best prompt", "majority vote", "mean probability"];
    assert_eq!(shape(&ensemble), rows(&[(names[0], &[2]), (names[1], &[1]), (names[2], &[1]), (names[3], &[1])]));

    let near = found(&bench, "neighbours", "near", &["--top", "2"]);
    assert_eq!(near["runs"].as_array().unwrap().len(), 2);
    assert_eq!(near["runs"][0]["rows"].as_array().unwrap().len(), 3);
    assert_eq!(near["runs"][0]["rows"][0]["nearest"].as_array().unwrap().len(), 2);
}

#[test]
fn an_experiment_that_was_cut_off_goes_on_and_finds_the_same() {
    let bench = workplace();
    let more = ["--test-file", &bench.at("test.jsonl")];
    let whole = found(&bench, "transfer", "whole", &more);
    // As it is after both prompts and one of the models.
    found(&bench, "transfer", "cut", &more);
    let time = |path: &str| fs::metadata(bench.path(path)).unwrap().modified().unwrap();
    for file in ["results.json", "table.md", "plot.svg"] {
        fs::remove_file(bench.path("cut").join(file)).unwrap();
    }
    let last = bench.path("cut/full/seed-1");
    fs::remove_dir_all(&last).unwrap();
    let (prompt, weights) = ("cut/prompt/seed-0/final/prompt.safetensors", "cut/full/seed-0/final/model.safetensors");
    let before = (fs::read(bench.path(prompt)).unwrap(), time(weights));
    refused("without --resume", &experiment(&bench, "transfer", "cut", &more), 3, &["output_dir", "--resume true"]);
    let on = found(&bench, "transfer", "cut", &[&more[..], &["--resume", "true"]].concat());
    assert_eq!(on, whole);
    assert_eq!((fs::read(bench.path(prompt)).unwrap(), time(weights)), before, "what was finished is not done again");
    // Once more, with nothing left to do.
    assert_eq!(found(&bench, "transfer", "cut", &[&more[..], &["--resume", "true"]].concat()), whole);

    let longer = ["--full-max-steps", "3", "--resume", "true"];
    let failed = found(&bench, "transfer", "cut", &[&more[..], &longer].concat());
    let failures = failed["failures"].as_array().unwrap();
    assert!(failures.len() == 2 && failures[0]["error"].as_str().unwrap().contains("2 steps"), "{failures:?}");
    let file = bench.path("cut/full/seed-0/finished.json");
    fs::write(&file, "{}").unwrap();
    let failed = found(&bench, "transfer", "cut", &[&more[..], &["--resume", "true"]].concat());
    assert!(failed["failures"][0]["error"].as_str().unwrap().contains("finished.json"), "{failed}");
    assert_eq!(failed["differences"], json!([]));
}

#[test]
fn what_an_experiment_cannot_do_is_refused_by_name() {
    let bench = workplace();
    let refuse = |what: &str, name: &str, code: i32, words: &[&str], more: &[&str]| {
        refused(what, &experiment(&bench, name, "out", more), code, words);
        assert!(!bench.path("out").exists(), "{what}");
    };
    refuse("a flag of another", "steps", 2, &["--lengths", "length"], &["--lengths", "1"]);
    refuse("no length", "length", 2, &["--lengths", "integers"], &["--lengths", "5,0"]);
    refuse("a length twice", "length", 2, &["--lengths", "distinct"], &["--lengths", "5,5"]);
    refuse("no text", "init", 2, &["--init-text"], &["--inits", "text"]);
    refuse("an unknown init", "init", 2, &["--inits", "sample_vocab"], &["--inits", "zeros"]);
    refuse("one model", "model-size", 2, &["--model"], &["--model", &bench.at("model")]);
    refuse("no domains", "transfer", 2, &["--test-file"], &[]);
    refuse("weights", "steps", 3, &["method"], &["--method", "full"]);
    refuse("going on from one place", "steps", 3, &["resume", "true or false"], &["--resume", "somewhere"]);
    // What is wrong with rows that are looked at last is told first.
    refuse("no such rows", "length", 4, &["gone.jsonl"], &["--lengths", "2", "--test-file", "a=gone.jsonl"]);
    bench.write("third.jsonl", "{\"text\": \"one\", \"label\": \"third\"}\n");
    let third = bench.at("third.jsonl");
    refuse("a label of no training row", "transfer", 4, &["third.jsonl:1", "even, odd"], &["--test-file", &third]);
    refuse("rows that are not looked at", "steps", 2, &["--test-file", "transfer"], &["--test-file", &third]);
    refuse("too many examples", "methods", 3, &["few_shot", "1 to 6"], &["--few-shot", "7"]);
    let test = bench.at("test.jsonl");
    refuse("a name twice", "length", 2, &["--test-file"], &["--test-file", &test, "--test-file", &test]);
    refuse("no experiment", "dance", 2, &["dance", "length"], &[]);
    bench.write("full/something", "");
    refused("a full directory", &experiment(&bench, "steps", "full", &[]), 3, &["output_dir", "--output-dir"]);
}
