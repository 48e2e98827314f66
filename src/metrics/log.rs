//! `metrics.jsonl`: one JSON object a line, `{"step": 10, "split": "train", "time": 1.7e9, "loss": 0.5, …}`.

use crate::error::{Error, Place, Result};
use crate::storage;
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Keys that every line has, which no metric may be called.
const RESERVED: [&str; 3] = ["step", "split", "time"];
const MAX_BYTES: u64 = 1 << 32;

/// An appending log of metrics; each line is written whole and at once.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Begins an empty log at `path`; what was there is gone.
    ///
    /// # Errors
    /// `Io` where the system refuses.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        storage::atomic_write(&path, b"")?;
        Self::open(path.as_ref())
    }

    /// Goes on with the log at `path` after a checkpoint of step `step`: lines of later steps are dropped, and so is a
    /// last line that was cut short. A log that is not there is begun.
    ///
    /// So that nothing is lost or doubled, whatever belongs to step `step` must be logged before its checkpoint is saved.
    ///
    /// # Errors
    /// `Input` naming the line where one before the last is no JSON object with a `step`; `Io` where the system refuses.
    pub fn resume(path: impl AsRef<Path>, step: u64) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Self::create(path);
        }
        let old = storage::read_limited(path, MAX_BYTES)?;
        let kept = lines_until(&old, step).map_err(|e| e.in_file(path))?;
        if kept.len() != old.len() {
            storage::atomic_write(path, &kept)?;
        }
        Self::open(path)
    }

    /// Appends one line: `metrics` of `split` ("train", "eval", …) after step `step`, with the time in seconds since 1970.
    /// Numbers that are not finite are written as `null`.
    ///
    /// # Errors
    /// `Op` where a metric has a name that every line uses; `Io` where the system refuses.
    pub fn log(&mut self, step: u64, split: &str, metrics: &[(&str, f64)]) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        line.insert("split".into(), split.into());
        line.insert("time".into(), unix_time().into());
        for (name, value) in metrics {
            if RESERVED.contains(name) {
                return Err(Error::op("MetricsLog::log", "metrics with names of their own", *name));
            }
            line.insert((*name).into(), (*value).into());
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, "write", e))
    }

    /// Flushes the log to the disk: to be called before a checkpoint is saved, which relies on the lines up to it.
    ///
    /// # Errors
    /// `Io` where the system refuses.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, "flush", e))
    }

    fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::io(path, "write", e))?;
        Ok(Self { path: path.to_path_buf(), file })
    }
}

/// The time in seconds since 1970; 0 where the clock is before it.
pub(crate) fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn lines_until(bytes: &[u8], step: u64) -> Result<Vec<u8>> {
    let mut kept = Vec::with_capacity(bytes.len());
    let mut lines = bytes.split_inclusive(|&b| b == b'\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let parsed: Option<Value> = serde_json::from_slice(line).ok();
        match parsed.as_ref().and_then(|v| v.get("step")).and_then(Value::as_u64) {
            // A killed process leaves half a line at most, and at the end.
            _ if !line.ends_with(b"\n") => break,
            None if lines.peek().is_none() => break,
            None => {
                let place = Place::default().at_line(index as u64 + 1);
                let got = String::from_utf8_lossy(line).trim().chars().take(80).collect::<String>();
                return Err(Error::input(place, "a JSON object with a \"step\"", got)
                    .hint("mend or remove the line, then resume"));
            }
            Some(at) if at <= step => kept.extend(line),
            Some(_) => {}
        }
    }
    Ok(kept)
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The step it is of.
    pub step: u64,
    /// What was measured: "train", "eval".
    pub split: String,
    /// When it was written, in seconds since 1970.
    pub time: f64,
    /// The metrics by name; one that was not finite is NaN.
    pub metrics: Vec<(String, f64)>,
}

impl Line {
    /// The metric called `name`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(known, _)| known == name).map(|&(_, value)| value)
    }
}

/// The lines of the log at `path`. Half a line at its end, which a killed process leaves, is passed over.
///
/// # Errors
/// `Input` naming the line where one is no JSON object of a step, a split, a time and numbers; `Io` where the system refuses.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Line>> {
    let path = path.as_ref();
    let bytes = storage::read_limited(path, MAX_BYTES)?;
    let whole = bytes.split_inclusive(|&b| b == b'\n').enumerate().filter(|(_, line)| line.ends_with(b"\n"));
    let parse = |(index, line): (usize, &[u8])| {
        parsed(line).ok_or_else(|| {
            let got = String::from_utf8_lossy(line).trim().chars().take(80).collect::<String>();
            let expected = "a JSON object with a step, a split, a time and numbers";
            Error::input(Place::file(path).at_line(index as u64 + 1), expected, got).hint("mend or remove the line")
        })
    };
    whole.map(parse).collect()
}

