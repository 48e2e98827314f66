//! `softprompt profile`: what it measures adds up and is near what it predicts, what it predicts follows from a config.json
//! alone, and what it cannot do it refuses before it starts.

mod common;

use common::bench::{Bench, refused, run, text};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn profile(arguments: &[&str]) -> Value {
    let output = run(["profile", "--json", "--quiet", "--threads", "2"].iter().chain(arguments).copied());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    assert!(output.stderr.is_empty(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The sum over the kinds of memory is the whole.
#[track_caller]
fn assert_adds_up(found: &Value) {
    let kinds = found["peak_bytes"].as_object().unwrap();
    assert_eq!(kinds.len(), 5, "{found}");
    assert_eq!(kinds.values().map(number).sum::<f64>(), number(&found["peak_total_bytes"]), "{found}");
}

fn llama_70b() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192,
        "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
    })
}

fn t5_xxl() -> Value {
    json!({
        "model_type": "t5", "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24,
        "num_decoder_layers": 24, "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": false, "is_encoder_decoder": true,
    })
}

#[test]
fn every_method_and_policy_is_measured_beside_its_prediction() {
    let place = Bench::new();
    let model = place.at("model");
    let sizes = ["--num-virtual-tokens", "12", "--examples", "16", "--tokens", "20"];
    let found = profile(&[&[model.as_str()][..], &sizes].concat());
    let methods = found["methods"].as_array().unwrap();
    let names: Vec<_> = methods.iter().map(|row| (row["method"].as_str(), row["recompute"].as_str())).collect();
    let want = [("prompt", "none"), ("prompt", "mlp"), ("prompt", "layer"), ("full", "none"), ("full", "layer")];
    assert_eq!(names, want.map(|(method, policy)| (Some(method), Some(policy))));
    for row in methods {
        assert!(row["not_measured"].is_null(), "{row}");
        for side in ["measured", "predicted"] {
            assert_adds_up(&row[side]);
        }
        let total = |side: &str| number(&row[side]["peak_total_bytes"]);
        let error = 100.0 * (total("predicted") / total("measured") - 1.0);
        assert!((error - number(&row["error_percent"])).abs() < 1e-9, "{row}");
        assert!(error.abs() < 10.0, "{row}");
        assert!(row["measured"]["peak_rss_bytes"].is_null() || number(&row["measured"]["peak_rss_bytes"]) > 0.0);
    }
    let total = |row: usize| number(&methods[row]["measured"]["peak_total_bytes"]);
    // The model is too small for a policy to matter: tests/profile.rs has larger ones.
    assert!(total(3) > total(0) && total(4) > total(2), "{found}");
    let only = profile(&[&[model.as_str(), "--method", "full"][..], &sizes].concat());
    assert_eq!(only["methods"].as_array().unwrap().len(), 2);
}

#[test]
fn a_prediction_needs_no_weights_and_tells_what_fits() {
    let place = Bench::new();
    place.write("llama/config.json", llama_70b().to_string());
    place.write("t5/config.json", t5_xxl().to_string());
    let large = profile(&[&place.at("llama"), "--predict", "--device-memory", "80GiB,160GiB,2TB"]);
    assert_eq!(large["parameters"], 70_553_706_496u64);
    assert_eq!(
        (&large["dtype"], &large["device"], &large["family"]),
        (&json!("bf16"), &json!("cuda"), &json!("llama"))
    );
    for row in large["methods"].as_array().unwrap() {
        assert_adds_up(&row["predicted"]);
        assert_eq!(row["fits"][0]["largest_batch"], Value::Null, "{row}");
        assert_eq!(row["fits"][1]["device_memory_bytes"], 160u64 << 30);
        assert!(number(&row["fits"][2]["largest_batch"]) >= 1.0, "{row}");
        assert_eq!(row["fits"][1]["largest_batch"].is_null(), row["method"] == "full", "{row}");
    }
    let t5 = profile(&[&place.at("t5/config.json"), "--predict", "--method", "prompt", "--examples", "16"]);
    assert_eq!((&t5["parameters"], &t5["family"]), (&json!(11_135_332_352u64), &json!("t5")));
    let fits = |row: usize| -> Vec<f64> {
        let of = |size: usize| t5["methods"][row]["fits"][size]["largest_batch"].as_f64().unwrap_or(0.0);
        (0..3).map(of).collect()
    };
    for (row, less) in [(1, 0), (2, 1)] {
        assert!(fits(row).iter().zip(fits(less)).all(|(more, less)| *more >= less), "{t5}");
    }
    assert!(fits(0)[2] > fits(0)[1] && fits(0)[1] > fits(0)[0] && fits(0)[0] >= 1.0, "{t5}");
    let shape = profile(&["--config", "gpt2", "--predict", "--device", "cpu"]);
    assert_eq!((&shape["parameters"], &shape["dtype"]), (&json!(124_439_808), &json!("f32")));
}

