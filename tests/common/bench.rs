//! A workplace with a good model, prompt and data file, and the program to run on them.

use super::{Golden, causal_rows, golden, program};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A good model, prompt and data file that tests damage one at a time.
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        let file = Golden::read(&golden("llama").join("golden.safetensors"));
        bench.write(
            "prompt.safetensors",
            tensor("prompt", "F64", &file.shape("main.prompt"), &{
                let values = file.numbers("main.prompt");
                values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>()
            }),
        );
        let rows = causal_rows(&file, "main");
        let lines =
            rows.iter().map(|(input, target)| format!("{}\n", json!({"input_ids": input, "target_ids": target})));
        bench.write("rows.jsonl", lines.collect::<String>());
        bench.model(|_| ());
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    /// Puts the golden model, its configuration changed, into `model`.
    pub fn model(&self, change: impl Fn(&mut Value)) {
        drop(fs::remove_dir_all(self.path("model")));
        let mut config: Value =
            serde_json::from_slice(&fs::read(golden("llama").join("config.json")).unwrap()).unwrap();
        change(&mut config);
        self.write("model/config.json", config.to_string());
        self.write("model/model.safetensors", fs::read(golden("llama").join("model.safetensors")).unwrap());
    }

    pub fn gradient(&self, more: &[&str]) -> Output {
        let mut flags = vec!["--model".to_owned(), self.at("model"), "--prompt".into(), self.at("prompt.safetensors")];
        flags.extend(["--data".into(), self.at("rows.jsonl"), "--out".into(), self.at("out.safetensors")]);
        for pair in more.chunks(2) {
            match flags.iter().position(|flag| flag == pair[0]) {
                Some(at) => flags[at + 1] = pair[1].to_owned(),
                None => flags.extend(pair.iter().map(|&flag| flag.to_owned())),
            }
        }
        run(["gradient"].into_iter().chain(flags.iter().map(String::as_str)))
    }

    /// Fails unless `gradient` is refused with `code` and all of `words`, and wrote nothing.
    #[track_caller]
    pub fn refused(&self, what: &str, more: &[&str], code: i32, words: &[&str]) -> String {
        let before = self.listing();
        let said = refused(what, &self.gradient(more), code, words);
        assert_eq!(self.listing(), before, "{what}: files were written");
        said
    }

    #[track_caller]
    pub fn accepted(&self, what: &str, more: &[&str]) -> Output {
        let output = self.gradient(more);
        assert!(output.status.success(), "{what}: {}", text(&output.stderr));
        output
    }

    fn listing(&self) -> Vec<PathBuf> {
        let mut all: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    }
}

/// Runs the program.
pub fn run<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Output {
    Command::new(program()).args(arguments).stdin(Stdio::null()).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Fails unless the program ended with `code`, said all of `words` and a hint, and took it for no bug.
#[track_caller]
pub fn refused(what: &str, output: &Output, code: i32, words: &[&str]) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{what}: {said}");
    assert!(said.contains("error: ") && !said.contains("panicked") && !said.contains("bug in"), "{what}: {said}");
    assert!(!said.contains("RUST_BACKTRACE") && said.len() < 4000, "{what}: {said}");
    let is_advised = said.contains("hint: ") || said.contains("try '--help'");
    assert!(is_advised, "{what}: no hint: {said}");
    for word in words {
        assert!(said.contains(word), "{what}: {word:?} is not in: {said}");
    }
    said
}

/// A safetensors file with this header and data.
pub fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

pub fn tensor(name: &str, dtype: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    raw(&json!({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, data.len()]}}).to_string(), data)
}

/// The letters, a blank and a full stop as tokens of their own, from id 2: enough to write rows as text.
pub fn letters() -> (Vec<(char, u32)>, String) {
    let tokens: Vec<(char, u32)> = ('a'..='z').chain(" .".chars()).zip(2..).collect();
    let vocabulary: serde_json::Map<_, _> = tokens.iter().map(|(token, id)| (token.to_string(), json!(id))).collect();
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []}});
    (tokens, tokenizer.to_string())
}
