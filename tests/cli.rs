//! The program itself: gradients against the golden files, runs, interruptions, and bad input with its exit code.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Golden, causal_rows, close, golden, golden_cases};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn softprompt(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_softprompt"));
    command.env_remove("SOFTPROMPT_CONFIG").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Fails unless the program ended with `code`, said all of `words`, and did not panic.
#[track_caller]
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = softprompt(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

fn write_rows(path: &Path, rows: &[(Vec<u32>, Vec<u32>)]) {
    let lines = rows.iter().map(|(input, target)| format!("{{\"input_ids\":{input:?},\"target_ids\":{target:?}}}\n"));
    fs::write(path, lines.collect::<String>()).unwrap();
}

/// A prompt of the golden case as a `.npy` file would be too lossy: f64 safetensors, written by hand.
fn write_prompt(path: &Path, shape: &[usize], values: &[f64]) {
    let header =
        format!("{{\"prompt\":{{\"dtype\":\"F64\",\"shape\":{shape:?},\"data_offsets\":[0,{}]}}}}", values.len() * 8);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    fs::write(path, bytes).unwrap();
}

/// Rows and prompt of a golden case, as files in `dir`.
fn golden_files(dir: &Path, name: &str, case: &str) -> Golden {
    let file = Golden::read(&golden(name).join("golden.safetensors"));
    write_rows(&dir.join("rows.jsonl"), &causal_rows(&file, case));
    let key = format!("{case}.prompt");
    write_prompt(&dir.join("prompt.safetensors"), &file.shape(&key), &file.numbers(&key));
    file
}

#[test]
fn gradient_writes_what_peft_computes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    for (name, case) in golden_cases() {
        let file = golden_files(dir.path(), &name, &case);
        let model = golden(&name);
        let output = softprompt(&[
            "gradient",
            "--model",
            model.to_str().unwrap(),
            "--prompt",
            &at("prompt.safetensors"),
            "--data",
            &at("rows.jsonl"),
            "--out",
            &at("out.safetensors"),
            "--dtype",
            "f64",
            "--force",
        ]);
        assert!(output.status.success(), "{name} {case}: {}", text(&output.stderr));
        let written = Golden::read(&dir.path().join("out.safetensors"));
        let want = file.numbers(&format!("{case}.losses_f64"))[0];
        close(&format!("{name} {case} loss"), &written.numbers("loss"), &[want], 1e-9);
        close(
            &format!("{name} {case} grad"),
            &written.numbers("grad"),
            &file.numbers(&format!("{case}.grad_f64")),
            1e-9,
        );
    }
}

