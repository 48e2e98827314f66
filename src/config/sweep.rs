//! Several configurations from one: the keys that vary, and the values that they take.

use super::key::{Key, Kind, Refused};
use super::keys::KEYS;
use super::layers::{Settings, Source, unknown};
use super::{Resolved, TrainConfig};
use crate::error::Place;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::Path;
use toml::Value;

/// The table of a TOML file that holds what varies.
const TABLE: &str = "sweep";
/// In it, the rows of keys that vary together.
const PAIRED: &str = "paired";
/// More runs than that are a mistake in a list.
const MOST_MEMBERS: usize = 4096;
/// Characters of a value in a name, and of a whole name: a file system takes 255 bytes.
const LONGEST_VALUE: usize = 40;
const LONGEST_NAME: usize = 180;

/// Keys that never vary, and why.
const FIXED: [(&str, &str); 2] =
    [("output_dir", "every member has a directory of its own in output_dir"), ("resume", "all members go on, or none")];

/// Keys that one pass through one model has one value of.
pub const OF_THE_PASS: [&str; 11] = [
    "model",
    "method",
    "init_weights",
    "device",
    "dtype",
    "threads",
    "weights",
    "recompute",
    "memory_limit",
    "prompt_on",
    "prompt_mask",
];

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Sweep {
    /// `key=value,value,…`, or with a JSON array for the values.
    pub lists: Vec<String>,
    /// Whether the lists go together, value by value, rather than each value with each.
    pub zip: bool,
    /// Whether the members are to go through one model together, so that it and its device cannot vary.
    pub is_one_pass: bool,
}

