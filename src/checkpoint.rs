//! Checkpoints: everything a run needs to go on with the same bits.
//!
//! One directory `checkpoint-<step>`, saved all or nothing:
//!
//! | file | what |
//! |---|---|
//! | `prompt.safetensors` | the prompt, readable by itself ([`PromptFile`]) |
//! | `optimizer.safetensors` | the optimizer's buffers |
//! | `best.safetensors` | the prompt of the best evaluation so far, if there was one |
//! | `state.json` | step, place in the data, best metric, history, fingerprints |
//! | `SHA256SUMS` | the hashes of the others, as `sha256sum -c` reads them |

use crate::error::{Error, Place, Result};
use crate::prompt::file::{PROMPT_FILE, PromptFile};
use crate::storage;
use crate::tensorfile::{MAX_BYTES, NamedTensor, TensorFile};
use crate::values::{Values, sha256_hex};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const BEST_FILE: &str = "best.safetensors";
const STATE_FILE: &str = "state.json";
const SUMS_FILE: &str = "SHA256SUMS";
const PREFIX: &str = "checkpoint-";
/// The layout's version; another one is refused.
const VERSION: u32 = 1;

/// What must be the same for a run to go on: hashes made by the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprints {
    /// Of the configuration, as far as it changes the result.
    pub config: String,
    /// Of the frozen model.
    pub model: String,
    /// Of the training and evaluation data.
    pub data: String,
}

/// The best evaluation so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// The metric's name.
    pub metric: String,
    /// Its value.
    pub value: f64,
    /// The step it was reached at.
    pub step: u64,
    /// The prompt that reached it.
    pub prompt: PromptFile,
}

/// A run's state after `step` steps. Every float comes back with the bits it had.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Optimizer steps taken.
    pub step: u64,
    /// The place in the data, in the words of whoever feeds it.
    pub cursor: Value,
    /// The prompt, in the element type it is trained in.
    pub prompt: PromptFile,
    /// The optimizer's named buffers.
    pub optimizer: Vec<(String, Values)>,
    /// The best evaluation so far, if there was one.
    pub best: Option<Best>,
    /// Evaluations since the best one: the early stop's counter.
    pub evals_without_gain: u64,
    /// Whatever else the run needs of its past; floats must be finite.
    pub history: Value,
    /// What must be the same to go on.
    pub fingerprints: Fingerprints,
}

/// `state.json`. Floats that may be of any value are kept as text, which JSON's numbers cannot be.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    step: u64,
    cursor: Value,
    best: Option<BestState>,
    evals_without_gain: u64,
    history: Value,
    fingerprints: Fingerprints,
    prompt_sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BestState {
    metric: String,
    value: String,
    step: u64,
}

impl Checkpoint {
    /// Saves the checkpoint as `checkpoint-<step>` in `run_dir` and gives the directory; one of the same step is replaced.
    ///
    /// # Errors
    /// `Io` where the system refuses (nothing is left behind, an older checkpoint stays); `Op` where two optimizer buffers
    /// share a name.
    pub fn save(&self, run_dir: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = run_dir.as_ref().join(format!("{PREFIX}{}", self.step));
        let state = serde_json::to_vec_pretty(&self.state())
            .map_err(|e| Error::op("Checkpoint::save", "state that JSON can hold", e.to_string()))?;
        let mut files = vec![(PROMPT_FILE, self.prompt.to_bytes()?), (OPTIMIZER_FILE, self.optimizer_bytes()?)];
        if let Some(best) = &self.best {
            files.push((BEST_FILE, best.prompt.to_bytes()?));
        }
        files.push((STATE_FILE, state));
        let sums: String = files.iter().map(|(name, bytes)| format!("{}  {name}\n", sha256_hex(bytes))).collect();
        storage::atomic_dir(&dir, |tmp| {
            for (name, bytes) in &files {
                storage::atomic_write(tmp.join(name), bytes)?;
            }
            storage::atomic_write(tmp.join(SUMS_FILE), sums.as_bytes())
        })?;
        Ok(dir)
    }