#[test]
fn bad_input_is_refused_with_its_code_place_and_hint() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    golden_files(dir.path(), "llama", "main");
    let model = golden("llama").to_str().unwrap().to_string();
    let gradient = |model: &str, prompt: &str, data: &str, code: i32, words: &[&str]| {
        let out = at("never.safetensors");
        refused(&["gradient", "--model", model, "--prompt", prompt, "--data", data, "--out", &out], code, words);
        assert!(!Path::new(&out).exists(), "something was written");
    };
    let (prompt, rows) = (at("prompt.safetensors"), at("rows.jsonl"));
    refused(&["gradient", "--model", &model], 2, &["--prompt"]);
    refused(&["no-such-command"], 2, &["no-such-command"]);
    gradient("/no/such/model", &prompt, &rows, 4, &["/no/such/model"]);

    for (content, code, words) in [
        ("{\"input_ids\":[2],\"target_ids\":[3]}\n{\"input_ids\":[2],", 4, &["bad.jsonl:2"][..]),
        ("{\"input_ids\":[2],\"target_ids\":[]}\n", 4, &["bad.jsonl:1"][..]),
        ("{\"input_ids\":[2],\"target_ids\":[256]}\n", 4, &["bad.jsonl:1", "256"][..]),
        ("{\"input\":\"a\",\"target\":\"b\"}\n", 4, &["bad.jsonl:1", "hint"][..]),
        ("", 4, &["bad.jsonl"][..]),
    ] {
        fs::write(at("bad.jsonl"), content).unwrap();
        gradient(&model, &prompt, &at("bad.jsonl"), code, words);
    }
    write_rows(&dir.path().join("long.jsonl"), &[(vec![2; 200], vec![3])]);
    gradient(&model, &prompt, &at("long.jsonl"), 4, &["long.jsonl:1"]);

    write_prompt(&dir.path().join("narrow.safetensors"), &[2, 8], &[0.5; 16]);
    gradient(&model, &at("narrow.safetensors"), &rows, 4, &["narrow.safetensors", "64", "8"]);
    write_prompt(&dir.path().join("nan.safetensors"), &[1, 64], &[f64::NAN; 64]);
    gradient(&model, &at("nan.safetensors"), &rows, 4, &["nan.safetensors"]);

    let weights = fs::read(golden("llama").join("model.safetensors")).unwrap();
    let mut huge = weights.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for (name, bytes) in [("cut", &weights[..weights.len() / 2]), ("huge", &huge[..]), ("none", &[][..])] {
        let broken = dir.path().join(name);
        fs::create_dir(&broken).unwrap();
        fs::copy(golden("llama").join("config.json"), broken.join("config.json")).unwrap();
        fs::write(broken.join("model.safetensors"), bytes).unwrap();
        gradient(broken.to_str().unwrap(), &prompt, &rows, 4, &["model.safetensors"]);
    }
    for (key, value) in [("hidden_act", "\"what\""), ("model_type", "\"bert\""), ("partial_rotary_factor", "0.5")] {
        let config = fs::read_to_string(golden("llama").join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config[key] = serde_json::from_str(value).unwrap();
        let odd = dir.path().join(key);
        fs::create_dir(&odd).unwrap();
        fs::write(odd.join("config.json"), config.to_string()).unwrap();
        fs::copy(golden("llama").join("model.safetensors"), odd.join("model.safetensors")).unwrap();
        gradient(odd.to_str().unwrap(), &prompt, &rows, 4, &[key]);
    }
    for content in ["{", "{}", "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "[1]"] {
        let odd = dir.path().join("tokenizer");
        fs::create_dir_all(&odd).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(golden("llama").join(name), odd.join(name)).unwrap();
        }
        fs::write(odd.join("tokenizer.json"), content).unwrap();
        gradient(odd.to_str().unwrap(), &prompt, &rows, 4, &["tokenizer.json"]);
    }
    fs::write(at("kept.safetensors"), "kept").unwrap();
    let kept = at("kept.safetensors");
    refused(&["gradient", "--model", &model, "--prompt", &prompt, "--data", &rows, "--out", &kept], 2, &["--force"]);
    assert_eq!(fs::read_to_string(&kept).unwrap(), "kept");
    fs::write(at("run.toml"), "learning_rat = 1").unwrap();
    refused(&["train", "--config", &at("run.toml")], 3, &["run.toml:1", "learning_rate"]);
}

/// Flags of a short run on a golden model; `more` comes last.
fn train(dir: &Path, out: &str, more: &[&str]) -> Output {
    let (rows, out) = (dir.join("rows.jsonl"), dir.join(out));
    let model = golden("llama");
    let mut arguments = vec![
        "train",
        "--json",
        "--model",
        model.to_str().unwrap(),
        "--train-file",
        rows.to_str().unwrap(),
        "--output-dir",
        out.to_str().unwrap(),
        "--num-virtual-tokens",
        "3",
        "--per-device-train-batch-size",
        "2",
        "--learning-rate",
        "0.05",
    ];
    arguments.extend(more);
    softprompt(&arguments)
}

