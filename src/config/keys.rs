//! The one table of configuration keys: TOML files, environment variables, flags and their help all come from it.

use toml::Value;

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
    /// A value that depends on other keys: those keys, and cases; the first that is the value of one of them decides.
    By(&'static [&'static str], &'static [(&'static str, &'static str)]),
}

const POSITIVE: Range =
    Range { low: 0.0, includes_low: false, high: f64::MAX, includes_high: true, said: "a number > 0" };
const NOT_NEGATIVE: Range =
    Range { low: 0.0, includes_low: true, high: f64::MAX, includes_high: true, said: "a number ≥ 0" };
const BELOW_ONE: Range =
    Range { low: 0.0, includes_low: true, high: 1.0, includes_high: false, said: "a number ≥ 0 and < 1" };
const UP_TO_ONE: Range =
    Range { low: 0.0, includes_low: false, high: 1.0, includes_high: true, said: "a number > 0 and ≤ 1" };
const SHARE: Range =
    Range { low: 0.0, includes_low: false, high: 1.0, includes_high: false, said: "a number > 0 and < 1" };
const AT_LEAST_ONE: Range =
    Range { low: 1.0, includes_low: true, high: f64::MAX, includes_high: true, said: "a number ≥ 1" };

/// Steps, tokens, rows: no machine has more.
const MANY: u64 = 1 << 40;
/// TOML's integers have a sign.
const SEEDS: u64 = i64::MAX as u64;

use Fallback::{By, Required, Unset, Value as Is};
use Kind::{Bool, Choice, Choices, Integer, Number, Path, Text, Texts};