    /// Loads and checks the checkpoint in directory `dir`.
    ///
    /// # Errors
    /// `Input` where a file is missing, truncated, edited by hand, or contradicts another; `Io` where the system refuses.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = &storage::existing_dir(dir);
        let sums = Sums::read(dir)?;
        let path = dir.join(STATE_FILE);
        let state = parse_state(&sums.verified(STATE_FILE)?).map_err(|e| e.in_file(&path))?;
        let prompt = sums.verified_prompt(PROMPT_FILE)?;
        if prompt.hash() != state.prompt_sha256 {
            let got = format!("the prompt of another checkpoint, {}", prompt.hash());
            return Err(Error::input(Place::file(dir), format!("the prompt {}", state.prompt_sha256), got));
        }
        let optimizer =
            TensorFile::from_bytes(&sums.verified(OPTIMIZER_FILE)?).map_err(|e| e.in_file(dir.join(OPTIMIZER_FILE)))?;
        if let Some(name) = optimizer.others.first() {
            let place = Place::file(dir.join(OPTIMIZER_FILE)).of(name);
            return Err(Error::input(place, "f32 or f64 values", "another type"));
        }
        Ok(Self {
            step: state.step,
            cursor: state.cursor,
            prompt,
            optimizer: optimizer.tensors.into_iter().map(|t| (t.name, t.values)).collect(),
            best: state.best.map(|b| b.into_best(&path, sums.verified_prompt(BEST_FILE)?)).transpose()?,
            evals_without_gain: state.evals_without_gain,
            history: state.history,
            fingerprints: state.fingerprints,
        })
    }

    /// Checks that a run of `now`, with a prompt of `[rows, cols]`, may go on from here.
    ///
    /// # Errors
    /// `Input` naming what changed.
    pub fn expect(&self, now: &Fingerprints, rows: usize, cols: usize) -> Result<()> {
        let place = || Place { path: self.prompt.source().map(Path::to_path_buf), ..Place::default() };
        let then = &self.fingerprints;
        for (what, then, now, hint) in [
            ("model", &then.model, &now.model, "resume with the model that the run began with"),
            ("data", &then.data, &now.data, "resume with the data that the run began with, unchanged"),
            ("configuration", &then.config, &now.config, "resume with the configuration saved beside the checkpoints"),
        ] {
            if then != now {
                let expected = format!("the {what} of the checkpoint, {}", short(then));
                return Err(Error::input(place(), expected, format!("another {what}, {}", short(now)))
                    .hint(format!("{hint}, or start a new run")));
            }
        }
        if (self.prompt.rows, self.prompt.cols) != (rows, cols) {
            let got = format!("a run of {rows} x {cols}");
            let expected = format!("a prompt of {} x {}, as in the checkpoint", self.prompt.rows, self.prompt.cols);
            return Err(Error::input(place(), expected, got));
        }
        Ok(())
    }

    fn state(&self) -> State {
        State {
            version: VERSION,
            step: self.step,
            cursor: self.cursor.clone(),
            best: self.best.as_ref().map(|b| BestState {
                metric: b.metric.clone(),
                value: format!("{:?}", b.value),
                step: b.step,
            }),
            evals_without_gain: self.evals_without_gain,
            history: self.history.clone(),
            fingerprints: self.fingerprints.clone(),
            prompt_sha256: self.prompt.hash(),
        }
    }

    fn optimizer_bytes(&self) -> Result<Vec<u8>> {
        let tensor = |(name, values): &(String, Values)| NamedTensor {
            name: name.clone(),
            shape: vec![values.len()],
            values: values.clone(),
        };
        let tensors = self.optimizer.iter().map(tensor).collect();
        TensorFile { tensors, others: Vec::new(), meta: BTreeMap::new() }.to_bytes()
    }
}

impl BestState {
    fn into_best(self, path: &Path, prompt: PromptFile) -> Result<Best> {
        let value = self.value.parse().map_err(|_| {
            Error::input(Place::file(path).of("best.value"), "a number in quotes", format!("\"{}\"", self.value))
        })?;
        Ok(Best { metric: self.metric, value, step: self.step, prompt })
    }
}

