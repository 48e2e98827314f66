//! `softprompt bench`: what it measures is the step that the other commands take, its numbers fit together, and what it
//! cannot do it refuses before it starts.

mod common;

use common::bench::{Bench, refused, run, text};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn bench(arguments: &[&str]) -> Value {
    let output = run(["bench", "--json", "--quiet", "--threads", "2"].iter().chain(arguments).copied());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    assert!(output.stderr.is_empty(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Fails unless the numbers of one measurement fit together.
#[track_caller]
fn assert_consistent(found: &Value) {
    let seconds: Vec<f64> = found["seconds"].as_array().unwrap().iter().map(number).collect();
    let median = number(&found["median_seconds"]);
    assert!(seconds.iter().all(|&step| step > 0.0) && seconds.iter().any(|&step| step <= median), "{found}");
    assert!((number(&found["examples_per_second"]) * median / number(&found["examples"]) - 1.0).abs() < 1e-9);
    assert!((number(&found["tokens_per_second"]) * median / number(&found["batch_tokens"]) - 1.0).abs() < 1e-9);
    assert!((number(&found["gflops_per_second"]) * 1e9 * median / number(&found["flops"]) - 1.0).abs() < 1e-9);
    let kinds = found["peak_bytes"].as_object().unwrap();
    assert_eq!(kinds.len(), 5, "{found}");
    let total: f64 = kinds.values().map(number).sum();
    assert_eq!(total, number(&found["peak_total_bytes"]), "{found}");
    assert_eq!(total - number(&kinds["weights"]), number(&found["peak_above_weights_bytes"]), "{found}");
    for (kind, bytes) in found["most_bytes"].as_object().unwrap() {
        assert!(number(bytes) >= number(&kinds[kind]), "{kind}: {found}");
    }
    assert!(number(&found["loss"]).is_finite() && number(&found["peak_total_bytes"]) > 0.0);
    if cfg!(target_os = "linux") && !found["peak_rss_bytes"].is_null() {
        assert!(number(&found["peak_rss_bytes"]) > number(&found["peak_above_weights_bytes"]), "{found}");
    }
}

#[test]
fn the_parts_of_a_step_add_up_to_it() {
    let place = Bench::new();
    let model = place.at("model");
    for more in
        [&["--num-virtual-tokens", "20"][..], &["--method", "full"], &["--recompute", "layer"], &["--dtype", "f64"]]
    {
        let sizes = ["--examples", "24", "--tokens", "24", "--warm-up", "2", "--steps", "1"];
        let found = bench(&[&[model.as_str()][..], &sizes, more].concat());
        assert_consistent(&found);
        // Of one step, parts and whole are of the same step.
        let parts: f64 =
            ["data", "forward", "backward", "optimizer"].map(|part| number(&found["phases"][part])).iter().sum();
        let whole = number(&found["median_seconds"]);
        assert!(parts <= whole && parts >= 0.9 * whole, "{more:?}: {parts} of {whole}");
        assert!(number(&found["phases"]["forward"]) > 0.0 && number(&found["phases"]["backward"]) > 0.0);
        assert!(number(&found["gemm_gflops_per_second"]) > 0.0 && number(&found["gemm_ratio"]) > 0.0);
        let prompt_rows = match more[1] {
            "full" => 0,
            "20" => 20,
            _ => 100,
        };
        assert_eq!(found["num_virtual_tokens"], prompt_rows);
    }
}

#[test]
fn the_loss_is_that_of_gradient_on_the_same_rows_and_prompt() {
    let place = Bench::new();
    for dtype in ["f32", "f64"] {
        let _ = fs::remove_file(place.path("out.safetensors"));
        let output = place.accepted("gradient", &["--dtype", dtype, "--json", "--quiet"]);
        let want: Value = serde_json::from_slice(&output.stdout).unwrap();
        let (model, prompt, rows) = (place.at("model"), place.at("prompt.safetensors"), place.at("rows.jsonl"));
        let flags = [&model, "--prompt", &prompt, "--data", &rows, "--dtype", dtype, "--steps", "2"];
        for warm_up in ["0", "3"] {
            let found = bench(&[&flags[..], &["--warm-up", warm_up]].concat());
            assert_consistent(&found);
            // Steps leave the prompt as it is, so the loss is that of the start whenever it is taken.
            assert_eq!((&found["loss"], &found["examples"]), (&want["loss"], &want["examples"]), "{dtype}");
            assert_eq!(found["label_tokens"], want["label_tokens"]);
        }
    }
}

/// Bytes that a step of the golden model, of two layers, saves in f32.
fn saved(prompt: usize, examples: usize, tokens: usize) -> usize {
    let (width, inner, queries, keys, heads) = (64, 96, 64, 32, 4);
    let (rows, scored) = (prompt + examples * (tokens - 1), examples);
    let first = prompt * (width + 2 * keys) + rows * (2 * queries + heads + width + 2 * inner);
    let last = rows * (width + 2 * keys) + scored * (2 * queries + heads + width + 2 * inner);
    4 * (first + last + 2 * scored * width)
}

#[test]
fn what_is_saved_grows_with_packed_rows_and_never_with_prompt_times_batch() {
    let place = Bench::new();
    let model = place.at("model");
    for (prompt, examples, tokens) in [(10, 2, 8), (50, 2, 8), (10, 20, 8), (50, 20, 8), (50, 20, 32)] {
        let sizes = [prompt, examples, tokens].map(|size: usize| size.to_string());
        let flags = [&model, "--num-virtual-tokens", &sizes[0], "--examples", &sizes[1], "--tokens", &sizes[2]];
        let found = bench(&[&flags[..], &["--steps", "1"]].concat());
        assert_eq!(found["most_bytes"]["saved_activations"], saved(prompt, examples, tokens), "{sizes:?}");
        assert_eq!(found["stream_rows"], prompt + examples * (tokens - 1));
    }
}

#[test]
fn uneven_examples_are_drawn_from_a_seed() {
    let place = Bench::new();
    let model = place.at("model");
    let of = |more: &[&str]| bench(&[&[model.as_str(), "--steps", "1", "--num-virtual-tokens", "4"], more].concat());
    let sizes = ["--examples", "64", "--tokens", "20"];
    let (one, again, other) = (
        of(&[&sizes[..], &["--uneven", "1"]].concat()),
        of(&[&sizes[..], &["--uneven", "1"]].concat()),
        of(&[&sizes[..], &["--uneven", "2"]].concat()),
    );
    assert_eq!((&one["batch_tokens"], &one["loss"]), (&again["batch_tokens"], &again["loss"]));
    assert_ne!(one["loss"], other["loss"]);
    let tokens = number(&one["batch_tokens"]);
    assert!((64.0 * 4.0..64.0 * 20.0).contains(&tokens) && number(&one["tokens"]) <= 20.0, "{one}");
    assert_eq!(of(&sizes)["batch_tokens"], 64 * 20);
}

#[test]
fn a_sweep_is_a_table_two_lines_and_a_picture() {
    let place = Bench::new();
    let (model, plot) = (place.at("model"), place.at("made/on/the <way>.svg"));
    for (swept, values, key) in [
        ("examples", [1, 4, 16], "examples"),
        ("num-virtual-tokens", [1, 30, 60], "num_virtual_tokens"),
        ("tokens", [2, 8, 32], "tokens"),
    ] {
        let list = values.map(|value| value.to_string()).join(",");
        let flags = [&model, "--num-virtual-tokens", "8", "--examples", "3", "--steps", "2", "--sweep", swept];
        let flags = if swept == "num-virtual-tokens" { [&flags[..1], &flags[3..]].concat() } else { flags.to_vec() };
        let found = bench(&[&flags[..], &["--values", &list, "--plot", &plot, "--force"]].concat());
        assert_eq!((&found["swept"], &found["plot"]), (&json!(swept), &json!(plot)));
        let points = found["sweep"].as_array().unwrap();
        assert_eq!(points.len(), values.len());
        for (point, value) in points.iter().zip(values) {
            assert_consistent(point);
            assert_eq!((&point["value"], &point[key]), (&json!(value), &json!(value)), "{swept}");
            assert!(point["gemm_ratio"].is_null() && point["phases"].is_object());
        }
        let line = &found["fit"]["peak_above_weights_bytes"];
        assert!(number(&line["slope"]) > 0.0 && number(&line["r_squared"]) > 0.9, "{swept}: {line}");
        assert!(found["fit"]["seconds"]["slope"].is_number());
        let svg = fs::read_to_string(&plot).unwrap();
        assert!(svg.starts_with("<svg ") && svg.contains("R² = ") && svg.ends_with("</svg>\n"), "{swept}");
        assert_eq!(svg.matches("<circle").count(), 9);
    }
    let flags = ["bench", &model, "--steps", "1", "--num-virtual-tokens", "2", "--sweep", "tokens", "--values", "4,8"];
    let output = run(flags);
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("seconds = ") && said.contains("R²"), "{said}");
    assert_eq!(text(&output.stderr).lines().count(), 2);
}

#[test]
fn what_cannot_be_benched_is_refused_and_nothing_is_written() {
    let place = Bench::new();
    place.write("empty.jsonl", "");
    place.write("large.jsonl", "{\"input_ids\":[2,999],\"target_ids\":[3]}\n");
    place.write("alone.jsonl", "{\"input_ids\":[],\"target_ids\":[3]}\n");
    place.write("text.jsonl", "{\"input\":\"a\",\"target\":\"b\"}\n");
    place.write("kept.svg", "kept");
    let at = |name: &str| place.at(name);
    let (model, rows, prompt, kept) = (at("model"), at("rows.jsonl"), at("prompt.safetensors"), at("kept.svg"));
    let (empty, large, alone, words) = (at("empty.jsonl"), at("large.jsonl"), at("alone.jsonl"), at("text.jsonl"));
    let (inside, folder) = (at("kept.svg/plot.svg"), at("model"));
    let sweep = ["--sweep", "tokens", "--values", "2,4"];
    let cases: &[(&str, Vec<&str>, i32, &[&str])] = &[
        ("neither", vec![], 2, &["MODEL", "--config", "smollm2-135m"]),
        ("both", vec![&model, "--config", "gpt2"], 2, &["MODEL", "--config"]),
        ("shape", vec!["--config", "t5-huge"], 2, &["t5-huge", "gpt2", "llama-3.2-1b", "t5-small"]),
        ("shape as model", vec!["gpt2"], 4, &["gpt2", "--config gpt2"]),
        ("no examples", vec![&model, "--examples", "0"], 2, &["--examples"]),
        ("one token", vec![&model, "--tokens", "1"], 2, &["--tokens"]),
        ("no steps", vec![&model, "--steps", "0"], 2, &["--steps"]),
        ("too long", vec![&model, "--tokens", "1000"], 3, &["tokens", "128", "1000"]),
        ("too long with the prompt", vec![&model, "--num-virtual-tokens", "120"], 3, &["128", "120"]),
        ("too long for a shape", vec!["--config", "gpt2", "--tokens", "1000"], 3, &["1024"]),
        ("too many", vec!["--config", "smollm2-135m", "--examples", "1000000", "--tokens", "8000"], 3, &["examples"]),
        ("empty data", vec![&model, "--data", &empty], 4, &["empty.jsonl"]),
        ("no data", vec![&model, "--data", "none.jsonl"], 4, &["none.jsonl"]),
        ("ids too large", vec![&model, "--data", &large], 4, &["large.jsonl:1"]),
        ("text without a tokenizer", vec![&model, "--data", &words], 4, &["text.jsonl:1"]),
        ("nothing to predict from", vec![&model, "--method", "full", "--data", &alone], 4, &["alone.jsonl"]),
        ("data and tokens", vec![&model, "--data", &rows, "--tokens", "4"], 2, &["--data", "--tokens"]),
        ("data, swept", [&[&model, "--data", &rows][..], &sweep].concat(), 2, &["--data", "--sweep"]),
        ("no prompt there", vec![&model, "--prompt", "none.npy"], 4, &["none.npy"]),
        ("another size", vec![&model, "--prompt", &prompt, "--num-virtual-tokens", "99"], 2, &["99", "prompt"]),
        ("another width", vec!["--config", "gpt2", "--prompt", &prompt], 4, &["width 64", "768"]),
        ("full with a prompt", vec![&model, "--method", "full", "--prompt", &prompt], 2, &["--prompt", "full"]),
        ("bf16 on a CPU", vec![&model, "--dtype", "bf16"], 3, &["bf16"]),
        ("a value of one token", vec![&model, "--sweep", "tokens", "--values", "1,4"], 3, &["tokens", "2"]),
        ("a value too large", vec![&model, "--sweep", "tokens", "--values", "4,400"], 3, &["128", "400"]),
        ("no numbers", vec![&model, "--sweep", "tokens", "--values", "4,x"], 2, &["x", "--values"]),
        ("one value", vec![&model, "--sweep", "tokens", "--values", "4"], 2, &["--values", "two"]),
        ("a value twice", vec![&model, "--sweep", "tokens", "--values", "4,8,4"], 2, &["--values"]),
        ("no values", vec![&model, "--sweep", "tokens"], 2, &["--values"]),
        ("no sweep", vec![&model, "--plot", "plot.svg"], 2, &["--sweep"]),
        ("a sweep of what", vec![&model, "--sweep", "layers", "--values", "1,2"], 2, &["layers", "examples"]),
        ("something there", [&[&model, "--plot", &kept][..], &sweep].concat(), 2, &["kept.svg", "--force"]),
        ("no folder", [&[&model, "--plot", &inside][..], &sweep].concat(), 7, &["kept.svg"]),
        ("a folder", [&[&model, "--plot", &folder, "--force"][..], &sweep].concat(), 7, &["model"]),
    ];
    let listing = || {
        let mut names: Vec<_> = fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    };
    let before = listing();
    for (what, flags, code, words) in cases {
        refused(what, &run(["bench"].iter().chain(flags).copied()), *code, words);
    }
    assert_eq!(listing(), before);
    assert_eq!(fs::read_to_string(place.path("kept.svg")).unwrap(), "kept");
    assert!(!Path::new("plot.svg").exists());
}

#[test]
#[cfg(target_os = "linux")]
fn more_memory_than_any_machine_has_is_refused_at_once() {
    for more in [&[][..], &["--method", "full"], &["--recompute", "layer"]] {
        let flags = ["bench", "--config", "llama-3.2-1b", "--examples", "130", "--tokens", "120000"];
        let words = ["saved activations", "available", "--recompute layer"];
        refused("memory", &run(flags.iter().chain(more).copied()), 6, &words);
    }
}