fn result(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_gives_the_same_bits_for_any_threads_and_after_a_resume() {
    let dir = tempfile::tempdir().unwrap();
    golden_files(dir.path(), "llama", "all_text_labels");
    let steps = ["--max-steps", "9"];
    let whole = result(&train(dir.path(), "whole", &steps));
    for threads in ["1", "2", "4"] {
        let flags = [&steps[..], &["--threads", threads]].concat();
        let found = result(&train(dir.path(), &format!("threads{threads}"), &flags));
        assert_eq!(found["prompt_sha256"], whole["prompt_sha256"], "{threads} threads");
    }
    for first in ["1", "4", "6"] {
        let out = format!("resumed{first}");
        result(&train(dir.path(), &out, &["--max-steps", first]));
        let found = result(&train(dir.path(), &out, &[&steps[..], &["--resume", "true"]].concat()));
        assert_eq!(found["prompt_sha256"], whole["prompt_sha256"], "resumed after {first}");
    }
    let again = train(dir.path(), "whole", &steps);
    assert_eq!(again.status.code(), Some(3), "a run was written over: {}", text(&again.stderr));
}

#[cfg(unix)]
#[test]
fn a_killed_run_saves_and_goes_on_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    golden_files(dir.path(), "llama", "all_text_labels");
    let (rows, model) = (dir.path().join("rows.jsonl"), golden("llama"));
    let steps = ["--max-steps", "3000", "--dtype", "f64"];
    let whole = result(&train(dir.path(), "whole", &steps));
    let out = dir.path().join("killed");
    let mut child = Command::new(env!("CARGO_BIN_EXE_softprompt"))
        .args(["train", "--quiet", "--model", model.to_str().unwrap(), "--train-file", rows.to_str().unwrap()])
        .args(["--output-dir", out.to_str().unwrap(), "--num-virtual-tokens", "3", "--learning-rate", "0.05"])
        .args(["--per-device-train-batch-size", "2"])
        .args(steps)
        .spawn()
        .unwrap();
    // The metrics file appears when the run has begun and listens.
    while !fs::metadata(out.join("metrics.jsonl")).is_ok_and(|metrics| metrics.len() > 0) {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let found = result(&train(dir.path(), "killed", &[&steps[..], &["--resume", "true"]].concat()));
    assert_eq!(found["prompt_sha256"], whole["prompt_sha256"]);
}

#[test]
fn a_run_that_diverges_says_so_and_keeps_the_last_good_prompt() {
    let dir = tempfile::tempdir().unwrap();
    golden_files(dir.path(), "llama", "main");
    let output = train(dir.path(), "out", &["--max-steps", "50", "--learning-rate", "1e38"].map(|flag| flag));
    // The rate is given twice: a usage error, before anything is written.
    assert_eq!(output.status.code(), Some(2));
    let (rows, model, out) = (dir.path().join("rows.jsonl"), golden("llama"), dir.path().join("diverged"));
    let output = softprompt(&[
        "train",
        "--model",
        model.to_str().unwrap(),
        "--train-file",
        rows.to_str().unwrap(),
        "--output-dir",
        out.to_str().unwrap(),
        "--max-steps",
        "50",
        "--learning-rate",
        "1e38",
        "--num-virtual-tokens",
        "2",
    ]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("lines 1"), "{}", text(&output.stderr));
    let shown = softprompt(&["inspect", "--json", out.join("last_good").to_str().unwrap()]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
}

#[test]
fn prompts_travel_between_formats_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let adapter = golden("llama").join("adapter_after5_f32");
    let model = golden("llama").to_str().unwrap().to_string();
    let first =
        result(&softprompt(&["import", adapter.to_str().unwrap(), "--out", &at("ours"), "--model", &model, "--json"]));
    for (format, out) in
        [("npy", "p.npy"), ("prompt_embeds", "p.safetensors"), ("peft", "adapter"), ("safetensors", "q.safetensors")]
    {
        result(&softprompt(&[
            "export",
            &at("ours"),
            "--format",
            format,
            "--out",
            &at(out),
            "--model",
            &model,
            "--json",
        ]));
        let seen = result(&softprompt(&["inspect", &at(out), "--json"]));
        assert_eq!(seen["sha256"], first["sha256"], "{format}");
    }
    let near = result(&softprompt(&["inspect", &at("ours"), "--model", &model, "--top", "2", "--json"]));
    assert_eq!(near["rows"].as_array().unwrap().len(), 5);
    assert!(result(&softprompt(&["inspect", &model, "--json"]))["parameters"].as_u64().unwrap() > 10_000);
}

/// The metrics of a run, by split, without times.
fn metrics(dir: &Path, out: &str, split: &str) -> Vec<serde_json::Value> {
    let lines = fs::read_to_string(dir.join(out).join("metrics.jsonl")).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["split"] == split).collect()
}