#[test]
fn reports_are_pages_and_pictures() {
    let place = Bench::new();
    place.write("t5/config.json", t5_xxl().to_string());
    let config = place.at("t5");
    for (name, starts, ends) in [("r.html", "<!doctype html>", "</html>\n"), ("r.svg", "<svg ", "</svg>\n")] {
        let path = place.at(name);
        let flags = ["profile", &config, "--predict", "--report", &path];
        assert!(run(flags).status.success());
        let written = fs::read_to_string(&path).unwrap();
        assert!(written.starts_with(starts) && written.ends_with(ends), "{name}: {written}");
        assert!(written.contains("prompt, layer") && written.contains("saved") && !written.contains("<script"));
        refused("exists", &run(flags), 2, &[name, "--force"]);
        assert!(run(flags.into_iter().chain(["--force"])).status.success());
    }
    let model = place.at("model");
    let sizes = ["--examples", "2", "--tokens", "8", "--num-virtual-tokens", "4", "--report"];
    let path = place.at("measured.html");
    let output = run(["profile", &model].into_iter().chain(sizes).chain([path.as_str()]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(written.matches("<tr>").count(), 6, "{written}");
    assert!(written.contains("predicted") && text(&output.stdout).contains("predicted"));
}

#[test]
fn what_cannot_be_done_is_refused_before_it_is_begun() {
    let place = Bench::new();
    let model = place.at("model");
    let refuse = |flags: &[&str], code: i32, words: &[&str]| {
        let output = run(["profile"].iter().chain(flags).copied());
        refused(&format!("{flags:?}"), &output, code, words);
        assert!(output.stdout.is_empty(), "{flags:?}");
    };
    refuse(&[], 2, &["MODEL or --config SHAPE"]);
    refuse(&[&model, "--report", "r.pdf"], 2, &[".html or .svg", "r.pdf"]);
    refuse(&[&model, "--report", &place.at("rows.jsonl/r.svg")], 7, &["rows.jsonl"]);
    refuse(&[&model, "--device-memory", "24GiB"], 2, &["--predict"]);
    for size in ["24 gigs", "", "-1GiB", "0"] {
        refuse(&[&model, "--predict", &format!("--device-memory={size}")], 2, &["--device-memory"]);
    }
    refuse(&["gpt2"], 4, &["--config gpt2"]);
    refuse(&["gpt2", "--predict"], 4, &["--config gpt2"]);
    refuse(&[&place.at("nothing/config.json"), "--predict"], 4, &["nothing"]);
    refuse(&["--config", "gpt2", "--predict", "--tokens", "1000"], 3, &["1024 positions"]);
    refuse(&["--config", "gpt2", "--tokens", "1000"], 3, &["1024 positions"]);
    refuse(&["--config", "gpt2", "--predict", "--device", "tpu"], 3, &["tpu"]);
    refuse(&["--config", "gpt2", "--predict", "--device", "cpu", "--dtype", "bf16"], 3, &["bf16"]);
    refuse(&["--config", "gpt2", "--predict", "--dtype", "f64"], 3, &["f64"]);
    refuse(&[&model, "--dtype", "bf16"], 3, &["bf16"]);
    let broken: &[(&str, &str)] = &[
        ("", "JSON"),
        ("{\"model_type\": \"t5\", \"num_layers\": 1e99}", "num_layers"),
        ("{\"model_type\": \"bert\"}", "bert"),
        ("[]", "object"),
    ];
    for (content, word) in broken {
        place.write("broken/config.json", content);
        refuse(&[&place.at("broken"), "--predict"], 4, &[word]);
    }
    // Sizes that no machine has are numbers like others where they are only predicted.
    let mut huge = llama_70b();
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"] {
        huge[key] = json!(1 << 30);
    }
    place.write("huge/config.json", huge.to_string());
    let output = run(["profile", &place.at("huge"), "--predict", "--json"]);
    assert!(matches!(output.status.code(), Some(0 | 4)), "{}", text(&output.stderr));
    assert!(!Path::new("r.pdf").exists());
}
