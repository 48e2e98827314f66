//! `--device cuda` through the program, on the stand-in driver: training, evaluation, and what goes wrong with a GPU.

mod common;
#[path = "common/cuda.rs"]
mod gpu;

use common::{Golden, causal_rows, close_absolute, golden, program, t5};
use gpu::same_driver;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn softprompt(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program());
    command.env_remove("SOFTPROMPT_CONFIG").args(arguments);
    same_driver(&mut command).envs(variables.iter().copied()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write_rows(path: &Path, name: &str) {
    let file = Golden::read(&golden(name).join("golden.safetensors"));
    let rows = if name.starts_with("t5") { t5::rows(&file, "main") } else { causal_rows(&file, "main") };
    let lines = rows.iter().map(|(input, target)| format!("{{\"input_ids\":{input:?},\"target_ids\":{target:?}}}\n"));
    fs::write(path, lines.collect::<String>()).unwrap();
}

fn train(dir: &Path, name: &str, device: &str, more: &[&str]) -> serde_json::Value {
    let at = |file: &str| dir.join(file).to_str().unwrap().to_string();
    let out = at(&format!("{name}-{device}-{}", more.len()));
    let model = golden(name).to_str().unwrap().to_string();
    let rows = at("rows.jsonl");
    let mut arguments = vec!["train", "--json", "--model", &model, "--train-file", &rows, "--output-dir", &out];
    arguments.extend(["--device", device, "--num-virtual-tokens", "6", "--per-device-train-batch-size", "3"]);
    arguments.extend(["--max-steps", "4", "--learning-rate", "0.05"]);
    arguments.extend(more);
    let output = softprompt(&arguments, &[]);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_on_a_gpu_is_the_cpus_up_to_rounding() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen2", "gpt2"] {
        write_rows(&dir.path().join("rows.jsonl"), name);
        let cpu = train(dir.path(), name, "cpu", &[]);
        let gpu = train(dir.path(), name, "cuda", &[]);
        let loss = |result: &serde_json::Value| result["loss"].as_f64().unwrap();
        close_absolute(name, &[loss(&gpu)], &[loss(&cpu)], 1e-3 * loss(&cpu));
        let adafactor = ["--optim", "adafactor", "--max-grad-norm", "0.5"];
        let (cpu, gpu) = (train(dir.path(), name, "cpu", &adafactor), train(dir.path(), name, "cuda", &adafactor));
        close_absolute(&format!("{name} adafactor"), &[loss(&gpu)], &[loss(&cpu)], 1e-3 * loss(&cpu));
        let bf16 = train(dir.path(), name, "cuda", &["--dtype", "bf16"]);
        close_absolute(&format!("{name} bf16"), &[loss(&bf16)], &[loss(&cpu)], 0.5 * loss(&cpu));
    }
}

#[test]
fn all_weights_are_trained_on_a_gpu_as_on_the_cpu_and_a_resumed_run_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama_untied", "gpt2", "t5_v10", "t5_v11"] {
        let rows = dir.path().join("rows.jsonl");
        write_rows(&rows, name);
        let (model, rows) = (golden(name).to_str().unwrap().to_string(), rows.to_str().unwrap());
        let go = |out: &str, more: &[&str]| -> serde_json::Value {
            let out = dir.path().join(format!("{name}-{out}"));
            let mut flags = vec!["train", "--json", "--method", "full", "--model", &model, "--train-file", rows];
            flags.extend(["--output-dir", out.to_str().unwrap(), "--per-device-train-batch-size", "3"]);
            flags.extend(["--learning-rate", "0.001", "--weight-decay", "0.1", "--lr-scheduler-type", "constant"]);
            flags.extend(more);
            let output = softprompt(&flags, &[]);
            assert!(output.status.success(), "{flags:?}: {}", said(&output));
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let loss = |result: &serde_json::Value| result["loss"].as_f64().unwrap();
        let cpu = go("cpu", &["--max-steps", "4"]);
        let gpu = go("gpu", &["--device", "cuda", "--max-steps", "4", "--recompute", "layer"]);
        close_absolute(name, &[loss(&gpu)], &[loss(&cpu)], 1e-4 * loss(&cpu));
        let bf16 = ["--device", "cuda", "--dtype", "bf16", "--gradient-accumulation-steps", "2"];
        let whole = go("bf16", &[&bf16[..], &["--max-steps", "3"]].concat());
        go("resumed", &[&bf16[..], &["--max-steps", "2"]].concat());
        let resumed = go("resumed", &[&bf16[..], &["--max-steps", "3", "--resume", "true"]].concat());
        assert_eq!(resumed["model_sha256"], whole["model_sha256"], "{name}");
        assert!(whole["model_sha256"].is_string() && loss(&whole).is_finite());
    }
}