/// One of the configurations.
#[derive(Debug)]
pub struct Member {
    /// Its name: what varies, as a file's name. No two members have the same.
    pub name: String,
    /// The keys that vary, with this member's values; `None` where a value is unset.
    pub overrides: Vec<(&'static str, Option<Value>)>,
    /// Its configuration.
    pub resolved: Resolved,
}

/// Keys that vary together, and the rows of their values.
struct Axis {
    keys: Vec<&'static Key>,
    rows: Vec<Vec<Option<Value>>>,
}

impl TrainConfig {
    /// Resolves as [`TrainConfig::resolve`] does, once for every combination of what `sweep` and the table `[sweep]` of the
    /// file vary. In the table a key has an array of values; `[[sweep.paired]]` are rows of keys that vary together. The
    /// last list varies fastest. Each member's `output_dir` is the directory of its name in the one that was given.
    ///
    /// # Errors
    /// As [`TrainConfig::resolve`]; [`Error::Config`] or [`Error::Usage`] for a key that cannot vary, varies twice, or is
    /// given besides, a value twice, lists to zip of different lengths, and too many members or nothing that varies.
    pub fn resolve_sweep(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
        sweep: &Sweep,
    ) -> Result<Vec<Member>> {
        let mut settings = Settings::new();
        let table = file.map(|path| settings.read_file(path, Some(TABLE))).transpose()?.flatten();
        settings.read_environment(env)?;
        settings.read_flags(flags)?;
        let mut axes = match (file, table) {
            (Some(path), Some((table, line))) => axes_of_table(table, &Place::file(path).at_line(line))?,
            _ => Vec::new(),
        };
        axes.extend(axes_of_lists(sweep)?);
        check(&axes, &settings, sweep.is_one_pass)?;
        let mut names = BTreeSet::new();
        let members = combinations(&axes).into_iter().map(|overrides| {
            let name = distinct(name_of(&axes, &overrides), &mut names);
            member(name, overrides, settings.clone())
        });
        members.collect()
    }
}

fn member(name: String, overrides: Vec<(&'static Key, Option<Value>)>, mut settings: Settings) -> Result<Member> {
    let of_member = |error: Error| error.or_hint(format!("in the member {name}"));
    for (key, value) in &overrides {
        settings.set(key, Ok(value.clone()), Source::Sweep)?;
    }
    if let Some(dir) = settings.value("output_dir").and_then(Value::as_str)
        && let Some(key) = Key::find("output_dir")
    {
        let (dir, source) = (Path::new(dir).join(&name), settings.source("output_dir").clone());
        settings.set(key, Ok(Some(Value::String(dir.to_string_lossy().into_owned()))), source)?;
    }
    let resolved = Resolved::complete(settings).map_err(of_member)?;
    let overrides = overrides.into_iter().map(|(key, value)| (key.name, value)).collect();
    Ok(Member { name, overrides, resolved })
}

/// Every row of every axis with every other, the last axis fastest.
fn combinations(axes: &[Axis]) -> Vec<Vec<(&'static Key, Option<Value>)>> {
    let mut all = vec![Vec::new()];
    for axis in axes {
        let with = |member: &Vec<(&'static Key, Option<Value>)>| {
            let row = |row: &Vec<Option<Value>>| {
                let pairs = axis.keys.iter().copied().zip(row.iter().cloned());
                member.iter().cloned().chain(pairs).collect()
            };
            axis.rows.iter().map(row).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(with).collect();
    }
    all
}

fn check(axes: &[Axis], settings: &Settings, is_one_pass: bool) -> Result<()> {
    let mut seen = BTreeSet::new();
    for key in axes.iter().flat_map(|axis| &axis.keys) {
        let place = || Source::Sweep.place(key);
        if let Some((_, why)) = FIXED.iter().find(|(fixed, _)| *fixed == key.name) {
            return Err(Error::config(place(), "a key that can vary", key.name).hint(*why));
        }
        if is_one_pass && OF_THE_PASS.contains(&key.name) {
            return Err(Error::config(place(), "a key that can vary in one pass through one model", key.name)
                .hint("leave it out, or write jobs of their own with --emit"));
        }
        if !seen.insert(key.name) {
            return Err(Error::config(place(), "each key once", "it twice").hint("give all of its values in one list"));
        }
        if *settings.source(key.name) == Source::Flag {
            return Err(Error::config(place(), format!("either a list or {}", key.flag()), "both")
                .hint(format!("leave out {}", key.flag())));
        }
    }
    let count = axes.iter().try_fold(1usize, |count, axis| count.checked_mul(axis.rows.len()));
    if axes.is_empty() {
        return Err(Error::config(Place::item("sweep"), "at least one key that varies", "none")
            .hint("as in --sweep learning_rate=0.1,0.3 --sweep seed=1,2,3"));
    }
    if count.is_none_or(|count| count > MOST_MEMBERS) {
        let got = count.map_or_else(|| "more than can be counted".to_owned(), |count| count.to_string());
        return Err(Error::config(Place::item("sweep"), format!("at most {MOST_MEMBERS} members"), got)
            .hint("every value goes with every other: shorten a list, or pair lists with --zip"));
    }
    Ok(())
}

/// The key called `name`, which stands at `place`.
fn key_named(name: &str, place: Place) -> Result<&'static Key> {
    Key::find(name).ok_or_else(|| unknown(Error::config, place, name, str::to_owned))
}

fn refused(place: Place, key: &Key, refused: Refused) -> Error {
    let error = Error::config(place, key.expected(), refused.got);
    match refused.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn check_rows(place: Place, rows: &[Vec<Option<Value>>]) -> Result<()> {
    if rows.is_empty() {
        return Err(Error::config(place, "at least one value", "none"));
    }
    match (0..rows.len()).find(|&at| rows[..at].contains(&rows[at])) {
        Some(at) => {
            Err(Error::config(place, "values that differ", format!("the same as number {} and before", at + 1)))
        }
        None => Ok(()),
    }
}

fn axes_of_lists(sweep: &Sweep) -> Result<Vec<Axis>> {
    let axes = sweep.lists.iter().map(|list| {
        let place = Place::item(format!("--sweep {list}"));
        let Some((name, values)) = list.split_once('=') else {
            return Err(Error::usage(place, "key=value,value,…", "no =").hint("as in --sweep seed=1,2,3"));
        };
        let name = name.trim().replace('-', "_");
        let key = key_named(&name, Place::item(format!("--sweep {name}")))?;
        let place = Source::Sweep.place(key);
        let values = values_of(key, values).map_err(|why| refused(place.clone(), key, why))?;
        let rows: Vec<Vec<Option<Value>>> = values.into_iter().map(|value| vec![value]).collect();
        if !sweep.zip {
            check_rows(place, &rows)?;
        }
        Ok(Axis { keys: vec![key], rows })
    });
    let axes = axes.collect::<Result<Vec<Axis>>>()?;
    match (sweep.zip, axes.first()) {
        (true, Some(first)) => zipped(&axes, first.rows.len()).map(|axis| vec![axis]),
        (true, None) => Err(Error::usage(Place::item("--zip"), "lists to pair, by --sweep", "none")),
        _ => Ok(axes),
    }
}

fn zipped(axes: &[Axis], length: usize) -> Result<Axis> {
    if let Some(other) = axes.iter().find(|axis| axis.rows.len() != length) {
        let (first, key) = (axes[0].keys[0].name, other.keys[0]);
        let expected = format!("{length} values, as many as {first} has");
        return Err(Error::usage(Place::item(format!("--sweep {}", key.name)), expected, other.rows.len().to_string())
            .hint("--zip pairs the lists value by value"));
    }
    let keys = axes.iter().flat_map(|axis| axis.keys.iter().copied()).collect();
    let row = |at: usize| axes.iter().flat_map(|axis| axis.rows[at].iter().cloned()).collect();
    let rows: Vec<_> = (0..length).map(row).collect();
    check_rows(Place::item("--zip"), &rows)?;
    Ok(Axis { keys, rows })
}

/// The values of a list: separated by commas, or the items of a JSON array.
fn values_of(key: &Key, text: &str) -> Result<Vec<Option<Value>>, Refused> {
    let text = text.trim();
    if !text.starts_with('[') {
        if matches!(key.kind, Kind::Texts | Kind::Choices(_)) {
            let hint = format!("as in --sweep '{}=[[\"a\",\"b\"],[\"c\",\"d\"]]'", key.name);
            return Err(Refused { got: format!("{text:?}"), hint: Some(hint) });
        }
        return text.split(',').map(|item| key.parse(item.trim())).collect();
    }
    let wrong = |error: serde_json::Error| Refused { got: format!("{text:?}, which is no JSON: {error}"), hint: None };
    let items: Vec<serde_json::Value> = serde_json::from_str(text).map_err(wrong)?;
    let value = |item: serde_json::Value| match item {
        serde_json::Value::String(text) => key.parse(&text),
        serde_json::Value::Array(items) => {
            let text = |item: serde_json::Value| item.as_str().map(|text| Value::String(text.to_owned()));
            let shown = serde_json::Value::Array(items.clone()).to_string();
            let texts: Option<Vec<Value>> = items.into_iter().map(text).collect();
            key.check(Value::Array(texts.ok_or(Refused { got: shown, hint: None })?))
        }
        other => key.parse(&other.to_string()),
    };
    items.into_iter().map(value).collect()
}

/// The axes of the table `[sweep]` at `place`.
fn axes_of_table(table: Value, place: &Place) -> Result<Vec<Axis>> {
    let got = |value: &Value| value.type_str().to_owned();
    let Value::Table(table) = table else {
        return Err(Error::config(place.clone(), "a table, [sweep]", got(&table)));
    };
    let mut axes = Vec::new();
    for (name, value) in table {
        let here = place.clone().of(format!("sweep.{name}"));
        let Value::Array(items) = value else {
            return Err(Error::config(here, "an array of values", got(&value)).hint("as in seed = [1, 2, 3]"));
        };
        if name == PAIRED {
            axes.push(paired(items, place)?);
            continue;
        }
        let key = key_named(&name, here.clone())?;
        let rows =
            items.into_iter().map(|value| Ok(vec![key.check(value).map_err(|why| refused(here.clone(), key, why))?]));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        check_rows(here, &rows)?;
        axes.push(Axis { keys: vec![key], rows });
    }
    Ok(axes)
}

/// The rows `[[sweep.paired]]`, which all have the same keys.
fn paired(items: Vec<Value>, place: &Place) -> Result<Axis> {
    let here = |row: usize| place.clone().of(format!("sweep.{PAIRED}, row {row}"));
    let mut keys: Vec<&'static Key> = Vec::new();
    let mut rows = Vec::new();
    for (at, item) in items.into_iter().enumerate() {
        let row = at + 1;
        let Value::Table(mut table) = item else {
            return Err(Error::config(here(row), "a table of keys, [[sweep.paired]]", item.type_str()));
        };
        if rows.is_empty() {
            // In the order of the table of keys.
            let named = table.keys().map(|name| key_named(name, here(row).of(name))).collect::<Result<Vec<_>>>()?;
            keys = KEYS.iter().filter(|key| named.iter().any(|named| named.name == key.name)).collect();
        }
        let value = |key: &&'static Key| {
            let value = table.remove(key.name).ok_or_else(|| {
                Error::config(here(row), format!("{}, as in row 1", key.name), "nothing")
                    .hint("every row has the same keys")
            })?;
            key.check(value).map_err(|why| refused(here(row).of(key.name), key, why))
        };
        rows.push(keys.iter().map(value).collect::<Result<Vec<_>>>()?);
        if let Some(name) = table.keys().next() {
            return Err(Error::config(here(row), "the keys of row 1", format!("{name} besides"))
                .hint("every row has the same keys"));
        }
    }
    check_rows(place.clone().of(format!("sweep.{PAIRED}")), &rows)?;
    if keys.is_empty() {
        return Err(Error::config(here(1), "at least one key", "none"));
    }
    Ok(Axis { keys, rows })
}

/// What varies, as a file's name: of keys that vary together the first.
fn name_of(axes: &[Axis], overrides: &[(&'static Key, Option<Value>)]) -> String {
    let part = |axis: &Axis| {
        let key = axis.keys[0];
        let value = overrides.iter().find(|(other, _)| other.name == key.name).and_then(|(_, value)| value.as_ref());
        format!("{}={}", key.name, short(key, value))
    };
    axes.iter().map(part).collect::<Vec<_>>().join(",").chars().take(LONGEST_NAME).collect()
}

fn short(key: &Key, value: Option<&Value>) -> String {
    let Some(value) = value else { return "none".to_owned() };
    let text = match value {
        Value::String(path) if key.kind == Kind::Path => {
            Path::new(path).file_stem().map_or_else(|| path.clone(), |stem| stem.to_string_lossy().into_owned())
        }
        Value::Float(x) => format!("{x:?}").trim_end_matches(".0").to_owned(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("+"),
        other => Key::text(other),
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '-' };
    let text: String = text.chars().take(LONGEST_VALUE).map(plain).collect();
    if text.is_empty() { "empty".to_owned() } else { text }
}

/// `name`, with a number where another member has it, in capitals or not: not every file system tells them apart.
fn distinct(name: String, names: &mut BTreeSet<String>) -> String {
    let mut candidate = name.clone();
    let mut number = 1;
    while !names.insert(candidate.to_ascii_lowercase()) {
        number += 1;
        candidate = format!("{name}-{number}");
    }
    candidate
}