#[test]
fn accumulated_parts_give_the_gradient_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    // Labels of different lengths: a mean of the parts' means would be another number.
    let rows: Vec<(Vec<u32>, Vec<u32>)> =
        (0..8u32).map(|row| ((2..4 + row).collect(), (5..6 + row % 3).collect())).collect();
    write_rows(&dir.path().join("rows.jsonl"), &rows);
    let model = golden("llama");
    let run = |out: &str, size: &str, parts: &str| {
        let out_dir = dir.path().join(out);
        result(&softprompt(&[
            "train",
            "--json",
            "--model",
            model.to_str().unwrap(),
            "--train-file",
            dir.path().join("rows.jsonl").to_str().unwrap(),
            "--output-dir",
            out_dir.to_str().unwrap(),
            "--num-virtual-tokens",
            "3",
            "--dtype",
            "f64",
            "--max-steps",
            "4",
            "--logging-steps",
            "1",
            "--per-device-train-batch-size",
            size,
            "--gradient-accumulation-steps",
            parts,
        ]));
        metrics(dir.path(), out, "train")
    };
    let (whole, parts) = (run("whole", "8", "1"), run("parts", "2", "4"));
    assert_eq!((whole.len(), parts.len()), (4, 4));
    for (whole, parts) in whole.iter().zip(&parts) {
        for name in ["loss", "grad_norm"] {
            let (whole, parts) = (whole[name].as_f64().unwrap(), parts[name].as_f64().unwrap());
            close(name, &[parts], &[whole], 1e-10);
        }
    }
}

#[test]
fn a_run_stops_early_and_keeps_the_best_prompt() {
    let dir = tempfile::tempdir().unwrap();
    golden_files(dir.path(), "llama", "main");
    // The held-out rows ask for other labels: training makes them worse sooner or later.
    let held_out: Vec<(Vec<u32>, Vec<u32>)> = (0..4u32).map(|row| (vec![9, 10 + row], vec![200 + row])).collect();
    let path = dir.path().join("held_out.jsonl");
    write_rows(&path, &held_out);
    let flags = ["--eval-file", path.to_str().unwrap(), "--eval-steps", "1", "--early-stopping-patience", "3"];
    let found = result(&train(dir.path(), "out", &[&flags[..], &["--max-steps", "500"]].concat()));
    assert_eq!(found["ended"], "early_stop");
    let losses: Vec<f64> =
        metrics(dir.path(), "out", "eval").iter().map(|line| line["loss"].as_f64().unwrap()).collect();
    let best = (0..losses.len()).fold(0, |best, at| if losses[at] < losses[best] { at } else { best });
    assert_eq!(losses.len(), best + 1 + 3, "patience of three evaluations");
    assert_eq!(found["best"]["step"].as_u64().unwrap() as usize, best + 1);
    let scored = result(&softprompt(&["inspect", "--json", dir.path().join("out/best").to_str().unwrap()]));
    assert_eq!(scored["meta"]["step"], (best + 1).to_string());
}