/// `prompt` `[rows, d]` as f64 safetensors.
#[test]
fn an_encoder_decoder_is_pretrained_on_a_gpu_as_on_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    fs::create_dir(at("model")).unwrap();
    for (from, file) in
        [("t5_v11", "config.json"), ("t5_tokenizer", "tokenizer.json"), ("t5_tokenizer", "tokenizer_config.json")]
    {
        fs::copy(golden(from).join(file), dir.path().join("model").join(file)).unwrap();
    }
    let texts = ["the cat sat on a mat", "the dog ran to the old barn", "a cat and a dog sat on the mat"];
    let line = |text: &str| format!("{{\"text\":\"{text}\"}}\n");
    fs::write(at("texts.jsonl"), texts.map(line).concat().repeat(3)).unwrap();
    let go = |out: &str, more: &[&str]| -> serde_json::Value {
        let (model, texts, out) = (at("model"), at("texts.jsonl"), at(out));
        let mut flags = vec!["train", "--json", "--quiet", "--method", "pretrain", "--objective", "span_corruption"];
        flags.extend(["--init-weights", "3", "--model", &model, "--train-file", &texts, "--output-dir", &out]);
        flags.extend(["--max-length", "24", "--max-steps", "6"]);
        flags.extend(more);
        let output = softprompt(&flags, &[]);
        assert!(output.status.success(), "{flags:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let loss = |result: &serde_json::Value| result["loss"].as_f64().unwrap();
    let (cpu, gpu) = (go("cpu", &[]), go("gpu", &["--device", "cuda"]));
    close_absolute("f32", &[loss(&gpu)], &[loss(&cpu)], 1e-4 * loss(&cpu));
    let bf16 = ["--device", "cuda", "--dtype", "bf16"];
    let narrow = go("bf16", &bf16);
    close_absolute("bf16", &[loss(&narrow)], &[loss(&cpu)], 0.02 * loss(&cpu));
    assert_eq!(go("again", &bf16)["model_sha256"], narrow["model_sha256"]);
}

fn write_prompt(path: &Path, shape: &[usize], values: &[f64]) {
    let header =
        format!("{{\"prompt\":{{\"dtype\":\"F64\",\"shape\":{shape:?},\"data_offsets\":[0,{}]}}}}", values.len() * 8);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    fs::write(path, bytes).unwrap();
}

#[test]
fn five_adamw_steps_through_train_end_where_pefts_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = |file: &str| dir.path().join(file).to_str().unwrap().to_string();
    for name in ["llama", "llama_untied", "qwen2", "gpt2"] {
        let file = Golden::read(&golden(name).join("golden.safetensors"));
        let shape = file.shape("main.prompt");
        write_rows(&dir.path().join("rows.jsonl"), name);
        write_prompt(&dir.path().join("start.safetensors"), &shape, &file.numbers("main.prompt"));
        let (model, out, examples) = (golden(name), at(&format!("{name}-golden")), causal_rows(&file, "main").len());
        let (virtual_tokens, batch) = (shape[0].to_string(), examples.to_string());
        let output = softprompt(
            &[
                "train",
                "--json",
                "--device",
                "cuda",
                "--model",
                model.to_str().unwrap(),
                "--train-file",
                &at("rows.jsonl"),
                "--output-dir",
                &out,
                "--prompt-tuning-init",
                "file",
                "--prompt-init-file",
                &at("start.safetensors"),
                "--num-virtual-tokens",
                &virtual_tokens,
                "--per-device-train-batch-size",
                &batch,
                "--max-steps",
                "5",
                "--optim",
                "adamw",
                "--learning-rate",
                "0.05",
                "--weight-decay",
                "0.01",
                "--lr-scheduler-type",
                "constant",
                "--warmup-steps",
                "0",
                "--max-grad-norm",
                "0",
            ],
            &[],
        );
        assert!(output.status.success(), "{name}: {}", said(&output));
        let found = Golden::read(&Path::new(&out).join("final/prompt.safetensors"));
        let found = found.numbers(&found.names()[0]);
        let squared = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let want = file.numbers("main.prompt_after5_f64");
        // A first step of Adam goes by the sign of a gradient, so one near 0 may go the other way: the norm counts.
        let size = squared(&want, &vec![0.0; want.len()]);
        let (ours, pefts) = (squared(&found, &want), squared(&file.numbers("main.prompt_after5_f32"), &want));
        assert!(
            ours <= (16.0 * pefts).max(1e-12 * size),
            "{name}: off by {ours:e}, PEFT's float32 by {pefts:e} of {size:e}"
        );
    }
}

