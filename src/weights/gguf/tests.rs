use super::build::{Builder, array, string};
use super::*;
use crate::weights::Weights;
use std::fs;

fn open(bytes: &[u8]) -> Result<Weights> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, bytes).unwrap();
    Weights::open(&path)
}

#[track_caller]
fn refused(bytes: &[u8], says: &str) {
    let error = open(bytes).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let text = error.to_string();
    assert!(text.contains("m.gguf: ") && text.contains(says), "{text}");
}

fn sample() -> Builder {
    Builder::new()
        .str("general.architecture", "llama")
        .u32("n", 7)
        .bool("yes", true)
        .entry("x", 6, &0.1f32.to_le_bytes())
        .entry("minus", 5, &(-3i32).to_le_bytes())
        .strings("words", &["a", "", "ü"])
        .floats("floats", &[0.5, -1.0])
        .entry("nested", 9, &array(9, &[array(4, &[vec![1, 0, 0, 0]]), array(8, &[string("s")])]))
        .tensor("w", &[3, 2], 0, 0)
        .tensor("odd", &[256], 13, 32)
        .tensor("future", &[5], 99, 32)
        .data((0..208u8).collect())
}

#[test]
fn metadata_is_typed() {
    for version in [2, 3] {
        let weights = open(&sample().version(version).bytes()).unwrap();
        let m = weights.gguf().unwrap();
        assert_eq!(m.version(), version);
        assert_eq!(m.str("general.architecture").unwrap(), Some("llama"));
        assert_eq!((m.u64("n").unwrap(), m.bool("yes").unwrap(), m.u64("none").unwrap()), (Some(7), Some(true), None));
        assert_eq!(m.f64("x").unwrap(), Some(f64::from(0.1f32)));
        assert_eq!(m.f64("minus").unwrap(), Some(-3.0));
        assert_eq!(m.keys().count(), 8);
        for error in [m.u64("minus").unwrap_err(), m.str("n").unwrap_err(), m.bool("words").unwrap_err()] {
            assert!(error.exit_code() == 4 && error.to_string().contains("m.gguf: "), "{error}");
        }
    }
}

#[test]
fn arrays_are_walked_in_place() {
    let weights = open(&sample().bytes()).unwrap();
    let m = weights.gguf().unwrap();
    let words = m.array("words").unwrap().unwrap();
    assert_eq!(words.strings().unwrap().collect::<Vec<_>>(), ["a", "", "ü"]);
    assert!(words.numbers().is_none());
    assert_eq!(m.array("floats").unwrap().unwrap().numbers().unwrap().collect::<Vec<_>>(), [0.5, -1.0]);
    let nested = m.array("nested").unwrap().unwrap();
    let inner: Vec<_> = nested.iter().collect();
    let [Value::Array(numbers), Value::Array(strings)] = &inner[..] else { panic!("{inner:?}") };
    assert!(matches!(numbers.iter().next(), Some(Value::U64(1))));
    assert_eq!(strings.strings().unwrap().collect::<Vec<_>>(), ["s"]);
    assert!(m.array("n").is_err());
}

#[test]
fn tensors_have_row_major_shapes_and_unknown_types_wait() {
    let weights = open(&sample().bytes()).unwrap();
    let w = weights.get("w").unwrap();
    assert_eq!((w.shape(), w.bytes()), (&[2, 3][..], &(0..24).collect::<Vec<u8>>()[..]));
    assert!(weights.get("odd").unwrap_err().to_string().contains("Q5_K"));
    assert!(weights.get("future").unwrap_err().to_string().contains("type 99"));
    assert_eq!(weights.infos().count(), 3);
}

#[test]
fn no_cut_of_a_file_is_accepted_or_panics() {
    let whole = sample().bytes();
    let header = whole.len() - 208;
    for end in 1..whole.len() {
        // The last tensor whose size is known ends with the data.
        let source = Source::in_memory(whole[..end].to_vec());
        assert!(parse(Path::new("m.gguf"), &source).is_err(), "cut at {end} of {}, header {header}", whole.len());
    }
}