/// Every key, in the order of the saved file and of the help.
pub const KEYS: &[Key] = &[
    key("model", "PATH", Path, Required, "The model: a Hugging Face directory, a .gguf file, or a cached hub id"),
    key(
        "method",
        "prompt|full|pretrain",
        Choice(&["prompt", "full", "pretrain"]),
        Is("prompt"),
        "What is trained: prompt; full: every weight, on the same rows; pretrain: every weight, on texts",
    ),
    key(
        "init_weights",
        "SEED",
        Integer(0, SEEDS),
        Unset,
        "Begin full or pretrain with fresh weights from this seed; of the model only configuration and tokenizer are read",
    ),
    key("output_dir", "DIR", Path, Required, "Where prompt, checkpoints, metrics and this configuration go"),
    key("train_file", "FILE", Path, Required, "Training rows: .jsonl, .csv or .tsv; to pretrain, texts, also .txt"),
    key("eval_file", "FILE", Path, Unset, "Held-out rows, in the same form as train_file"),
    key(
        "eval_fraction",
        "X",
        Number(BELOW_ONE),
        Is("0"),
        "The part of train_file to hold out instead of eval_file; 0 is none",
    ),
    key(
        "template",
        "TEXT",
        Kind::Template,
        Unset,
        "The input's text, as in \"{text} Topic:\"; unset: the field `input`",
    ),
    key("target", "TEXT", Kind::Template, Unset, "The target's text, as in \"{label}\"; unset: the field `target`"),
    key("separator", "TEXT", Text, Is(" "), "Put between input and target where neither has white space there"),
    key(
        "append_eos",
        "BOOL",
        Bool,
        Unset,
        "Whether the end id follows every target made from text; unset: if the model is an encoder–decoder",
    ),
    key(
        "max_length",
        "N",
        Integer(1, MANY),
        Is("512"),
        "The most tokens of input and target together, prompt rows not counted; of the input of an encoder–decoder; to \
         pretrain, the tokens of an example",
    ),
    key(
        "max_target_length",
        "N",
        Integer(1, MANY),
        Unset,
        "The most tokens of a target of an encoder–decoder, on its decoder; unset: 512",
    ),
    key(
        "on_long",
        "error|truncate|skip",
        Choice(&["error", "truncate", "skip"]),
        Is("error"),
        "What to do with longer rows; truncate cuts the start of the input",
    ),
    key(
        "objective",
        "next_token|span_corruption|prefix_lm",
        Choice(&["next_token", "span_corruption", "prefix_lm"]),
        Is("next_token"),
        "What pretrain teaches: next_token, of causal models; span_corruption or prefix_lm, of encoder-decoders",
    ),
    key("noise_density", "X", Number(SHARE), Is("0.15"), "The share of tokens that span_corruption cuts out"),
    key(
        "mean_noise_span_length",
        "X",
        Number(AT_LEAST_ONE),
        Is("3"),
        "The mean length in tokens of the spans that span_corruption cuts out",
    ),
    key(
        "prefix_cut",
        "uniform|middle",
        Choice(&["uniform", "middle"]),
        Is("uniform"),
        "Where prefix_lm cuts a piece of text: uniform, anywhere with the same chance, or middle",
    ),
    key(
        "corruptions",
        "N",
        Integer(1, 1 << 20),
        Is("1"),
        "Examples made of each piece of train_file by span_corruption or prefix_lm, each another; an epoch has all of them",
    ),
    key("labels", "LIST", Texts, Is(""), "The labels to rank; empty: those found in the data"),
    key("num_virtual_tokens", "N", Integer(1, 1 << 20), Is("20"), "The prompt's length in rows"),
    key(
        "prompt_on",
        "encoder|decoder|both",
        Choice(&["encoder", "decoder", "both"]),
        Is("encoder"),
        "Where an encoder–decoder's prompt stands: encoder, decoder, or both, with as many rows on each",
    ),
    key(
        "prompt_mask",
        "full|prompt_only",
        Choice(&["full", "prompt_only"]),
        Is("full"),
        "What prompt rows on the encoder see: full: the input too; prompt_only: each other, so that all examples share them",
    ),
    key(
        "prompt_tuning_init",
        "HOW",
        Choice(&["sample_vocab", "text", "class_labels", "uniform", "random", "file"]),
        Is("sample_vocab"),
        "Where the first prompt comes from: sample_vocab, text, class_labels, uniform, random or file",
    ),
    key(
        "prompt_tuning_init_text",
        "TEXT",
        Text,
        Unset,
        "The text whose embeddings begin the prompt, for prompt_tuning_init = text",
    ),
    key("prompt_init_file", "FILE", Path, Unset, "The prompt to begin with, for prompt_tuning_init = file"),
    key(
        "init_top_k",
        "N",
        Integer(1, MANY),
        Is("5000"),
        "How many of the first vocabulary entries sample_vocab draws from",
    ),
    key("init_range", "X", Number(POSITIVE), Is("0.5"), "uniform draws from -X to X"),
    key("optim", "adamw|adafactor", Choice(&["adamw", "adafactor"]), Is("adamw"), "The optimizer"),
    key(
        "learning_rate",
        "X",
        Number(POSITIVE),
        By(&["method", "optim"], &[("full", "5e-5"), ("pretrain", "5e-4"), ("adamw", "0.01"), ("adafactor", "0.3")]),
        "The learning rate's peak; unset: 0.01 for adamw, 0.3 for adafactor, 5e-5 for full, 5e-4 for pretrain",
    ),
    key("adam_beta1", "X", Number(BELOW_ONE), Is("0.9"), "AdamW's decay of the mean gradient"),
    key("adam_beta2", "X", Number(BELOW_ONE), Is("0.999"), "AdamW's decay of the mean squared gradient"),
    key("adam_epsilon", "X", Number(POSITIVE), Is("1e-8"), "Added to AdamW's denominator"),
    key(
        "weight_decay",
        "X",
        Number(NOT_NEGATIVE),
        By(&["optim"], &[("adamw", "0"), ("adafactor", "1e-5")]),
        "Decoupled weight decay; unset: 0 for adamw, 1e-5 for adafactor",
    ),
    key("adafactor_decay_rate", "X", Number(UP_TO_ONE), Is("0.8"), "Adafactor's exponent of the second moment's decay"),
    key(
        "adafactor_clip_threshold",
        "X",
        Number(POSITIVE),
        Is("1"),
        "The root mean square at which Adafactor clips an update",
    ),
    key("adafactor_epsilon", "X", Number(POSITIVE), Is("1e-30"), "Added to Adafactor's squared gradient"),
    key(
        "lr_scheduler_type",
        "constant|linear|cosine",
        Choice(&["constant", "linear", "cosine"]),
        Is("constant"),
        "How the learning rate goes on after the warm-up",
    ),
    key("warmup_steps", "N", Integer(0, MANY), Is("0"), "Steps in which the learning rate rises from 0 to its peak"),
    key(
        "max_grad_norm",
        "X",
        Number(NOT_NEGATIVE),
        Is("0"),
        "The gradient's norm above which it is scaled down; 0 is off",
    ),
    key("per_device_train_batch_size", "N", Integer(1, 1 << 20), Is("8"), "Examples in a forward and backward pass"),
    key("per_device_eval_batch_size", "N", Integer(1, 1 << 20), Is("32"), "Examples in an evaluation's pass"),
    key("gradient_accumulation_steps", "N", Integer(1, 1 << 20), Is("1"), "Passes whose gradients make one step"),
    key("max_steps", "N", Integer(1, MANY), Unset, "Stop after so many steps, whatever num_train_epochs says"),
    key(
        "num_train_epochs",
        "X",
        Number(POSITIVE),
        Is("3"),
        "How often to go through the training rows; may be a fraction",
    ),
    key("eval_steps", "N", Integer(1, MANY), Unset, "Steps between evaluations; unset: at the end of every epoch"),
    key("logging_steps", "N", Integer(1, MANY), Is("10"), "Steps between lines of metrics"),
    key("save_steps", "N", Integer(1, MANY), Is("500"), "Steps between checkpoints; one is always written at the end"),
    key("early_stopping_patience", "N", Integer(1, MANY), Unset, "Stop after so many evaluations without a better one"),
    key(
        "metric_for_best_model",
        "METRIC",
        Choice(&["loss", "accuracy", "balanced_accuracy", "macro_f1", "exact_match"]),
        Is("loss"),
        "What makes a checkpoint the best: loss, accuracy, balanced_accuracy, macro_f1 or exact_match",
    ),
    key("seed", "N", Integer(0, SEEDS), Is("0"), "The seed of initialisation, order and split"),
    key("device", "DEVICE", Text, Is("cpu"), "Where to compute: cpu, cuda (the first GPU) or cuda:N"),
    key(
        "dtype",
        "f32|f64|bf16",
        Choice(&["f32", "f64", "bf16"]),
        Is("f32"),
        "The type to compute in: f32, f64 (cpu only) or bf16 (cuda only)",
    ),
    key("threads", "N", Integer(1, 4096), Unset, "CPU threads; unset: one a core. The result does not depend on it"),
    key(
        "weights",
        "mapped|widened",
        Choice(&["mapped", "widened"]),
        Is("mapped"),
        "mapped reads weights from the file as they are stored; widened keeps a copy in dtype: faster, more memory",
    ),
    key(
        "recompute",
        "none|mlp|layer|auto",
        Choice(&["none", "mlp", "layer", "auto"]),
        Is("none"),
        "What is computed again in the backward pass rather than kept; auto: as little as fits into memory_limit",
    ),
    key(
        "memory_limit",
        "BYTES",
        Text,
        Unset,
        "The most memory that a step may need, as 8GiB or 500MB; what is predicted to need more is refused beforehand",
    ),
    key(
        "resume",
        "BOOL|PATH",
        Kind::BoolOrPath,
        Is("false"),
        "Go on from output_dir's last checkpoint (true) or from this one",
    ),
    key(
        "report_to",
        "LIST",
        Choices(&["jsonl", "tensorboard"]),
        Is("jsonl,tensorboard"),
        "The forms to write metrics in",
    ),
];

const fn key(name: &'static str, value_name: &'static str, kind: Kind, fallback: Fallback, help: &'static str) -> Key {
    Key { name, help, value_name, kind, fallback }
}

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
