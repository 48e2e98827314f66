//! Training weights: gradients and steps against PyTorch, models written back, runs through the program.

mod common;

use common::bench::{Bench, letters, refused, run, text};
use common::{Golden, close, close_absolute, golden, golden_names};
use serde_json::{Value, json};
use softprompt::optim::{AdamWConfig, OptimizerConfig, WeightOptimizer};
use softprompt::weights::Parameter;
use softprompt::{Batch, DType, Device, Model, ModelOptions};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;

fn open(path: &Path, dtype: DType, trainable: bool) -> Model {
    let device = Device::cpu(Some(2)).unwrap();
    Model::open(path, &device, ModelOptions { dtype, trainable, ..ModelOptions::default() }).unwrap()
}

/// The golden case `main`, every token but the first a label.
fn batch(folder: &Path) -> Batch {
    let file = Golden::read(&folder.join("golden.safetensors"));
    let mut batch = Batch::new();
    for (input, target) in common::causal_rows(&file, "main") {
        let ids = [input, target].concat();
        batch.push(&ids[..1], &ids[1..]).unwrap();
    }
    batch
}

/// The part of the whole tensor in `file` that `parameter` is; older files of GPT-2 have names without a prefix.
fn part(file: &Golden, kind: &str, parameter: &Parameter) -> Vec<f64> {
    let place = parameter.place();
    let named = |name: &str| format!("{kind}.{name}");
    let name = [named(&place.name), named(&format!("transformer.{}", place.name))];
    let name = name.iter().find(|name| file.has(name)).unwrap_or_else(|| panic!("{kind}.{}", place.name));
    let (values, cols) = (file.numbers(name), *place.shape.last().unwrap());
    let row = |row: usize| &values[row * cols + place.cols.start..row * cols + place.cols.end];
    place.rows.clone().flat_map(row).copied().collect()
}

#[test]
fn gradients_and_steps_are_those_of_pytorch() {
    let (mut models, mut stepped) = (0, 0);
    for name in golden_names() {
        let folder = golden(&name);
        if !folder.join("weight_grads.safetensors").exists() {
            continue;
        }
        let file = Golden::read(&folder.join("weight_grads.safetensors"));
        let batch = batch(&folder);
        for dtype in [DType::F64, DType::F32] {
            let model = open(&folder, dtype, true);
            let found = model.loss_and_weight_grads(&batch).unwrap();
            let allowed = 4.0 * file.numbers("f32_error")[0];
            close(
                &format!("{name} loss"),
                &[found.loss.mean],
                &file.numbers("loss"),
                if dtype == DType::F64 { 1e-9 } else { 1e-6 },
            );
            for (parameter, grad) in model.parameters().iter().zip(&found.grads) {
                let what = format!("{name} {} {dtype}", parameter.place().name);
                let (got, want) = (grad.to_f64_vec().unwrap(), part(&file, "grad", parameter));
                match dtype {
                    DType::F64 => close_absolute(&what, &got, &want, 1e-10),
                    _ => close_absolute(&what, &got, &want, allowed),
                }
            }
            let named =
                |name: &str| file.has(&format!("after3.{name}")) || file.has(&format!("after3.transformer.{name}"));
            if dtype == DType::F64 && named(&model.parameters()[0].place().name) {
                let adamw = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
                let mut optimizer = WeightOptimizer::new(&OptimizerConfig::AdamW(adamw), model.parameters()).unwrap();
                for _ in 0..3 {
                    let grads = model.loss_and_weight_grads(&batch).unwrap().grads;
                    optimizer.step(grads, 0.01, 1.0).unwrap();
                }
                for parameter in model.parameters() {
                    let what = format!("{name} {} after 3 steps", parameter.place().name);
                    // A gradient that is 0 but for rounding has a step of any size: a key's bias, for one.
                    if parameter.place().name.contains("k_proj.bias") || parameter.place().name.contains("c_attn.bias")
                    {
                        continue;
                    }
                    let got = parameter.value().to_f64_vec().unwrap();
                    close_absolute(&what, &got, &part(&file, "after3", parameter), 1e-9);
                }
                stepped += 1;
            }
        }
        models += 1;
    }
    assert!(models >= 13 && stepped >= 2, "golden files are missing: {models} models, {stepped} stepped");
}

