//! The layers of a configuration and which of them each value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Spanned, Value};

use super::key::{Fallback, Key, Kind, Refused};
use super::keys::KEYS;
use super::nearest;
use crate::error::Place;
use crate::{Error, Result};

/// What every variable of this program begins with.
const PREFIX: &str = "SOFTPROMPT_";

/// Variables of the program that are no key of a run.
pub const OTHER_VARIABLES: &[&str] = &["SOFTPROMPT_CONFIG", "SOFTPROMPT_MATMUL"];

/// Variables that begin so belong to the crate's own build and tests and are passed over.
pub const OTHER_PREFIXES: &[&str] = &["SOFTPROMPT_TEST_", "SOFTPROMPT_REQUIRE_", "SOFTPROMPT_UPDATE_"];

/// Where a key's value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// No layer gave one.
    Default,
    /// A TOML file, and the line in it, counted from 1.
    File(PathBuf, u64),
    /// The environment.
    Environment,
    /// The command line.
    Flag,
    /// The values that a sweep varies.
    Sweep,
}

impl Source {
    /// Where to look for the value of `key`.
    pub fn place(&self, key: &Key) -> Place {
        match self {
            Self::Default => Place::item(key.name),
            Self::File(path, line) => Place::file(path).at_line(*line).of(key.name),
            Self::Environment => Place::item(key.variable()),
            Self::Flag => Place::item(key.flag()),
            Self::Sweep => Place::item(format!("sweep {}", key.name)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment => f.write_str("the environment"),
            Self::Flag => f.write_str("the command line"),
            Self::Sweep => f.write_str("the sweep"),
        }
    }
}

/// A value (`None`: unset) and its source, by key.
#[derive(Clone)]
pub(super) struct Settings(BTreeMap<&'static str, (Option<Value>, Source)>);

impl Settings {
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name)?.0.as_ref()
    }

    pub(super) fn source(&self, name: &str) -> &Source {
        self.0.get(name).map_or(&Source::Default, |(_, source)| source)
    }

    /// Every value, once [`Self::complete`] has filled in the defaults.
    pub(super) fn table(&self) -> toml::Table {
        self.0.iter().filter_map(|(&name, (value, _))| Some((name.to_owned(), value.clone()?))).collect()
    }

