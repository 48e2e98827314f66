//! The program at its edges: flags, files that exist, full disks, closed pipes, errors for machines.

mod common;

use common::bench::{Bench, letters, refused, run, tensor, text};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn nothing_is_written_over_and_where_nothing_can_be_written_it_is_said() {
    let bench = Bench::new();
    bench.write("kept", "kept");
    let (kept, prompt) = (bench.at("kept"), bench.at("prompt.safetensors"));
    bench.refused("gradient", &["--out", &kept], 2, &["kept", "hint: ", "--force"]);
    for format in ["npy", "prompt_embeds", "safetensors", "peft"] {
        let output = run(["export", &prompt, "--format", format, "--out", &kept]);
        refused(format, &output, 2, &["kept", "--force"]);
    }
    fs::create_dir(bench.path("ours")).unwrap();
    bench.write("ours/prompt.safetensors", "kept");
    refused("import", &run(["import", &prompt, "--out", &bench.at("ours")]), 2, &["--force"]);
    assert_eq!(fs::read_to_string(bench.path("ours/prompt.safetensors")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(bench.path("kept")).unwrap(), "kept");
    bench.refused("a file as folder", &["--out", &bench.at("kept/out.safetensors")], 7, &["kept"]);
    if Path::new("/dev/full").exists() {
        bench.refused("full disk", &["--out", "/dev/full"], 7, &["/dev/full"]);
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_softprompt"))
            .args(["inspect", &prompt])
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        refused("stdout full", &output, 7, &["stdout"]);
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let bench = Bench::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_softprompt"))
        .args(["inspect", &bench.at("model"), "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn the_command_line_is_checked_before_anything_else() {
    let bench = Bench::new();
    let usage: &[&[&str]] = &[
        &[],
        &["what"],
        &["gradient"],
        &["gradient", "--what"],
        &["inspect"],
        &["export", "p"],
        &["doctor", "--threads", "0"],
        &["gradient", "--dtype", "f16"],
        &["inspect", "x", "--prompt", "y"],
    ];
    for arguments in usage {
        let output = run(arguments.iter().copied());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    for arguments in [["--version", ""], ["--help", ""], ["gradient", "--help"]] {
        let output = run(arguments.into_iter().filter(|argument| !argument.is_empty()));
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(text(&run(["--version"]).stdout).trim(), concat!("softprompt ", env!("CARGO_PKG_VERSION")));
    bench.refused("device", &["--device", "gpu7"], 3, &["gpu7", "hint: "]);
    bench.refused("cuda", &["--device", "cuda"], 6, &["cuda", "hint: "]);
    refused("doctor", &run(["doctor", "--device", "cuda"]), 6, &["cuda"]);
    bench.refused("hub id", &["--model", "no-such-org/no-such-model"], 4, &["hf download", "hint: "]);
    bench.refused("empty", &["--model", ""], 2, &["--model"]);
}

#[test]
fn errors_are_told_to_machines_too() {
    let bench = Bench::new();
    bench.write("bad.jsonl", "{\"input_ids\":[2],\"target_ids\":[]}\n");
    let prompt = bench.at("prompt.safetensors");
    let output = run([
        "gradient",
        "--json",
        "--model",
        &bench.at("model"),
        "--prompt",
        &prompt,
        "--data",
        &bench.at("bad.jsonl"),
        "--out",
        &bench.at("out"),
    ]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = &told["error"];
    assert_eq!((output.status.code(), &error["code"], &error["line"]), (Some(4), &json!(4), &json!(1)));
    for key in ["place", "expected", "got", "hint"] {
        assert!(!error[key].as_str().unwrap().is_empty(), "{key}: {told}");
    }
    let output = run(["gradient", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &told["error"]["code"]), (Some(2), &json!(2)));
}

#[test]
fn names_in_files_do_not_steer_the_terminal() {
    let bench = Bench::new();
    bench.write("odd.safetensors", tensor("\u{1b}[2Jname", "F32", &[1], &[0; 4]));
    for arguments in [["inspect", "odd.safetensors"], ["import", "odd.safetensors"]] {
        let path = bench.at(arguments[1]);
        let mut all = vec![arguments[0], &path];
        let out = bench.at("imported.safetensors");
        if arguments[0] == "import" {
            all.extend(["--out", &out]);
        }
        let output = run(all);
        assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{arguments:?}");
    }
}

#[test]
fn values_out_of_range_are_refused_with_advice() {
    let bench = Bench::new();
    bench.write("model/tokenizer.json", letters().1);
    let (model, rows, out) = (bench.at("model"), bench.at("rows.jsonl"), bench.at("run"));
    let train = |more: &[&str]| {
        let flags = ["train", "--quiet", "--model", &model, "--train-file", &rows, "--output-dir", &out];
        run(flags.into_iter().chain(more.iter().copied()))
    };
    let out_of_range = [
        ["--num-virtual-tokens", "0"],
        ["--num-virtual-tokens", "1000000000000"],
        ["--num-virtual-tokens", "128"],
        ["--learning-rate", "-1"],
        ["--learning-rate", "nan"],
        ["--learning-rate", "1e400"],
        ["--per-device-train-batch-size", "0"],
        ["--max-steps", "0"],
        ["--optim", "sgd"],
        ["--eval-fraction", "1"],
    ];
    for flags in out_of_range {
        let word = &flags[0].rsplit('-').next().unwrap();
        refused(&format!("{flags:?}"), &train(&flags), 3, &[word]);
    }
    refused("a flag twice", &train(&["--max-steps", "1", "--max-steps", "2"]), 2, &["--max-steps", "once"]);
    assert!(!Path::new(&out).exists());
    for (text, line) in [("learning_rate = ", 1), ("seed = 1\nseed = 2", 2), ("seed = \"x\"", 1)] {
        bench.write("run.toml", text);
        refused(text, &train(&["--config", &bench.at("run.toml")]), 3, &[&format!("run.toml:{line}")]);
    }
    for flags in [["--temperature", "nan"], ["--top-p", "0"], ["--top-p", "2"]] {
        let all = ["generate", "--model", &model, "--text", "a"].into_iter().chain(flags);
        refused(&format!("{flags:?}"), &run(all), 3, &[&flags[0][2..5]]);
    }
    refused("no text", &run(["generate", "--model", &model, "--text", ""]), 4, &["input 0"]);
    let eval = ["eval", "--model", &model, "--data", &rows];
    refused("no row", &run(eval.into_iter().chain(["--limit", "0"])), 4, &["rows.jsonl", "--limit"]);
    for labels in [&["--label", "a"][..], &["--label", "a", "--label", "a"]] {
        refused("labels", &run(eval.into_iter().chain(labels.iter().copied())), 4, &["labels"]);
    }
}

#[test]
fn lines_that_are_no_text_are_refused_by_number() {
    let bench = Bench::new();
    bench.write("model/tokenizer.json", letters().1);
    bench.write("lines", b"one\r\ntwo\nthr\xffe\n");
    let generate = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_softprompt"));
        command.args(["generate", "--model", &bench.at("model"), "--max-new-tokens", "1"]);
        command.stdin(fs::File::open(bench.path("lines")).unwrap()).output().unwrap()
    };
    refused("not UTF-8", &generate(), 4, &["stdin:3", "column 4"]);
    bench.write("lines", "one\r\ntwo\n");
    let output = generate();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 2);
}