fn parsed(line: &[u8]) -> Option<Line> {
    let object: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let metrics = object.iter().filter(|(name, _)| !RESERVED.contains(&name.as_str())).map(|(name, value)| {
        let number = if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
        Some((name.clone(), number?))
    });
    Some(Line {
        step: object.get("step")?.as_u64()?,
        split: object.get("split")?.as_str()?.to_owned(),
        time: object.get("time")?.as_f64()?,
        metrics: metrics.collect::<Option<_>>()?,
    })
}

/// The lines of a log, without their times: what two runs of equal results have in common.
///
/// # Errors
/// `Input` where a line is no JSON object; `Io` where the system refuses.
pub fn without_times(path: impl AsRef<Path>) -> Result<Vec<Value>> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
    let parse = |(index, line): (usize, &str)| {
        let place = || Place::file(path).at_line(index as u64 + 1);
        let mut value: Value =
            serde_json::from_str(line).map_err(|e| Error::input(place(), "a JSON object", e.to_string()))?;
        let object = value.as_object_mut().ok_or_else(|| Error::input(place(), "a JSON object", line))?;
        object.shift_remove("time");
        Ok(value)
    };
    text.lines().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(log: &mut MetricsLog, steps: std::ops::Range<u64>) {
        for step in steps {
            log.log(step, "train", &[("loss", 1.0 / (step + 1) as f64), ("lr", 0.1)]).unwrap();
            if step % 2 == 0 {
                log.log(step, "eval", &[("accuracy", 0.25), ("loss", f64::NAN)]).unwrap();
            }
        }
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, cut) = (dir.path().join("whole"), dir.path().join("run/cut"));
        run(&mut MetricsLog::create(&whole).unwrap(), 1..9);
        run(&mut MetricsLog::create(&cut).unwrap(), 1..7);
        let mut torn = OpenOptions::new().append(true).open(&cut).unwrap();
        torn.write_all(b"{\"step\": 4, \"los").unwrap();
        let mut log = MetricsLog::resume(&cut, 4).unwrap();
        run(&mut log, 5..9);
        log.sync().unwrap();
        let lines = without_times(&cut).unwrap();
        assert_eq!(lines, without_times(&whole).unwrap());
        assert_eq!(lines[2], json!({"step": 2, "split": "eval", "accuracy": 0.25, "loss": null}));
        assert_eq!(lines.len(), 12);
    }

    #[test]
    fn lines_are_read_back_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        run(&mut MetricsLog::create(&path).unwrap(), 1..3);
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"step\": 4, \"los").unwrap();
        let lines = read(&path).unwrap();
        assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), [1, 2, 2]);
        assert_eq!((lines[0].metric("loss"), lines[0].metric("none")), (Some(0.5), None));
        assert!(lines[2].split == "eval" && lines[2].metric("loss").is_some_and(f64::is_nan));
        for bad in ["[]", "{\"step\":1}", "{\"step\":1,\"split\":\"eval\",\"time\":1,\"loss\":\"low\"}", "\u{fffd}"] {
            fs::write(&path, format!("{bad}\n")).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.exit_code() == 4 && error.to_string().contains("m.jsonl:1"), "{error}");
        }
    }

    #[test]
    fn each_line_is_there_once_logged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        let mut log = MetricsLog::resume(&path, 0).unwrap();
        log.log(1, "train", &[("loss", 0.1 + 0.2)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(r#"{"step":1,"split":"train","time":"#), "{text}");
        assert!(text.ends_with("\"loss\":0.30000000000000004}\n"), "{text}");
        assert_eq!(log.log(1, "train", &[("time", 1.0)]).unwrap_err().exit_code(), 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.jsonl");
        fs::write(&path, "{\"step\":1}\nnonsense\n{\"step\":2}\n").unwrap();
        let error = MetricsLog::resume(&path, 5).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("m.jsonl:2"), "{error}");
        assert!(fs::read_to_string(&path).unwrap().contains("nonsense"));
    }
}
