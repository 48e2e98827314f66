//! Bad input of every kind, given to the program: the right exit code, the place, a hint, no panic, nothing written.

mod common;

use common::bench::{Bench, raw, refused, run, tensor, text};
use common::{Golden, golden};
use serde_json::{Value, json};
use std::fs;

#[test]
fn hostile_safetensors_are_refused_as_model_and_as_prompt() {
    let bench = Bench::new();
    let good = fs::read(bench.path("model/model.safetensors")).unwrap();
    let length = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&good[8..8 + length]).unwrap();
    let data = &good[8 + length..];
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        raw(&header.to_string(), data)
    };
    let norm = "model.norm.weight";
    let one = json!({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]});
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("seven bytes", vec![0; 7]),
        ("truncated data", good[..good.len() - 1].to_vec()),
        ("truncated header", good[..8 + length / 2].to_vec()),
        ("bytes too many", [&good[..], &[0]].concat()),
        ("huge header", [&u64::MAX.to_le_bytes()[..], &good[8..]].concat()),
        ("header of 2^62", [&(1u64 << 62).to_le_bytes()[..], &good[8..]].concat()),
        ("no header", raw("", data)),
        ("header no JSON", raw("{\"a\": ", data)),
        ("header a list", raw("[1, 2]", data)),
        ("header nested deep", raw(&"[".repeat(100_000), data)),
        ("header with bytes that are not UTF-8", [&4u64.to_le_bytes()[..], b"{\"\xff\"", data].concat()),
        (
            "overlap",
            changed(&|h| h[norm]["data_offsets"] = h["model.layers.0.input_layernorm.weight"]["data_offsets"].clone()),
        ),
        ("offsets past the end", changed(&|h| h[norm]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 256]))),
        ("offsets reversed", changed(&|h| h[norm]["data_offsets"] = json!([8, 0]))),
        ("offsets near 2^64", changed(&|h| h[norm]["data_offsets"] = json!([u64::MAX - 1, u64::MAX]))),
        ("negative offsets", changed(&|h| h[norm]["data_offsets"] = json!([-4, 0]))),
        ("three offsets", changed(&|h| h[norm]["data_offsets"] = json!([0, 4, 8]))),
        ("shape overflowing", changed(&|h| h[norm]["shape"] = json!([1u64 << 62, 8]))),
        ("shape of a float", changed(&|h| h[norm]["shape"] = json!([64.0]))),
        ("shape not of the bytes", changed(&|h| h[norm]["shape"] = json!([63]))),
        ("unknown dtype", changed(&|h| h[norm]["dtype"] = json!("F33"))),
        ("integer dtype", changed(&|h| h[norm]["dtype"] = json!("I32"))),
        ("dtype no string", changed(&|h| h[norm]["dtype"] = json!(7))),
        ("entry no object", changed(&|h| h[norm] = json!(null))),
        ("metadata of numbers", changed(&|h| h["__metadata__"] = json!({"a": 1}))),
        ("duplicate key", raw(&format!("{{\"a\":{one},\"a\":{one}}}"), &[0; 4])),
        ("duplicate key with an escape", raw(&format!("{{\"a\":{one},\"\\u0061\":{one}}}"), &[0; 4])),
        ("a pickle", b"\x80\x04\x95rest".to_vec()),
        ("an archive", b"PK\x03\x04rest of it".to_vec()),
    ];
    for (what, bytes) in &cases {
        bench.write("model/model.safetensors", bytes);
        bench.refused(what, &[], 4, &["model.safetensors"]);
        let inspected = run(["inspect", &bench.at("model")]);
        assert!(matches!(inspected.status.code(), Some(0 | 4)), "{what}: {}", text(&inspected.stderr));
        assert!(!text(&inspected.stderr).contains("bug in"), "{what}");
    }
    bench.model(|_| ());
    for (what, bytes) in &cases {
        bench.write("bad.safetensors", bytes);
        bench.refused(what, &["--prompt", &bench.at("bad.safetensors")], 4, &["bad.safetensors"]);
        let output = run(["import", &bench.at("bad.safetensors"), "--out", &bench.at("imported.safetensors")]);
        refused(what, &output, 4, &["bad.safetensors"]);
        assert!(!bench.path("imported.safetensors").exists(), "{what}");
    }
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    let npy = |header: &str, data: &[u8]| {
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
    };
    let f32s = |count: usize, value: f32| value.to_le_bytes().repeat(count);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("another width", tensor("prompt", "F32", &[2, 8], &f32s(16, 0.5)), &["width 64", "width 8", "hint: "]),
        ("no rows", tensor("prompt", "F32", &[0, 64], &[]), &[]),
        ("one dimension", tensor("prompt", "F32", &[64], &f32s(64, 0.5)), &["two dimensions"]),
        ("three dimensions", tensor("prompt", "F32", &[1, 1, 64], &f32s(64, 0.5)), &["two dimensions"]),
        ("not a number", tensor("prompt", "F32", &[1, 64], &f32s(64, f32::NAN)), &["row 0, column 0", "hint: "]),
        ("infinite", tensor("prompt_embeds", "F32", &[1, 64], &f32s(64, f32::INFINITY)), &["finite"]),
        ("integers", tensor("prompt", "I32", &[1, 64], &f32s(64, 0.5)), &["F32"]),
        ("another name", tensor("embeds", "F32", &[1, 64], &f32s(64, 0.5)), &["prompt_embeds"]),
        ("more rows than positions", tensor("prompt", "F32", &[200, 64], &f32s(12_800, 0.5)), &["128"]),
        ("npy truncated", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 64), }", &[0; 9]), &["hint: "]),
        ("npy of objects", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 64), }", &[0; 64]), &["|O"]),
        ("npy without a header", npy("", &[]), &[]),
        (
            "npy too large",
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", &[]),
            &[],
        ),
    ];
    for (what, bytes, words) in cases {
        bench.write("bad", bytes);
        bench.refused(what, &["--prompt", &bench.at("bad")], 4, words);
    }
    bench.refused("missing", &["--prompt", &bench.at("none")], 4, &["none", "hint: "]);
    fs::create_dir(bench.path("folder")).unwrap();
    bench.refused("empty folder", &["--prompt", &bench.at("folder")], 4, &["folder"]);
    bench.write("folder/adapter_config.json", "{\"peft_type\": \"LORA\"}");
    bench.refused("another adapter", &["--prompt", &bench.at("folder")], 4, &["LORA", "PROMPT_TUNING"]);
    bench.write("folder/adapter_config.json", "{\"peft_type\":");
    bench.refused("broken adapter", &["--prompt", &bench.at("folder")], 4, &["adapter_config.json:1"]);
}

