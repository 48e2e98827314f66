//! What several test files share.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses its own part")]

pub mod bench;
pub mod gguf;
pub mod t5;

use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

/// Where test programs that were carried to another machine find what they need (`tests/gpu-check.sh`).
fn carried() -> Option<PathBuf> {
    std::env::var_os("SOFTPROMPT_TEST_ROOT").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Says aloud that this machine lacks what a test needs; where all must run (`SOFTPROMPT_REQUIRE_ALL`), the test fails.
pub fn skip(lacking: &str) {
    let required = std::env::var("SOFTPROMPT_REQUIRE_ALL").is_ok_and(|value| !value.is_empty() && value != "0");
    assert!(!required, "{lacking}, and SOFTPROMPT_REQUIRE_ALL says that every test must run");
    eprintln!("SKIPPED: {lacking}");
}

/// The folder of golden files.
pub fn golden(name: &str) -> PathBuf {
    carried().unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).join("tests/golden").join(name)
}

/// The program.
pub fn program() -> PathBuf {
    carried().map_or_else(|| env!("CARGO_BIN_EXE_softprompt").into(), |folder| folder.join("softprompt"))
}

/// Every folder of golden files.
pub fn golden_names() -> Vec<String> {
    let mut names: Vec<String> = golden_cases().into_iter().map(|(name, _)| name).collect();
    names.dedup();
    names
}

/// Every folder of golden files of causal models with each of its cases, but for `left_pad`: a behaviour of PEFT's that is
/// not a goal.
pub fn golden_cases() -> Vec<(String, String)> {
    cases_of(false)
}

/// Every folder of golden files of encoder–decoders with each of its cases.
pub fn golden_t5_cases() -> Vec<(String, String)> {
    cases_of(true)
}

fn cases_of(seq2seq: bool) -> Vec<(String, String)> {
    let folders = std::fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut cases = Vec::new();
    for folder in folders {
        let Some(meta) = golden_meta(&folder).filter(|meta| meta["seq2seq"] == seq2seq) else { continue };
        let names = meta["cases"].as_object().unwrap().keys().filter(|case| *case != "left_pad");
        cases.extend(names.map(|case| (folder.clone(), case.clone())));
    }
    cases.sort();
    cases
}

/// What a folder of golden files says of itself, if it is one.
pub fn golden_meta(folder: &str) -> Option<serde_json::Value> {
    let meta = std::fs::read(golden(folder).join("meta.json")).ok()?;
    Some(serde_json::from_slice(&meta).unwrap())
}

/// A safetensors file, read whole.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn get(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        self.get().tensor(name).is_ok()
    }

    pub fn names(&self) -> Vec<String> {
        self.get().names().into_iter().map(str::to_string).collect()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.get().tensor(name).unwrap().shape().to_vec()
    }

    /// A tensor's numbers as f64, whatever type they have.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        let file = self.get();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            Dtype::I64 => data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// The rows of a golden causal case as (input, target), padding removed.
pub fn causal_rows(golden: &Golden, case: &str) -> Vec<(Vec<u32>, Vec<u32>)> {
    let shape = golden.shape(&format!("{case}.input_ids"));
    let numbers = |name: &str| golden.numbers(&format!("{case}.{name}"));
    let (ids, mask, labels) = (numbers("input_ids"), numbers("attention_mask"), numbers("labels"));
    (0..shape[0])
        .map(|row| {
            let range = row * shape[1]..(row + 1) * shape[1];
            let mut example = (Vec::new(), Vec::new());
            for at in range.filter(|&at| mask[at] == 1.0) {
                if labels[at] < 0.0 {
                    assert!(example.1.is_empty(), "labels are the end of a row");
                    example.0.push(ids[at] as u32);
                } else {
                    example.1.push(labels[at] as u32);
                }
            }
            example
        })
        .collect()
}

/// Fails on NaN, another length, or a difference above `tolerance · max|want|`; says where.
#[track_caller]
pub fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(0f64, |largest, x| largest.max(x.abs())).max(f64::MIN_POSITIVE);
    close_absolute(what, got, want, tolerance * scale);
}

/// Fails on NaN, another length, or a difference above `tolerance`; says where.
#[track_caller]
pub fn close_absolute(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let mut worst = (0.0, 0);
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let difference = (got - want).abs();
        assert!(difference.is_finite(), "{what}[{at}]: got {got}, want {want}");
        if difference > worst.0 {
            worst = (difference, at);
        }
    }
    let (difference, at) = worst;
    assert!(
        difference <= tolerance,
        "{what}[{at}]: got {}, want {}, off by {difference:e} where {tolerance:e} is allowed",
        got[at],
        want[at]
    );
}