#[test]
fn a_model_written_back_is_the_model() {
    for name in golden_names() {
        let folder = golden(&name);
        let dir = tempfile::tempdir().unwrap();
        let batch = batch(&folder);
        let loss = |path: &Path| {
            let model = open(path, DType::F64, false);
            model.loss(&model.prompt_from(0, &[]).unwrap(), &batch).unwrap().mean
        };
        let model = open(&folder, DType::F32, true);
        let to = dir.path().join("written");
        model.save_pretrained(&to).unwrap();
        assert_eq!(loss(&to), loss(&folder), "{name}");
        // Once more, over itself, and from itself.
        open(&to, DType::F32, true).save_pretrained(&to).unwrap();
        assert_eq!(loss(&to), loss(&folder), "{name}");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        let frozen = open(&folder, DType::F32, false).save_pretrained(&to).unwrap_err();
        assert!(frozen.to_string().contains("opened as trainable"), "{frozen}");
    }
}

#[test]
fn a_gguf_file_is_written_back_under_hugging_faces_names_and_in_its_order() {
    for name in ["llama"] {
        let (folder, dir) = (golden(name), tempfile::tempdir().unwrap());
        let (file, to) = (dir.path().join("model.gguf"), dir.path().join("written"));
        common::gguf::write(&folder, &file);
        let model = open(&file, DType::F32, true);
        model.save_pretrained(&to).unwrap();
        let (written, want) =
            (Golden::read(&to.join("model.safetensors")), Golden::read(&folder.join("model.safetensors")));
        let sorted = |file: &Golden| file.names().into_iter().collect::<BTreeSet<_>>();
        assert_eq!(sorted(&written), sorted(&want));
        for tensor in want.names() {
            assert_eq!(written.numbers(&tensor), want.numbers(&tensor), "{name} {tensor}");
        }
        let loss = |path: &Path| {
            let model = open(path, DType::F64, false);
            model.loss(&model.prompt_from(0, &[]).unwrap(), &batch(&folder)).unwrap().mean
        };
        close(name, &[loss(&file), loss(&to)], &[loss(&folder); 2], 1e-7);
        // Through a checkpoint, and back into the file's own order.
        let rows = dir.path().join("rows.jsonl");
        let row = json!({"input_ids": [1, 2, 3], "target_ids": [4]});
        fs::write(&rows, format!("{row}\n{row}\n")).unwrap();
        let go = |out: &str, more: &[&str]| {
            let (model, rows, out) = (file.to_str().unwrap(), rows.to_str().unwrap(), dir.path().join(out));
            let mut flags =
                vec!["train", "--json", "--quiet", "--method", "full", "--model", model, "--train-file", rows];
            flags.extend(["--output-dir", out.to_str().unwrap()]);
            flags.extend(more);
            result(&run(flags))["model_sha256"].clone()
        };
        let whole = go("whole", &["--max-steps", "3"]);
        go("resumed", &["--max-steps", "1"]);
        assert_eq!(go("resumed", &["--max-steps", "3", "--resume", "true"]), whole);
    }
}

/// Runs `train` on the workplace's model.
fn train(bench: &Bench, out: &str, more: &[&str]) -> Output {
    let (model, out) = (bench.at("model"), bench.at(out));
    let mut flags = vec!["train", "--json", "--quiet", "--model", &model, "--output-dir", &out];
    flags.extend(["--per-device-train-batch-size", "2", "--learning-rate", "0.01"]);
    flags.extend(more);
    run(flags)
}

fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_full_run_gives_the_same_bits_for_any_threads_policy_and_after_a_resume() {
    let bench = Bench::new();
    let rows = bench.at("rows.jsonl");
    let flags = |more: &[&'static str]| {
        let mut flags = vec!["--method".to_string(), "full".into(), "--train-file".into(), rows.clone()];
        flags.extend(["--eval-file".into(), rows.clone(), "--eval-steps".into(), "2".into()]);
        flags.extend(more.iter().map(|flag| flag.to_string()));
        flags
    };
    let go = |out: &str, more: &[&'static str]| {
        let flags = flags(more);
        result(&train(&bench, out, &flags.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    let whole = go("whole", &["--max-steps", "6"]);
    assert_eq!(whole["best_model"], bench.at("whole/best"));
    for (out, more) in [
        ("one", ["--threads", "1"]),
        ("four", ["--threads", "4"]),
        ("mlp", ["--recompute", "mlp"]),
        ("layer", ["--recompute", "layer"]),
    ] {
        let found = go(out, &[&["--max-steps", "6"], &more[..]].concat());
        assert_eq!((&found["model_sha256"], &found["best"]), (&whole["model_sha256"], &whole["best"]), "{out}");
    }
    go("resumed", &["--max-steps", "3"]);
    let found = go("resumed", &["--max-steps", "6", "--resume", "true"]);
    assert_eq!((&found["model_sha256"], &found["best"]), (&whole["model_sha256"], &whole["best"]));

    let adafactor = |out: &str, more: &[&'static str]| go(out, &[&["--optim", "adafactor"], more].concat());
    let scaled = adafactor("scaled", &["--max-steps", "6", "--threads", "1"]);
    let plain = adafactor("plain", &["--max-steps", "6", "--adafactor-scale-parameter", "false"]);
    assert_ne!(scaled["model_sha256"], plain["model_sha256"]);
    adafactor("stopped", &["--max-steps", "2", "--threads", "3"]);
    let found = adafactor("stopped", &["--max-steps", "6", "--resume", "true"]);
    assert_eq!(found["model_sha256"], scaled["model_sha256"]);

    // What was learned is in the model that was written, and its last checkpoint is a model too.
    let (before, after) = (bench.at("model"), bench.at("whole/final"));
    let loss =
        |model: &str| result(&run(["eval", "--json", "--model", model, "--data", &rows]))["loss"].as_f64().unwrap();
    for after in [&after, &bench.at("scaled/final")] {
        assert!(loss(after) < 0.8 * loss(&before), "{after}: {} to {}", loss(&before), loss(after));
    }
    assert_eq!(loss(&bench.at("whole/checkpoint-6")), loss(&after));
    let evaluated = whole["best"]["value"].as_f64().unwrap();
    assert!((loss(&bench.at("whole/best")) - evaluated).abs() < 1e-6, "{evaluated}");
    let inspected = result(&run(["inspect", "--json", &bench.at("whole/checkpoint-6")]));
    assert_eq!((&inspected["step"], &inspected["prompt"]), (&json!(6), &Value::Null));

    // A damaged checkpoint is refused, and so is one of another kind.
    let file = bench.path("whole/checkpoint-6/optimizer.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let more = flags(&["--max-steps", "7", "--resume", "true"]);
    let again = train(&bench, "whole", &more.iter().map(String::as_str).collect::<Vec<_>>());
    refused("a damaged checkpoint", &again, 4, &["optimizer.safetensors", "SHA-256"]);
}

#[test]
fn a_run_recomputes_as_little_as_fits_or_is_refused_beforehand() {
    let bench = Bench::new();
    let rows = bench.at("rows.jsonl");
    let go = |out: &str, more: &[&str]| {
        let flags = [&["--train-file", &rows, "--max-steps", "1", "--num-virtual-tokens", "3"], more].concat();
        train(&bench, out, &flags)
    };
    let whole = result(&go("whole", &[]));
    let fits = result(&go("fits", &["--recompute", "auto", "--memory-limit", "1GiB"]));
    assert_eq!((&fits["prompt_sha256"], &fits["peak_bytes"]), (&whole["prompt_sha256"], &whole["peak_bytes"]));
    let limit = "200000";
    refused(
        "too little",
        &go("little", &["--memory-limit", limit]),
        3,
        &["memory_limit", "a batch of", "--recompute auto"],
    );
    refused(
        "nothing",
        &go("nothing", &["--recompute", "auto", "--memory-limit", "1000"]),
        3,
        &["not even one example"],
    );
    refused("no limit", &go("no", &["--recompute", "auto"]), 3, &["memory_limit"]);

    // Adafactor has one moment of matrices as small as these, AdamW two: between their peaks is a limit that one fits into.
    let weights = |out: &str, more: &[&str]| {
        train(&bench, out, &[&["--method", "full", "--train-file", &rows, "--max-steps", "1"], more].concat())
    };
    let peak = |output: &Output| result(output)["peak_bytes"].as_u64().unwrap();
    let adafactor = ["--optim", "adafactor"];
    let between = (peak(&weights("two", &[])) + peak(&weights("one", &adafactor))) / 2;
    let limit = ["--memory-limit", &between.to_string()];
    refused("two moments", &weights("refused", &limit), 3, &["memory_limit"]);
    result(&weights("fits-one", &[&limit[..], &adafactor].concat()));
    refused("no size", &go("no", &["--memory-limit", "much"]), 3, &["8GiB"]);
}

#[test]
fn a_model_is_pretrained_from_nothing_on_texts() {
    let bench = Bench::new();
    bench.write("model/tokenizer.json", letters().1);
    fs::remove_file(bench.path("model/model.safetensors")).unwrap();
    let line = |text: &str| format!("{}\n", json!({"text": text}));
    let texts = ["one two three", "two three four", "three one two"].map(line).concat().repeat(4);
    bench.write("texts.jsonl", &texts);
    let (data, model) = (bench.at("texts.jsonl"), bench.at("model"));
    let more = ["--method", "pretrain", "--init-weights", "3", "--train-file", &data, "--max-length", "16"];
    let first = result(&train(&bench, "first", &[&more[..], &["--max-steps", "1"]].concat()));
    let last = result(&train(&bench, "last", &[&more[..], &["--max-steps", "60"]].concat()));
    let (first_loss, last_loss) = (first["loss"].as_f64().unwrap(), last["loss"].as_f64().unwrap());
    // Fresh weights know nothing: the loss begins at that of a uniform guess.
    let vocabulary: Value = serde_json::from_slice(&fs::read(bench.path("model/config.json")).unwrap()).unwrap();
    let uniform = vocabulary["vocab_size"].as_f64().unwrap().ln();
    assert!((first_loss - uniform).abs() < 0.5, "{first_loss}, {uniform}");
    assert!(last_loss < 0.5 * first_loss, "{first_loss} to {last_loss}");
    let again = result(&train(&bench, "again", &[&more[..], &["--max-steps", "60", "--threads", "1"]].concat()));
    assert_eq!(again["model_sha256"], last["model_sha256"]);
    // The tokenizer has come along, so that the model can be used as it is.
    let written =
        run(["generate", "--json", "--model", &bench.at("last/final"), "--max-new-tokens", "5", "--text", "one t"]);
    assert!(written.status.success(), "{}", text(&written.stderr));

    for (what, flags, code, words) in [
        ("no weights", vec!["--method", "full", "--train-file", &data], 4, vec!["model.safetensors"]),
        (
            "a prompt's flag",
            [&more[..], &["--num-virtual-tokens", "5"]].concat(),
            3,
            vec!["num-virtual-tokens", "method"],
        ),
        ("a prompt from nothing", vec!["--init-weights", "1", "--train-file", &data], 3, vec!["init-weights"]),
    ] {
        refused(what, &train(&bench, "refused", &flags), code, &words);
    }
    assert!(!bench.path("refused").exists(), "{model}");
}

#[test]
fn an_encoder_decoder_is_pretrained_by_span_corruption_and_then_adapted() {
    let bench = Bench::new();
    fs::remove_file(bench.path("model/model.safetensors")).unwrap();
    bench.write("model/config.json", fs::read(golden("t5_v11").join("config.json")).unwrap());
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        bench.write(&format!("model/{file}"), fs::read(golden("t5_tokenizer").join(file)).unwrap());
    }
    let line = |text: &str| format!("{}\n", json!({"text": text}));
    let texts = ["the cat sat on a mat", "the dog ran to the old barn", "a cat and a dog sat on the mat"];
    bench.write("texts.jsonl", texts.map(line).concat().repeat(3));
    bench.write("held.jsonl", line("the old cat ran to the barn and sat on a mat"));
    let (data, held) = (bench.at("texts.jsonl"), bench.at("held.jsonl"));
    let fresh = ["--method", "pretrain", "--init-weights", "3", "--train-file", &data, "--max-length", "24"];
    let spans = [&fresh[..], &["--objective", "span_corruption"]].concat();
    let go = |out: &str, steps: &str, more: &[&str]| {
        let found = result(&train(&bench, out, &[&spans[..], &["--max-steps", steps], more].concat()));
        (found["loss"].as_f64().unwrap(), found["model_sha256"].clone())
    };
    let (first, last) = (go("first", "1", &[]), go("last", "60", &["--corruptions", "2"]));
    // Fresh weights know nothing, and their logits have deviation 1: the loss begins at about ½ above that of a uniform
    // guess among 48 tokens.
    assert!((first.0 - 0.5 - 48f64.ln()).abs() < 0.5, "{first:?}");
    assert!(last.0 < 0.8 * first.0, "{first:?} to {last:?}");
    assert_eq!(go("again", "60", &["--corruptions", "2", "--threads", "1"]), last);
    assert_ne!(go("others", "60", &["--corruptions", "3"]).1, last.1);
    go("noisy", "2", &["--noise-density", "0.5", "--mean-noise-span-length", "2", "--max-target-length", "20"]);

    // The model that was written is adapted to go on with a text, and is measured on texts that it has not seen.
    let (spans_model, out) = (bench.at("last/final"), bench.at("adapted"));
    let mut flags = vec!["train", "--json", "--quiet", "--model", &spans_model, "--output-dir", &out];
    flags.extend(["--method", "pretrain", "--objective", "prefix_lm", "--prefix-cut", "middle", "--max-length", "16"]);
    flags.extend(["--train-file", &data, "--eval-file", &held, "--max-steps", "4", "--eval-steps", "2"]);
    let adapted = result(&run(flags));
    assert_eq!(adapted["best"]["metric"], "loss");
    let model = bench.at("adapted/final");
    let written = run(["generate", "--json", "--model", &model, "--max-new-tokens", "5", "--text", "the cat"]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    // Its saved configuration gives the same run.
    let config = bench.at("adapted/run.toml");
    let again = bench.at("adapted-again");
    let again = result(&run(["train", "--json", "--quiet", "--config", &config, "--output-dir", &again]));
    assert_eq!(again["model_sha256"], adapted["model_sha256"]);

    let refuse = |what: &str, flags: &[&str], words: &[&str]| {
        refused(what, &train(&bench, "refused", &[&fresh[..], flags].concat()), 3, words);
    };
    refuse("next tokens", &[], &["objective", "span_corruption or prefix_lm", "encoder–decoder", "next_token"]);
    let long = ["--objective", "span_corruption", "--noise-density", "0.5", "--mean-noise-span-length", "1"];
    refuse("too few sentinels", &long, &["10 spans, the sentinels", "pieces of 11"]);
    refuse("no room", &["--objective", "span_corruption", "--max-target-length", "2"], &["max_target_length"]);
    bench.model(|_| ());
    bench.write("model/tokenizer.json", letters().1);
    refuse("a causal model", &["--objective", "span_corruption"], &["objective", "next_token", "a causal model"]);
    assert!(!bench.path("refused").exists());
}