#[test]
fn values_too_large_for_the_type_end_as_divergence() {
    let bench = Bench::new();
    bench.write("large.safetensors", tensor("prompt", "F64", &[1, 64], &1e300f64.to_le_bytes().repeat(64)));
    bench.refused("f32", &["--prompt", &bench.at("large.safetensors")], 5, &["finite", "hint: "]);
}

#[test]
fn damaged_configurations_are_refused_by_name() {
    let bench = Bench::new();
    let cases: &[(&str, Value)] = &[
        ("model_type", json!("bert")),
        ("model_type", json!(7)),
        ("hidden_act", json!("swoosh")),
        ("hidden_act", json!(["silu"])),
        ("rope_parameters", json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0})),
        ("rope_parameters", json!({"rope_type": "dynamic", "factor": 4.0})),
        ("rope_parameters", json!({"rope_type": "linear", "factor": 0.0})),
        ("rope_parameters", json!({"rope_type": "linear"})),
        ("rope_parameters", json!([1])),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        ("rope_scaling", json!({"type": "dynamic", "factor": 4.0})),
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(3)),
        ("num_hidden_layers", json!(1u64 << 62)),
        ("num_hidden_layers", json!(1u64 << 30)),
        ("num_hidden_layers", json!(-1)),
        ("num_hidden_layers", json!(2.5)),
        ("num_hidden_layers", Value::Null),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(1u64 << 29)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("hidden_size", json!(63)),
        ("hidden_size", json!("64")),
        ("head_dim", json!(1)),
        ("head_dim", json!(1u64 << 30)),
        ("intermediate_size", json!(95)),
        ("vocab_size", json!(257)),
        ("vocab_size", json!(u64::MAX)),
        ("max_position_embeddings", json!(0)),
        ("rms_norm_eps", json!(-1.0)),
        ("rms_norm_eps", json!("small")),
        ("quantization_config", json!({"bits": 4})),
        ("partial_rotary_factor", json!(0.5)),
        ("attention_bias", json!("yes")),
        ("tie_word_embeddings", json!(1)),
        ("num_local_experts", json!(8)),
        ("layer_types", json!(["sliding_attention", "full_attention"])),
    ];
    for (key, value) in cases {
        bench.model(|config| config[*key] = value.clone());
        let said = bench.refused(&format!("{key} {value}"), &[], 4, &[]);
        // A size that only the weights contradict is told by the tensor.
        let names_it =
            said.contains("config.json") || said.contains("by the configuration") || said.contains(".weight");
        assert!(names_it, "{key} {value}: {said}");
    }
    for (what, content) in [("cut", "{"), ("list", "[]"), ("text", "no"), ("empty", ""), ("object", "{}")] {
        bench.write("model/config.json", content);
        bench.refused(what, &[], 4, &["config.json"]);
    }
    bench.write("model/config.json", "[".repeat(1 << 20));
    bench.refused("deep", &[], 4, &["config.json"]);
    fs::remove_file(bench.path("model/config.json")).unwrap();
    bench.refused("none", &[], 4, &["config.json", "hint: "]);
}