#[test]
fn no_changed_byte_panics() {
    let whole = sample().bytes();
    for at in 0..whole.len() - 208 {
        for value in [0, 1, 9, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            let source = Source::in_memory(bytes);
            if let Ok((metadata, tensors)) = parse(Path::new("m.gguf"), &source) {
                assert!(tensors.iter().all(|t| t.range.start <= t.range.end && t.range.end <= whole.len()));
                metadata.values.values().for_each(walk);
            }
        }
    }
}

/// Reads every value there is.
fn walk(value: &Value) {
    if let Value::Array(array) = value {
        assert_eq!(array.iter().inspect(walk).count(), array.len());
    }
}

#[test]
fn preambles() {
    refused(b"GG", "4 bytes");
    refused(b"PK\x03\x04xxxxxxxxxxxxxxxxxxxx", "not a GGUF");
    for version in [0, 1, 4, u32::MAX] {
        refused(&sample().version(version).bytes(), "version");
    }
    refused(&sample().version(3u32.swap_bytes()).bytes(), "big-endian");
    for at in [8, 16] {
        for count in [u64::MAX, 1 << 40, 1 << 20] {
            let mut bytes = sample().bytes();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            refused(&bytes, "at most");
        }
    }
}

#[test]
fn lying_lengths() {
    let huge = u64::MAX.to_le_bytes();
    refused(&Builder::new().entry("k", 8, &huge).bytes(), "at most 0 bytes of k");
    for kind in [0u32, 4, 7, 8, 9, 12] {
        let value = [&kind.to_le_bytes()[..], &huge].concat();
        refused(&Builder::new().entry("k", 9, &value).bytes(), "values of k");
    }
    refused(&Builder::new().entry("k", 13, &[0; 8]).bytes(), "type 13");
    refused(&Builder::new().entry("k", 9, &[99; 12]).bytes(), "type");
    refused(&Builder::new().entry("k", 7, &[2]).bytes(), "truth value");
    refused(&Builder::new().entry("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]).bytes(), "UTF-8");
    refused(&Builder::new().u32("k", 1).u32("k", 1).bytes(), "twice");
    let deep =
        (0..100_000).fold(array(4, &[]), |inner, _| if inner.len() < 100_000 { array(9, &[inner]) } else { inner });
    refused(&Builder::new().entry("k", 9, &deep).bytes(), "deep");
}

#[test]
fn lying_tensors() {
    let data = || vec![0; 64];
    let one = |ne: &[u64], kind, offset| Builder::new().tensor("t", ne, kind, offset).data(data()).bytes();
    assert!(open(&one(&[16], 0, 0)).is_ok());
    refused(&one(&[17], 0, 0), "within the 64");
    refused(&one(&[1], 0, 64), "within the 64");
    refused(&one(&[1], 0, 1), "multiple of 32");
    refused(&one(&[1], 0, u64::MAX - 31), "within");
    refused(&one(&[u64::MAX, 2], 0, 0), "fits in memory");
    refused(&one(&[1 << 62], 0, 0), "within");
    refused(&one(&[16], 2, 0), "whole blocks of 32");
    refused(&one(&[1, 1, 1, 1, 1], 0, 0), "4 dimensions");
    let two = |b: &str, offset| Builder::new().tensor("a", &[9], 0, 0).tensor(b, &[1], 0, offset).data(data()).bytes();
    assert!(open(&Builder::new().tensor("a", &[8], 0, 0).tensor("b", &[1], 0, 32).data(data()).bytes()).is_ok());
    refused(&two("b", 32), "bytes of a too");
    refused(&two("b", 0), "too");
    refused(&two("a", 32), "twice");
    for alignment in [0, 3, 1 << 30] {
        refused(&Builder::new().u32("general.alignment", alignment).bytes(), "power of two");
    }
    refused(&Builder::new().str("general.alignment", "32").bytes(), "integer");
    refused(&Builder::new().u32("split.count", 3).bytes(), "one of 3 parts");
}
