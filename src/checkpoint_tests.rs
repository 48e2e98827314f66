//! Tests of checkpoints.

use super::*;
use crate::device::{Device, Kind};
use crate::optim::{AdamWConfig, Optimizer, OptimizerConfig};
use crate::tensor::Tensor;
use serde_json::json;

fn fingerprints() -> Fingerprints {
    Fingerprints { config: "c0".into(), model: "m0".into(), data: "d0".into() }
}

fn matrix(values: &[f32]) -> Tensor {
    Tensor::from_slice(&Device::cpu(Some(1)).unwrap(), 2, 3, values, Kind::Optimizer).unwrap()
}

fn fresh_optimizer(params: &Tensor) -> Optimizer {
    Optimizer::new(&OptimizerConfig::AdamW(AdamWConfig::default()), params).expect("defaults are valid")
}

fn at(step: u64) -> Checkpoint {
    let values = Values::F32(vec![1.0 / 3.0, -0.0, f32::MIN_POSITIVE / 4.0, 7.5, step as f32, -1e30]);
    let mut params = matrix(&values.to_vec());
    let mut optimizer = fresh_optimizer(&params);
    optimizer.step(&mut params, &matrix(&[0.1, 0.2, -0.3, 0.7, 0.0, 1e-20]), 0.1).expect("shapes fit");
    let meta = BTreeMap::from([("step".into(), "1".into())]);
    let best = PromptFile::new(2, 3, Values::F32(vec![0.25; 6]), meta).unwrap();
    Checkpoint {
        step,
        cursor: json!({"epoch": 3, "index": u64::MAX}),
        prompt: Some(PromptFile::new(2, 3, values, BTreeMap::from([("seed".into(), "5".into())])).unwrap()),
        optimizer: optimizer.state().unwrap(),
        best: Some(Best { metric: "accuracy".into(), value: 0.1 + 0.2, step: 1, prompt: Some(best) }),
        evals_without_gain: 2,
        history: json!([1.0 / 3.0, 5e-324, 1.797_693_134_862_315_7e308, 0.100_000_000_000_000_02]),
        fingerprints: fingerprints(),
    }
}

fn sorted(mut state: Vec<(String, Values)>) -> Vec<(String, Values)> {
    state.sort_by(|a, b| a.0.cmp(&b.0));
    state
}

#[test]
fn a_checkpoint_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let saved = at(40);
    let path = saved.save(dir.path()).unwrap();
    assert_eq!(path, dir.path().join("checkpoint-40"));
    let loaded = Checkpoint::load(&path).unwrap();
    assert_eq!(
        loaded.prompt.as_ref().unwrap().values.to_le_bytes(),
        saved.prompt.as_ref().unwrap().values.to_le_bytes()
    );
    assert_eq!(loaded.prompt.as_ref().unwrap().meta["seed"], "5");
    assert_eq!(sorted(loaded.optimizer.clone()), sorted(saved.optimizer.clone()));
    assert_eq!((&loaded.cursor, &loaded.history), (&saved.cursor, &saved.history));
    let (found, best) = (loaded.best.as_ref().unwrap(), saved.best.as_ref().unwrap());
    assert_eq!((&found.metric, found.value, found.step), (&best.metric, best.value, best.step));
    assert_eq!(found.prompt.as_ref().unwrap().hash(), best.prompt.as_ref().unwrap().hash());
    assert_eq!((loaded.step, loaded.evals_without_gain, &loaded.fingerprints), (40, 2, &saved.fingerprints));
    let mut optimizer = fresh_optimizer(&matrix(&[0.0; 6]));
    optimizer.load_state(&loaded.optimizer).unwrap();
    assert_eq!(optimizer.state().unwrap(), saved.optimizer);
    // A checkpoint is a prompt as well.
    assert_eq!(PromptFile::read(&path).unwrap().hash(), saved.prompt.as_ref().unwrap().hash());
    // A checkpoint saved twice has the same bytes.
    let sums = fs::read(path.join(SUMS_FILE)).unwrap();
    loaded.save(dir.path()).unwrap();
    let again = Checkpoint { optimizer: saved.optimizer, ..loaded };
    again.save(dir.path()).unwrap();
    assert_eq!(fs::read(path.join(SUMS_FILE)).unwrap(), sums);
}

#[test]
fn a_best_value_of_any_kind_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    for value in [f64::NEG_INFINITY, f64::INFINITY, -0.0, 5e-324, 0.1 + 0.2] {
        let best = at(1).best.map(|best| Best { value, ..best });
        let path = Checkpoint { best, ..at(1) }.save(dir.path()).unwrap();
        assert_eq!(Checkpoint::load(path).unwrap().best.unwrap().value.to_bits(), value.to_bits());
    }
}

#[test]
fn whatever_was_changed_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    for name in [PROMPT_FILE, OPTIMIZER_FILE, BEST_FILE, STATE_FILE, SUMS_FILE] {
        let path = at(5).save(dir.path()).unwrap();
        let file = path.join(name);
        let good = fs::read(&file).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [flipped, good[..good.len() / 2].to_vec(), vec![]] {
            fs::write(&file, bad).unwrap();
            let error = Checkpoint::load(&path).expect_err(name);
            assert_eq!(error.exit_code(), 4, "{name}: {error}");
        }
        fs::remove_file(&file).unwrap();
        assert_eq!(Checkpoint::load(&path).expect_err(name).exit_code(), 4);
    }
    assert_eq!(Checkpoint::load(dir.path().join("checkpoint-6")).unwrap_err().exit_code(), 4);
}

