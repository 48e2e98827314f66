//! Checkpoints: everything a run needs to go on with the same bits.
//!
//! One directory `checkpoint-<step>`, saved all or nothing:
//!
//! | file | what |
//! |---|---|
//! | `prompt.safetensors` | the prompt, readable by itself ([`PromptFile`]) |
//! | `config.json`, `model.safetensors`, … | or, where weights are trained, the model, which can be opened by itself |
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

impl Fingerprints {
    /// That a run of these may go on as one of `now`; `place` is where they stand.
    ///
    /// # Errors
    /// `Input` naming what changed.
    pub fn expect(&self, now: &Self, place: impl Fn() -> Place) -> Result<()> {
        for (what, then, now, hint) in [
            ("model", &self.model, &now.model, "resume with the model that the run began with"),
            ("data", &self.data, &now.data, "resume with the data that the run began with, unchanged"),
            ("configuration", &self.config, &now.config, "resume with the configuration saved beside the checkpoints"),
        ] {
            if then != now {
                let expected = format!("the {what} of the checkpoint, {}", short(then));
                return Err(Error::input(place(), expected, format!("another {what}, {}", short(now)))
                    .hint(format!("{hint}, or start a new run")));
            }
        }
        Ok(())
    }
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
    /// The prompt that reached it; none where weights are trained, which are too large to be kept twice.
    pub prompt: Option<PromptFile>,
}

/// A run's state after `step` steps. Every float comes back with the bits it had.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Optimizer steps taken.
    pub step: u64,
    /// The place in the data, in the words of whoever feeds it.
    pub cursor: Value,
    /// The prompt, in the element type it is trained in; none where weights are trained.
    pub prompt: Option<PromptFile>,
    /// The optimizer's named buffers; none where weights are trained.
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
    prompt_sha256: Option<String>,
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
        self.save_with(run_dir, |_| Ok(()))
    }

    /// [`Checkpoint::save`] with files besides, written by `others` into the directory that it is given.
    ///
    /// # Errors
    /// As there, and those of `others`.
    pub fn save_with(&self, run_dir: impl AsRef<Path>, others: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let dir = run_dir.as_ref().join(format!("{PREFIX}{}", self.step));
        let state = serde_json::to_vec_pretty(&self.state())
            .map_err(|e| Error::op("Checkpoint::save", "state that JSON can hold", e.to_string()))?;
        let mut files = Vec::new();
        if let Some(prompt) = &self.prompt {
            files.extend([(PROMPT_FILE, prompt.to_bytes()?), (OPTIMIZER_FILE, self.optimizer_bytes()?)]);
        }
        if let Some(best) = self.best.as_ref().and_then(|best| best.prompt.as_ref()) {
            files.push((BEST_FILE, best.to_bytes()?));
        }
        files.push((STATE_FILE, state));
        storage::atomic_dir(&dir, |tmp| {
            others(tmp)?;
            for (name, bytes) in &files {
                storage::atomic_write(tmp.join(name), bytes)?;
            }
            storage::atomic_write(tmp.join(SUMS_FILE), sums_of(tmp)?.as_bytes())
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
        let (mut prompt, mut optimizer) = (None, Vec::new());
        if let Some(want) = &state.prompt_sha256 {
            let found = sums.verified_prompt(PROMPT_FILE)?;
            if found.hash() != *want {
                let got = format!("the prompt of another checkpoint, {}", found.hash());
                return Err(Error::input(Place::file(dir), format!("the prompt {want}"), got));
            }
            let file = dir.join(OPTIMIZER_FILE);
            let held = TensorFile::from_bytes(&sums.verified(OPTIMIZER_FILE)?).map_err(|e| e.in_file(&file))?;
            if let Some(name) = held.others.first() {
                return Err(Error::input(Place::file(file).of(name), "f32 or f64 values", "another type"));
            }
            (prompt, optimizer) = (Some(found), held.tensors.into_iter().map(|t| (t.name, t.values)).collect());
        } else {
            sums.verify_others()?;
        }
        let best = |best: BestState| {
            let prompt = prompt.is_some().then(|| sums.verified_prompt(BEST_FILE)).transpose()?;
            best.into_best(&path, prompt)
        };
        Ok(Self {
            step: state.step,
            cursor: state.cursor,
            optimizer,
            best: state.best.map(best).transpose()?,
            prompt,
            evals_without_gain: state.evals_without_gain,
            history: state.history,
            fingerprints: state.fingerprints,
        })
    }

    /// Checks that a run of `now`, with a prompt of `[rows, cols]` or none, may go on from here.
    ///
    /// # Errors
    /// `Input` naming what changed.
    pub fn expect(&self, now: &Fingerprints, prompt: Option<(usize, usize)>) -> Result<()> {
        let source = self.prompt.as_ref().and_then(PromptFile::source);
        let place = || Place { path: source.map(Path::to_path_buf), ..Place::default() };
        self.fingerprints.expect(now, place)?;
        let then = self.prompt.as_ref().map(|prompt| (prompt.rows, prompt.cols));
        if then != prompt {
            let words = |shape: Option<(usize, usize)>| match shape {
                Some((rows, cols)) => format!("a prompt of {rows} x {cols}"),
                None => "trained weights".to_string(),
            };
            return Err(Error::input(place(), format!("{}, as in the checkpoint", words(then)), words(prompt)));
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
            prompt_sha256: self.prompt.as_ref().map(PromptFile::hash),
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
    fn into_best(self, path: &Path, prompt: Option<PromptFile>) -> Result<Best> {
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

/// `SHA256SUMS` for all files of a directory.
fn sums_of(dir: &Path) -> Result<String> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let entries = entries.map_err(|error| Error::io(dir, "list", error))?;
    let mut names: Vec<String> = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names.iter().map(|name| Ok(format!("{}  {name}\n", storage::file_sha256(dir.join(name))?))).collect()
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
        let line = self.text.lines().find_map(|line| line.strip_suffix(name)?.strip_suffix("  "));
        let want = line.ok_or_else(|| damaged(&self.path, format!("a line for {name}"), "none".to_string()))?;
        let path = self.dir.join(name);
        let bytes = storage::read_limited(&path, MAX_BYTES)?;
        let got = sha256_hex(&bytes);
        if want == got { Ok(bytes) } else { Err(damaged(&path, format!("SHA-256 {want}"), got)) }
    }

    /// Checks all files, without holding them.
    fn verify_others(&self) -> Result<()> {
        for line in self.text.lines() {
            let (want, name) = line.split_once("  ").filter(|(_, name)| is_plain(name)).ok_or_else(|| {
                damaged(&self.path, "lines of a hash and a file's name".to_string(), format!("{line:?}"))
            })?;
            let path = self.dir.join(name);
            let got = storage::file_sha256(&path)?;
            if want != got {
                return Err(damaged(&path, format!("SHA-256 {want}"), got));
            }
        }
        Ok(())
    }

    fn verified_prompt(&self, name: &str) -> Result<PromptFile> {
        drop(self.verified(name)?); // the prompt's own reader checks the rest
        PromptFile::read(self.dir.join(name))
    }
}

fn damaged(path: &Path, expected: String, got: String) -> Error {
    Error::input(Place::file(path), expected, got)
        .hint("the file is truncated or was edited; resume from another checkpoint")
}

/// Whether a name is that of a file in the directory itself.
fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file| file == name)
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