#[test]
fn sizes_of_gpt2_that_overflow_are_refused() {
    let bench = Bench::new();
    let config = fs::read_to_string(golden("gpt2").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config.as_object_mut().unwrap().remove("n_inner");
    config["n_embd"] = json!(1u64 << 62);
    bench.write("model/config.json", config.to_string());
    bench.refused("n_embd", &[], 4, &["model"]);
}

#[test]
fn positions_beyond_all_memory_are_a_matter_of_the_batch_only() {
    let bench = Bench::new();
    bench.model(|config| config["max_position_embeddings"] = json!(1u64 << 30));
    bench.accepted("positions", &[]);
}

#[test]
fn broken_tokenizers_are_refused() {
    let bench = Bench::new();
    bench.write("text.jsonl", "{\"input\": \"a b\", \"target\": \"c\"}\n");
    let data = bench.at("text.jsonl");
    bench.refused("no tokenizer", &["--data", &data], 4, &["text.jsonl:1", "hint: "]);
    let with = |part: &str, value: Value| {
        let mut whole = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, " ": 3}, "merges": []}});
        whole[part] = value;
        whole.to_string()
    };
    let model = |value: Value| with("model", value);
    let mut cases: Vec<(&str, String)> = vec![
        ("cut", "{\"version\":".into()),
        ("nothing", String::new()),
        ("list", "[]".into()),
        ("object", "{}".into()),
        ("deep", "[".repeat(1 << 20)),
        ("model type", model(json!({"type": "XYZ"}))),
        ("merge of no token", model(json!({"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}))),
        ("merge of one", model(json!({"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}))),
        ("unigram, unknown token out of range", model(json!({"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]]}))),
        ("unigram without unknown token", model(json!({"type": "Unigram", "unk_id": null, "vocab": [["x", 0.0]]}))),
        ("unigram empty", model(json!({"type": "Unigram", "unk_id": 0, "vocab": []}))),
        ("word level without unknown token", model(json!({"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "?"}))),
        (
            "word piece without unknown token",
            model(json!({"type": "WordPiece", "vocab": {"x": 0}, "unk_token": "?",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100})),
        ),
        (
            "broken pattern",
            with(
                "pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "("},
            "behavior": "Isolated", "invert": false}),
            ),
        ),
        ("broken charsmap", with("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}))),
        ("charsmap no base64", with("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "?"}))),
        (
            "charsmap of huge length",
            with(
                "normalizer",
                json!({"type": "Precompiled",
            "precompiled_charsmap": "/////w=="}),
            ),
        ),
        (
            "template with an unknown token",
            with(
                "post_processor",
                json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}], "pair": [], "special_tokens": {}}),
            ),
        ),
        ("negative id", model(json!({"type": "BPE", "vocab": {"a": -1}, "merges": []}))),
    ];
    cases.push((
        "ids past the model's vocabulary",
        model(json!({"type": "BPE", "merges": [],
        "vocab": {"a": 70_000, "b": 4_294_967_295u32, "c": 2, " ": 3}})),
    ));
    for (what, content) in &cases {
        bench.write("model/tokenizer.json", content);
        let output = bench.gradient(&["--data", &data]);
        let said = text(&output.stderr);
        // Some are lenient in the library: a token without a name in the vocabulary is dropped. None may be a bug.
        assert!(matches!(output.status.code(), Some(0 | 4)), "{what}: {:?} {said}", output.status);
        assert!(!said.contains("panicked") && !said.contains("bug in"), "{what}: {said}");
        if output.status.code() == Some(4) {
            assert!(said.contains("token") && !bench.path("out.safetensors").exists(), "{what}: {said}");
        }
        drop(fs::remove_file(bench.path("out.safetensors")));
    }
    for (what, content) in &cases[..10] {
        bench.write("model/tokenizer.json", content);
        if !what.starts_with("unigram") {
            bench.refused(what, &["--data", &data], 4, &["tokenizer.json"]);
        }
    }
    bench.write("model/tokenizer.json", with("version", json!("1.0")));
    bench.accepted("a good one", &["--data", &data]);
}

#[test]
fn rows_are_refused_with_their_line() {
    let bench = Bench::new();
    let good = "{\"input_ids\":[2],\"target_ids\":[3]}\n";
    let cases: &[(&str, &str, &[&str])] = &[
        ("malformed", "{\"input_ids\":[2],\n", &["bad.jsonl:2", "hint: "]),
        ("no object", "[1]\n", &["bad.jsonl:2"]),
        ("empty label", "{\"input_ids\":[2],\"target_ids\":[]}\n", &["bad.jsonl:2", "target_ids", "hint: "]),
        ("no label", "{\"input_ids\":[2]}\n", &["bad.jsonl:2", "target_ids"]),
        ("id past the vocabulary", "{\"input_ids\":[256],\"target_ids\":[3]}\n", &["bad.jsonl:2", "256", "hint: "]),
        ("label past the vocabulary", "{\"input_ids\":[2],\"target_ids\":[256]}\n", &["bad.jsonl:2", "256"]),
        ("id past 2^32", "{\"input_ids\":[4294967298],\"target_ids\":[3]}\n", &["bad.jsonl:2", "input_ids"]),
        ("negative id", "{\"input_ids\":[-1],\"target_ids\":[3]}\n", &["bad.jsonl:2", "input_ids"]),
        ("id no integer", "{\"input_ids\":[2.5],\"target_ids\":[3]}\n", &["bad.jsonl:2", "2.5"]),
        ("ids no array", "{\"input_ids\":\"2\",\"target_ids\":[3]}\n", &["bad.jsonl:2"]),
        ("a key twice", "{\"input_ids\":[2],\"input_ids\":[2],\"target_ids\":[3]}\n", &["bad.jsonl:2", "twice"]),
        ("text without tokenizer", "{\"input\":\"a\",\"target\":\"b\"}\n", &["bad.jsonl:2", "hint: "]),
    ];
    let data = bench.at("bad.jsonl");
    for (what, row, words) in cases {
        bench.write("bad.jsonl", format!("{good}{row}{good}"));
        bench.refused(what, &["--data", &data], 4, words);
    }
    bench.write("bad.jsonl", [good.as_bytes(), b"{\"input\": \"\xff\"}\n"].concat());
    bench.refused("no UTF-8", &["--data", &data], 4, &["bad.jsonl:2"]);
    bench.write("bad.jsonl", "");
    bench.refused("no row", &["--data", &data], 4, &["bad.jsonl"]);
    bench.refused("missing", &["--data", &bench.at("none.jsonl")], 4, &["none.jsonl", "hint: "]);
    bench.write("rows.parquet", good);
    let said = text(&bench.gradient(&["--data", &bench.at("rows.parquet")]).stderr);
    assert!(said.contains("rows.parquet") && said.contains(".jsonl"), "{said}");
    bench.refused("template", &["--template", "{open"], 3, &["hint: "]);
}

#[test]
fn long_rows_are_refused_cut_or_left_out_as_asked() {
    let bench = Bench::new();
    let long = json!({"input_ids": vec![2; 40], "target_ids": [3]});
    bench.write("long.jsonl", format!("{}\n{long}\n", json!({"input_ids": [2], "target_ids": [3]})));
    let data = bench.at("long.jsonl");
    let flags = |on_long: &'static str| ["--data", &data, "--max-length", "16", "--on-long", on_long];
    bench.refused("error", &flags("error"), 4, &["long.jsonl:2", "at most 16 tokens", "hint: "]);
    for (on_long, count) in [("truncate", "1 cut"), ("skip", "1 rows too long")] {
        let output = bench.accepted(on_long, &flags(on_long));
        assert!(text(&output.stderr).contains(count), "{on_long}: {}", text(&output.stderr));
        fs::remove_file(bench.path("out.safetensors")).unwrap();
    }
    let label = json!({"input_ids": [2], "target_ids": vec![3; 40]});
    bench.write("long.jsonl", format!("{label}\n"));
    for on_long in ["truncate", "skip"] {
        bench.refused(on_long, &flags(on_long), 4, &["long.jsonl", "hint: "]);
    }
    bench.refused("the flag", &["--on-long", "what"], 2, &["--on-long"]);
}

#[test]
fn hostile_gguf_is_refused() {
    let bench = Bench::new();
    let head = |version: u32, tensors: u64, entries: u64, rest: &[u8]| {
        [b"GGUF", &version.to_le_bytes()[..], &tensors.to_le_bytes(), &entries.to_le_bytes(), rest].concat()
    };
    let string = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let entry = |key: &str, kind: u32, value: &[u8]| [&string(key), &kind.to_le_bytes()[..], value].concat();
    let deep: Vec<u8> = (0..1000).flat_map(|_| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat()).collect();
    let one = [&string("t"), &1u32.to_le_bytes()[..], &u64::MAX.to_le_bytes(), &0u32.to_le_bytes(), &[0; 8]].concat();
    let far = [&string("t"), &1u32.to_le_bytes()[..], &4u64.to_le_bytes(), &0u32.to_le_bytes(), &[0xf0; 8]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("only a name", b"GGUF".to_vec()),
        ("another name", b"GGML\0\0\0\0".to_vec()),
        ("version 1", head(1, 0, 0, &[])),
        ("version 99", head(99, 0, 0, &[])),
        ("2^64 tensors", head(3, u64::MAX, 0, &[])),
        ("2^64 entries", head(3, 0, u64::MAX, &[])),
        ("a key of 2^64 bytes", head(3, 0, 1, &u64::MAX.to_le_bytes())),
        ("an unknown kind", head(3, 0, 1, &entry("a", 77, &[0; 8]))),
        (
            "an array of 2^64",
            head(3, 0, 1, &entry("a", 9, &[&4u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat())),
        ),
        ("arrays nested deep", head(3, 0, 1, &entry("a", 9, &deep))),
        ("a key twice", head(3, 0, 2, &[entry("a", 7, &[1]), entry("a", 7, &[1])].concat())),
        ("alignment 0", head(3, 0, 1, &entry("general.alignment", 4, &[0; 4]))),
        ("a tensor of 2^64", head(3, 1, 0, &one)),
        ("a tensor far outside", head(3, 1, 0, &far)),
        ("nothing in it", head(3, 0, 0, &[])),
        ("another architecture", head(3, 0, 1, &entry("general.architecture", 8, &string("mamba")))),
    ];
    let path = bench.at("model.gguf");
    for (what, bytes) in cases {
        bench.write("model.gguf", bytes);
        bench.refused(what, &["--model", &path], 4, &["model.gguf"]);
        let inspected = run(["inspect", &path]);
        assert!(matches!(inspected.status.code(), Some(0 | 4)), "{what}: {}", text(&inspected.stderr));
        assert!(!text(&inspected.stderr).contains("bug in"), "{what}: {}", text(&inspected.stderr));
    }
}

#[test]
fn damaged_shards_are_refused() {
    let bench = Bench::new();
    let shards = golden("llama_sharded");
    let file = Golden::read(&shards.join("golden.safetensors"));
    let (shape, values) = (file.shape("main.prompt"), file.numbers("main.prompt"));
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bench.write("prompt.safetensors", tensor("prompt", "F64", &shape, &bytes));
    bench.write("rows.jsonl", "{\"input_ids\":[],\"target_ids\":[3]}\n");
    let copy = || {
        drop(fs::remove_dir_all(bench.path("model")));
        for entry in fs::read_dir(&shards).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if entry.path().is_file() && !name.starts_with("golden") {
                bench.write(&format!("model/{name}"), fs::read(entry.path()).unwrap());
            }
        }
    };
    copy();
    bench.accepted("whole", &[]);
    fs::remove_file(bench.path("out.safetensors")).unwrap();
    fs::remove_file(bench.path("model/model-00002-of-00004.safetensors")).unwrap();
    bench.refused("one missing", &[], 4, &["model-00002-of-00004.safetensors"]);
    copy();
    let index: Value =
        serde_json::from_slice(&fs::read(bench.path("model/model.safetensors.index.json")).unwrap()).unwrap();
    for (what, file) in [("outside", "../prompt.safetensors"), ("absolute", "/etc/passwd"), ("empty", "")] {
        let mut index = index.clone();
        index["weight_map"]["model.norm.weight"] = json!(file);
        bench.write("model/model.safetensors.index.json", index.to_string());
        bench.refused(what, &[], 4, &["index.json"]);
    }
    bench.write("model/model.safetensors.index.json", "{\"weight_map\": 3}");
    bench.refused("no map", &[], 4, &["index.json"]);
}
