//! What a configuration key is: its names, the values it takes, and how they are read.

use toml::Value;

use super::keys::KEYS;
use crate::data::Template;
use crate::error::Error;

/// One key of the run's configuration.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The name in TOML. The flag is `--` and the name with `-` for `_`; the variable is `SOFTPROMPT_` and the name in
    /// capitals.
    pub name: &'static str,
    /// One sentence for people, with the unit where there is one.
    pub help: &'static str,
    /// What the value is, for a usage line: `N`, `PATH`, `text|random`.
    pub value_name: &'static str,
    /// The values it takes.
    pub kind: Kind,
    /// Its value where no layer gives one.
    pub fallback: Fallback,
}

/// The values a key takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A text with `{field}` in it.
    Template,
    /// A path, taken from the working directory; never empty.
    Path,
    /// True or false.
    Bool,
    /// An integer within the two bounds, both included.
    Integer(u64, u64),
    /// A finite number in a range.
    Number(Range),
    /// One of these words, in any case.
    Choice(&'static [&'static str]),
    /// Distinct texts, none of them empty; as text separated by commas, or a JSON array.
    Texts,
    /// Distinct words among these.
    Choices(&'static [&'static str]),
    /// True, false or a path.
    BoolOrPath,
}

/// A range of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    low: f64,
    includes_low: bool,
    high: f64,
    includes_high: bool,
    said: &'static str,
}

/// A key's value where no layer gives one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fallback {
    /// There is none: the run needs it.
    Required,
    /// It stays unset; the word `none` unsets it in a later layer.
    Unset,
    /// This value, as a flag would write it.
    Value(&'static str),
    /// A value that depends on other keys: those keys, and cases; the first whose words, with `+` between them, are all values
    /// of them decides.
    By(&'static [&'static str], &'static [(&'static str, &'static str)]),
}

pub(super) const POSITIVE: Range =
    Range { low: 0.0, includes_low: false, high: f64::MAX, includes_high: true, said: "a number > 0" };
pub(super) const NOT_NEGATIVE: Range =
    Range { low: 0.0, includes_low: true, high: f64::MAX, includes_high: true, said: "a number ≥ 0" };
pub(super) const BELOW_ONE: Range =
    Range { low: 0.0, includes_low: true, high: 1.0, includes_high: false, said: "a number ≥ 0 and < 1" };
pub(super) const UP_TO_ONE: Range =
    Range { low: 0.0, includes_low: false, high: 1.0, includes_high: true, said: "a number > 0 and ≤ 1" };
pub(super) const SHARE: Range =
    Range { low: 0.0, includes_low: false, high: 1.0, includes_high: false, said: "a number > 0 and < 1" };
pub(super) const AT_LEAST_ONE: Range =
    Range { low: 1.0, includes_low: true, high: f64::MAX, includes_high: true, said: "a number ≥ 1" };

/// Steps, tokens, rows: no machine has more.
pub(super) const MANY: u64 = 1 << 40;
/// TOML's integers have a sign.
pub(super) const SEEDS: u64 = i64::MAX as u64;

impl Key {
    /// The key called `name`.
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// Its flag, `--learning-rate`.
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// Its environment variable, `SOFTPROMPT_LEARNING_RATE`.
    pub fn variable(&self) -> String {
        format!("SOFTPROMPT_{}", self.name.to_ascii_uppercase())
    }