    /// Puts `value` over what lower layers gave.
    pub(super) fn set(
        &mut self,
        key: &'static Key,
        value: Result<Option<Value>, Refused>,
        source: Source,
    ) -> Result<()> {
        match value {
            Ok(value) => {
                self.0.insert(key.name, (value, source));
                Ok(())
            }
            Err(refused) => {
                let error = Error::config(source.place(key), key.expected(), refused.got);
                Err(match refused.hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                })
            }
        }
    }

    /// The layer of a TOML file: keys at the top level, no tables. A table that is called `other` is no key; it is given
    /// back with its line.
    pub(super) fn read_file(&mut self, path: &Path, other: Option<&str>) -> Result<Option<(Value, u64)>> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let line = line_at(e.as_bytes(), e.utf8_error().valid_up_to());
            Error::config(Place::file(path).at_line(line), "UTF-8 text", "other bytes")
                .hint("convert the file to UTF-8")
        })?;
        let mut entries: Vec<(Spanned<String>, Spanned<Value>)> =
            parse(&text).map_err(|e| syntax(path, &text, &e))?.0.into_iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut table = None;
        for (name, value) in entries {
            let line = line_at(text.as_bytes(), name.span().start);
            let name = name.into_inner();
            if other == Some(name.as_str()) {
                table = Some((value.into_inner(), line));
                continue;
            }
            let key = Key::find(&name).ok_or_else(|| {
                unknown(Error::config, Place::file(path).at_line(line).of(&name), &name, str::to_owned)
            })?;
            self.set(key, key.check(value.into_inner()), Source::File(path.to_path_buf(), line))?;
        }
        Ok(table)
    }

    /// The layer of the environment. An empty variable counts as one that is not there.
    pub(super) fn read_environment(&mut self, variables: impl Iterator<Item = (String, String)>) -> Result<()> {
        let mut ours: Vec<_> = variables.filter(|(name, _)| name.starts_with(PREFIX)).collect();
        // The system gives them in any order; the first error should not depend on it.
        ours.sort();
        for (variable, text) in ours {
            if OTHER_VARIABLES.contains(&variable.as_str())
                || OTHER_PREFIXES.iter().any(|prefix| variable.starts_with(prefix))
            {
                continue;
            }
            let name = variable[PREFIX.len()..].to_ascii_lowercase();
            let key = Key::find(&name).filter(|key| key.variable() == variable).ok_or_else(|| {
                let show = |name: &str| format!("{PREFIX}{}", name.to_ascii_uppercase());
                unknown(Error::config, Place::item(&variable), &name, show)
            })?;
            if !text.is_empty() {
                self.set(key, key.parse(&text), Source::Environment)?;
            }
        }
        Ok(())
    }

    /// The layer of the command line: names as in TOML, or with `-` for `_`. A list given twice is one list; of
    /// another key the last value holds.
    pub(super) fn read_flags(&mut self, flags: Vec<(String, String)>) -> Result<()> {
        for (flag, text) in flags {
            let name = flag.trim_start_matches("--").replace('-', "_");
            let show = |name: &str| format!("--{}", name.replace('_', "-"));
            let key = Key::find(&name).ok_or_else(|| unknown(Error::usage, Place::item(show(&name)), &name, show))?;
            let mut value = key.parse(&text);
            if let Ok(Some(Value::Array(more))) = &mut value
                && *self.source(key.name) == Source::Flag
                && let Some(Value::Array(before)) = self.value(key.name)
            {
                more.splice(..0, before.iter().cloned());
                value = key.check(Value::Array(std::mem::take(more)));
            }
            self.set(key, value, Source::Flag)?;
        }
        Ok(())
    }

    /// The lowest layer: what no other gave. An error if the run needs it.
    pub(super) fn complete(&mut self) -> Result<()> {
        for key in KEYS {
            if self.0.contains_key(key.name) {
                continue;
            }
            let default = match key.fallback {
                Fallback::Unset => None,
                Fallback::Value(text) => Some(text),
                Fallback::By(others, cases) => {
                    let is_chosen =
                        |word| others.iter().any(|key| self.value(key).and_then(Value::as_str) == Some(word));
                    cases.iter().find(|&&(case, _)| case.split('+').all(is_chosen)).map(|&(_, text)| text)
                }
                Fallback::Required => {
                    let hint =
                        format!("give {}, {} or `{} = …` in the TOML file", key.flag(), key.variable(), key.name);
                    return Err(Error::config(Place::item(key.name), key.expected(), "nothing").hint(hint));
                }
            };
            self.set(key, default.map_or(Ok(None), |text| key.parse(text)), Source::Default)?;
        }
        Ok(())
    }
}

/// Keys and values with their places in the file.
#[derive(Deserialize)]
struct Entries(BTreeMap<Spanned<String>, Spanned<Value>>);

fn parse(text: &str) -> Result<Entries, toml::de::Error> {
    toml::from_str(text)
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let place = Place::file(path);
    let place = match error.span() {
        Some(span) => place.at_line(line_at(text.as_bytes(), span.start)),
        None => place,
    };
    Error::config(place, "TOML", error.message().trim().replace('\n', ", "))
        .hint("a line is key = value, with texts in quotes, and a key stands once")
}

/// The line, counted from 1, of the byte at `offset`.
fn line_at(text: &[u8], offset: usize) -> u64 {
    1 + text[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count() as u64
}

/// The error for a name that is no key; `show` writes a key's name as this layer does.
pub(super) fn unknown(
    make: fn(Place, &'static str, &'static str) -> Error,
    place: Place,
    name: &str,
    show: impl Fn(&str) -> String,
) -> Error {
    let hint = match nearest::key(name) {
        Some(near) => format!("did you mean {}?", show(near)),
        None => "`softprompt train --help` lists the keys".to_owned(),
    };
    make(place, "a known key", "an unknown one").hint(hint)
}

/// Whether a key takes a list, so that its flag may come more than once.
pub fn is_list(key: &Key) -> bool {
    matches!(key.kind, Kind::Texts | Kind::Choices(_))
}