/// The complete checkpoints in `run_dir`, by rising step; none where the directory is missing.
///
/// # Errors
/// `Io` where the system refuses.
pub fn list(run_dir: impl AsRef<Path>) -> Result<Vec<(u64, PathBuf)>> {
    let run_dir = run_dir.as_ref();
    let entries = match fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(run_dir, "list", e)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let name = entry.map_err(|e| Error::io(run_dir, "list", e))?.file_name();
        let name = name.to_string_lossy();
        // One that was being replaced when the machine stopped may stand aside.
        let plain = name.strip_prefix('.').and_then(|n| n.strip_suffix(".old")).unwrap_or(&name);
        let step = plain.strip_prefix(PREFIX).and_then(|s| s.parse::<u64>().ok());
        if let Some(step) = step.filter(|step| plain == format!("{PREFIX}{step}")) {
            let dir = run_dir.join(plain);
            if storage::existing_dir(&dir).is_dir() {
                found.insert(step, dir);
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// The checkpoint of the highest step in `run_dir`, if there is one.
///
/// # Errors
/// `Io` where the system refuses.
pub fn latest(run_dir: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    Ok(list(run_dir)?.pop().map(|(_, dir)| dir))
}

/// Removes all checkpoints of `run_dir` but the last `keep` up to that of `step`, which is never removed, and what killed
/// runs left there half-written. Checkpoints of later steps stay: a run that goes on from an earlier one will come by.
///
/// # Errors
/// `Io` where the system refuses.
pub fn prune(run_dir: impl AsRef<Path>, keep: usize, step: u64) -> Result<()> {
    let run_dir = run_dir.as_ref();
    let mut all: Vec<_> = list(run_dir)?.into_iter().filter(|(of, _)| *of <= step).collect();
    all.truncate(all.len().saturating_sub(keep.max(1)));
    for (_, dir) in all {
        storage::recover_dir(&dir)?;
        // Renamed first: a removal that is cut short must not leave half a checkpoint.
        let doomed = storage::aside_name(&dir)?.with_extension(format!("tmp-{}-doomed", std::process::id()));
        fs::rename(&dir, &doomed).map_err(|e| Error::io(&dir, "remove", e))?;
        fs::remove_dir_all(&doomed).map_err(|e| Error::io(&dir, "remove", e))?;
    }
    if run_dir.is_dir() { storage::remove_leftovers(run_dir, PREFIX) } else { Ok(()) }
}

/// The hashes that `SHA256SUMS` gives the files of a checkpoint.
struct Sums<'a> {
    dir: &'a Path,
    path: PathBuf,
    text: String,
}

impl<'a> Sums<'a> {
    fn read(dir: &'a Path) -> Result<Self> {
        if !dir.is_dir() {
            let place = Place::file(dir);
            return Err(Error::input(place, "a checkpoint directory", "nothing there").hint("check the path"));
        }
        let path = dir.join(SUMS_FILE);
        let text = String::from_utf8_lossy(&storage::read_limited(&path, 1 << 16)?).into_owned();
        Ok(Self { dir, path, text })
    }

    /// The bytes of file `name`, if they have the hash that they should.
    fn verified(&self, name: &str) -> Result<Vec<u8>> {
        let damaged = |path: &Path, expected: String, got: String| {
            Error::input(Place::file(path), expected, got)
                .hint("the file is truncated or was edited; resume from another checkpoint")
        };
        let line = self.text.lines().find_map(|line| line.strip_suffix(name)?.strip_suffix("  "));
        let want = line.ok_or_else(|| damaged(&self.path, format!("a line for {name}"), "none".to_string()))?;
        let path = self.dir.join(name);
        let bytes = storage::read_limited(&path, MAX_BYTES)?;
        let got = sha256_hex(&bytes);
        if want == got { Ok(bytes) } else { Err(damaged(&path, format!("SHA-256 {want}"), got)) }
    }

    fn verified_prompt(&self, name: &str) -> Result<PromptFile> {
        drop(self.verified(name)?); // the prompt's own reader checks the rest
        PromptFile::read(self.dir.join(name))
    }
}

fn parse_state(bytes: &[u8]) -> Result<State> {
    let bad = |e: serde_json::Error| {
        Error::input(Place::default().at_line(e.line() as u64), "a checkpoint's state", e.to_string())
    };
    let value: Value = serde_json::from_slice(bytes).map_err(bad)?;
    // Asked first, so that a later layout is called by its name and not by its first unknown field.
    let version = &value["version"];
    if *version != VERSION {
        return Err(Error::input(Place::item("version"), VERSION.to_string(), version.to_string())
            .hint("the checkpoint is of another release"));
    }
    serde_json::from_slice(bytes).map_err(bad)
}

fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(12).collect()
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