    /// The values it takes, as an error says it.
    pub fn expected(&self) -> String {
        let kind = match self.kind {
            Kind::Text => "a text".to_owned(),
            Kind::Template => "a template such as \"{text} Topic:\"".to_owned(),
            Kind::Path => "a path".to_owned(),
            Kind::Bool => "true or false".to_owned(),
            Kind::Integer(low, MANY | SEEDS) => format!("an integer ≥ {low}"),
            Kind::Integer(low, high) => format!("an integer from {low} to {high}"),
            Kind::Number(range) => range.said.to_owned(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::Texts => "a list of distinct texts, none empty".to_owned(),
            Kind::Choices(words) => format!("a list of distinct words among {}", words.join(", ")),
            Kind::BoolOrPath => "true, false or a path".to_owned(),
        };
        if self.fallback == Fallback::Unset { format!("{kind}, or none") } else { kind }
    }

    /// A value of this key as a flag writes it.
    pub(super) fn text(value: &Value) -> String {
        match value {
            Value::String(text) => text.clone(),
            Value::Float(x) => format!("{x:?}"),
            // A list: JSON, as an item may have a comma in it.
            Value::Array(items) => serde_json::json!(items).to_string(),
            other => other.to_string(),
        }
    }

    /// A value written as text, as flags and variables have it. `None` unsets the key.
    pub(super) fn parse(&self, text: &str) -> Result<Option<Value>, Refused> {
        let value = match self.kind {
            Kind::Bool | Kind::BoolOrPath if matches!(text, "true" | "1") => Value::Boolean(true),
            Kind::Bool | Kind::BoolOrPath if matches!(text, "false" | "0") => Value::Boolean(false),
            Kind::Integer(..) if text != "none" => {
                Value::Integer(text.trim().parse().map_err(|_| Refused::text(text))?)
            }
            Kind::Number(_) if text != "none" => Value::Float(text.trim().parse().map_err(|_| Refused::text(text))?),
            Kind::Texts | Kind::Choices(_) => list(text).ok_or_else(|| Refused::text(text))?,
            _ => Value::String(text.to_owned()),
        };
        self.check(value)
    }

    /// A value of the right type and range, in its one form, from whichever form TOML allows. `None` unsets the key.
    pub(super) fn check(&self, value: Value) -> Result<Option<Value>, Refused> {
        if self.fallback == Fallback::Unset && value.as_str() == Some("none") {
            return Ok(None);
        }
        let refused = Refused { got: shown(&value), hint: None };
        let checked = match (self.kind, value) {
            (Kind::Text, value @ Value::String(_)) => value,
            (Kind::Template, Value::String(text)) => template(text)?,
            (Kind::Path, Value::String(text)) if !text.is_empty() => Value::String(text),
            (Kind::Bool | Kind::BoolOrPath, value @ Value::Boolean(_)) => value,
            (Kind::BoolOrPath, Value::String(text)) if !text.is_empty() => Value::String(text),
            (Kind::Integer(low, high), Value::Integer(n)) if u64::try_from(n).is_ok_and(|n| low <= n && n <= high) => {
                Value::Integer(n)
            }
            (Kind::Number(range), Value::Integer(n)) if range.contains(n as f64) => Value::Float(n as f64),
            (Kind::Number(range), Value::Float(x)) if range.contains(x) => Value::Float(x),
            (Kind::Choice(words), Value::String(text)) => Value::String(one_of(words, &text).ok_or(refused)?),
            (Kind::Texts, Value::Array(items)) => distinct(items, |text| Some(text.to_owned())).ok_or(refused)?,
            (Kind::Choices(words), Value::Array(items)) => {
                distinct(items, |text| one_of(words, text)).ok_or(refused)?
            }
            _ => return Err(refused),
        };
        Ok(Some(checked))
    }
}

/// Why a value was not taken.
#[derive(Debug, PartialEq)]
pub(super) struct Refused {
    pub(super) got: String,
    pub(super) hint: Option<String>,
}

impl Refused {
    fn text(text: &str) -> Self {
        Self { got: format!("{text:?}"), hint: None }
    }
}

impl Range {
    fn contains(&self, x: f64) -> bool {
        let above = if self.includes_low { x >= self.low } else { x > self.low };
        let below = if self.includes_high { x <= self.high } else { x < self.high };
        above && below
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Table(_) => "a table".to_owned(),
        other => other.to_string(),
    }
}

fn template(text: String) -> Result<Value, Refused> {
    match Template::parse(&text) {
        Ok(_) => Ok(Value::String(text)),
        Err(Error::Config(problem)) => Err(Refused { got: problem.got, hint: Some(problem.hint) }),
        Err(other) => Err(Refused { got: other.to_string(), hint: None }),
    }
}

fn one_of(words: &[&str], text: &str) -> Option<String> {
    words.iter().find(|word| word.eq_ignore_ascii_case(text)).map(|&word| word.to_owned())
}

fn distinct(items: Vec<Value>, accept: impl Fn(&str) -> Option<String>) -> Option<Value> {
    let mut texts: Vec<Value> = Vec::with_capacity(items.len());
    for item in items {
        let text = Value::String(accept(item.as_str().filter(|text| !text.is_empty())?)?);
        if texts.contains(&text) {
            return None;
        }
        texts.push(text);
    }
    Some(Value::Array(texts))
}

/// A list as text: a JSON array, or items separated by commas.
fn list(text: &str) -> Option<Value> {
    let text = text.trim();
    let items: Vec<String> = if text.starts_with('[') {
        serde_json::from_str(text).ok()?
    } else if text.is_empty() {
        Vec::new()
    } else {
        text.split(',').map(|item| item.trim().to_owned()).collect()
    };
    Some(Value::Array(items.into_iter().map(Value::String).collect()))
}