#[test]
fn a_gpu_that_cannot_be_had_is_an_error_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    write_rows(&dir.path().join("rows.jsonl"), "llama");
    let model = golden("llama").to_str().unwrap().to_string();
    let data = dir.path().join("rows.jsonl").to_str().unwrap().to_string();
    let refused = |device: &str, dtype: &str, variables: &[(&str, &str)], code: i32, words: &[&str]| {
        let arguments = ["eval", "--model", &model, "--data", &data, "--device", device, "--dtype", dtype];
        let output = softprompt(&arguments, variables);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{device} {variables:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{word:?} is not in: {said}"));
    };
    refused("cuda:7", "f32", &[], 6, &["a GPU of number 7", "hint"]);
    refused("gpu", "f32", &[], 3, &["cpu, cuda or cuda:N"]);
    refused("cuda", "f64", &[], 3, &["dtype", "f32 or bf16"]);
    refused("cpu", "bf16", &[], 3, &["dtype", "f32 or f64"]);
    if !gpu::is_real() {
        refused("cuda", "f32", &[("LD_LIBRARY_PATH", "")], 6, &["libcuda", "--device cpu"]);
        refused("cuda", "f32", &[("PTXSIM_MEMORY", "20000")], 6, &["memory"]);
    }
}

#[test]
fn a_step_on_a_gpu_is_timed_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    write_rows(&dir.path().join("rows.jsonl"), "llama");
    let (model, rows) = (golden("llama"), dir.path().join("rows.jsonl"));
    let bench = |device: &str| {
        let flags = ["bench", "--json", model.to_str().unwrap(), "--data", rows.to_str().unwrap(), "--device", device];
        let output = softprompt(&[&flags[..], &["--num-virtual-tokens", "6", "--steps", "2"]].concat(), &[]);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let (cpu, gpu) = (bench("cpu"), bench("cuda"));
    let loss = |found: &serde_json::Value| found["loss"].as_f64().unwrap();
    close_absolute("loss", &[loss(&gpu)], &[loss(&cpu)], 1e-3 * loss(&cpu));
    for key in ["phases", "gemm_gflops_per_second", "gemm_ratio"] {
        assert!(gpu[key].is_null() && !cpu[key].is_null(), "{key}: {gpu}");
    }
    assert_eq!((gpu["seconds"].as_array().unwrap().len(), &gpu["flops"]), (2, &cpu["flops"]));
    assert!(gpu["peak_bytes"]["weights"].as_u64().unwrap() > 0 && cpu["account"].is_null());
    for account in gpu["account"].as_array().unwrap() {
        assert!(account["least_seconds"].as_f64().unwrap() > 0.0 && account["launches"].as_u64().unwrap() > 0);
    }
}