/// Replaces a file and its sum: what a careful hand, or a bug, would do.
fn resum(dir: &Path, name: &str, bytes: &[u8]) {
    let old = sha256_hex(&fs::read(dir.join(name)).unwrap());
    fs::write(dir.join(name), bytes).unwrap();
    let sums = fs::read_to_string(dir.join(SUMS_FILE)).unwrap().replace(&old, &sha256_hex(bytes));
    fs::write(dir.join(SUMS_FILE), sums).unwrap();
}

#[test]
fn files_that_contradict_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let other = Checkpoint { step: 8, ..at(8) }.save(dir.path()).unwrap();
    let path = at(5).save(dir.path()).unwrap();
    resum(&path, PROMPT_FILE, &fs::read(other.join(PROMPT_FILE)).unwrap());
    assert!(Checkpoint::load(&path).unwrap_err().to_string().contains("another checkpoint"));
    for (from, to, part) in [
        ("\"version\": 1", "\"version\": 2", "another release"),
        ("\"step\": 5", "\"step\": -5", "state"),
        ("\"step\": 5", "\"steps\": 5", "state"),
        ("\"0.30000000000000004\"", "\"much\"", "best.value"),
    ] {
        let path = at(5).save(dir.path()).unwrap();
        let text = fs::read_to_string(path.join(STATE_FILE)).unwrap();
        assert!(text.contains(from), "{text}");
        resum(&path, STATE_FILE, text.replacen(from, to, 1).as_bytes());
        let error = Checkpoint::load(&path).unwrap_err();
        assert!(error.to_string().contains(part) && error.to_string().contains(STATE_FILE), "{error}");
    }
}

#[test]
fn what_changed_since_is_named() {
    let checkpoint = at(5);
    checkpoint.expect(&fingerprints(), Some((2, 3))).unwrap();
    let now = fingerprints;
    for (now, part) in [
        (Fingerprints { config: "c1".into(), ..now() }, "another configuration, c1"),
        (Fingerprints { model: "m1".into(), ..now() }, "another model, m1"),
        (Fingerprints { data: "d1".into(), ..now() }, "another data, d1"),
    ] {
        let error = checkpoint.expect(&now, Some((2, 3))).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains(part) && error.to_string().contains("resume with"), "{error}");
    }
    let error = checkpoint.expect(&now(), Some((2, 4))).unwrap_err();
    assert!(error.to_string().contains("2 x 3") && error.to_string().contains("2 x 4"), "{error}");
}

#[test]
fn the_latest_is_found_and_the_old_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(latest(dir.path().join("none")).unwrap(), None);
    assert_eq!(latest(dir.path()).unwrap(), None);
    prune(dir.path().join("none"), 1, 9).unwrap();
    for step in [9, 10, 100, 2] {
        at(step).save(dir.path()).unwrap();
    }
    for other in ["checkpoint-", "checkpoint-007", "checkpoint-x", ".checkpoint-500.tmp-0-0", "checkpoints"] {
        fs::create_dir(dir.path().join(other)).unwrap();
    }
    fs::write(dir.path().join("checkpoint-300"), "a file").unwrap();
    assert_eq!(latest(dir.path()).unwrap(), Some(dir.path().join("checkpoint-100")));
    // A replacement that was cut short.
    fs::rename(dir.path().join("checkpoint-100"), dir.path().join(".checkpoint-100.old")).unwrap();
    let newest = latest(dir.path()).unwrap().unwrap();
    assert_eq!(newest, dir.path().join("checkpoint-100"));
    assert_eq!(Checkpoint::load(&newest).unwrap().step, 100);
    let steps = |dir: &Path| list(dir).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
    // One of a later step stays, and is not counted.
    prune(dir.path(), 2, 10).unwrap();
    assert_eq!(steps(dir.path()), [9, 10, 100]);
    prune(dir.path(), 2, 100).unwrap();
    assert_eq!(steps(dir.path()), [10, 100]);
    assert!(!dir.path().join(".checkpoint-500.tmp-0-0").exists() && dir.path().join("checkpoints").exists());
    prune(dir.path(), 0, 100).unwrap();
    assert_eq!(steps(dir.path()), [100]);
}

#[test]
fn a_save_that_fails_leaves_the_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = at(5).save(dir.path()).unwrap();
    let twice = vec![("m".to_owned(), Values::F32(vec![])); 2];
    assert_eq!(Checkpoint { optimizer: twice, ..at(5) }.save(dir.path()).unwrap_err().exit_code(), 1);
    fs::write(dir.path().join("checkpoint-6"), "in the way").unwrap();
    assert_eq!(at(6).save(dir.path()).unwrap_err().exit_code(), 7);
    assert_eq!(Checkpoint::load(&path).unwrap().step, 5);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}
