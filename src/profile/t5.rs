//! The T5 family's memory, by the same rules as [`super::moments`]: for an encoder and a decoder whose configuration is at
//! hand. No model of this crate has been measured against it.
//!
//! Beside the symbols of [`crate::profile`], with `E = B (P + T − l)` rows of the encoder, `l` labels of an example and
//! `D = B l` rows of the decoder:
//!
//! | kept by a layer | recompute `none` | `mlp` | `layer` |
//! |---|---|---|---|
//! | encoder's attention | `b d e + E (2 k e + 2 q e + h a)` | the same | `E d e` in all |
//! | decoder's attention to itself | the same with `D`; in layer 0 nothing | the same | `D d e` in all |
//! | decoder's attention to the encoder | `D (d + 2 q) e + D h a + 2 E k e` | the same | |
//! | MLP | `E (d + g f) e`, `D (d + g f) e` | `E d e`, `D d e` | |
//!
//! The mask of the encoder is full: prompt rows see the input, so each example has prompt rows of its own, and in its first
//! layer keys and values of all rows are kept. The decoder's rows are the labels, shifted, and carry no gradient before they
//! have seen the encoder's output. Only the decoder's last layer is kept with `none` whatever the policy.

use super::sizes::Method;
use crate::device::Kind;
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::models::Recompute;
use serde_json::{Map, Value};
use std::path::Path;

/// The sizes of a model of the T5 family, under Hugging Face's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct T5Config {
    /// Width d of both streams.
    pub d_model: usize,
    /// Width inside the MLP.
    pub d_ff: usize,
    /// Elements of a head.
    pub d_kv: usize,
    /// Heads, of queries and of keys.
    pub num_heads: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Layers of the decoder.
    pub num_decoder_layers: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Distances that the bias of attention tells apart.
    pub relative_attention_num_buckets: usize,
    /// Whether the MLP has a gate, as T5 v1.1 has.
    pub is_gated: bool,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
}

/// What a step holds at its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct T5Peak {
    /// The moment of the peak.
    pub name: &'static str,
    bytes: [u128; 5],
}

impl T5Peak {
    /// Bytes held for `kind`.
    pub fn bytes(&self, kind: Kind) -> u64 {
        u64::try_from(self.bytes[kind as usize]).unwrap_or(u64::MAX)
    }

    /// Bytes held in all.
    pub fn total(&self) -> u64 {
        u64::try_from(self.sum()).unwrap_or(u64::MAX)
    }

    fn sum(&self) -> u128 {
        self.bytes.iter().fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }
}

/// What is trained, on how much, and in which type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct T5Step {
    /// A prompt, or all weights.
    pub method: Method,
    /// The type computed in, and in which weights are held.
    pub dtype: DType,
    /// P
    pub prompt_rows: usize,
    /// B
    pub examples: usize,
    /// T: tokens of an example, labels included.
    pub tokens: usize,
    /// Tokens of an example that are predicted.
    pub labels: usize,
    /// What is computed again in the backward pass.
    pub recompute: Recompute,
}

impl T5Config {
    /// Whether a `config.json` is one of this family.
    pub fn is_one(map: &Map<String, Value>) -> bool {
        matches!(map.get("model_type").and_then(Value::as_str), Some("t5" | "mt5"))
    }

    /// Reads a `config.json`, parsed already; `file` is what errors name.
    ///
    /// # Errors
    /// [`Error::Input`] for a size that is missing or that no model has.
    pub fn read(map: &Map<String, Value>, file: &Path) -> Result<Self> {
        let wrong = |key: &str, expected: &str, got: &dyn std::fmt::Display| {
            Error::input(Place::file(file).of(key), expected, got.to_string())
                .hint("the configuration is damaged, or of a model that is no T5")
        };
        let value = |key: &str| map.get(key).filter(|value| !value.is_null());
        let size = |key: &str, default: Option<usize>| {
            let Some(value) = value(key) else {
                return default.ok_or_else(|| wrong(key, "a whole number", &"nothing"));
            };
            let found = value.as_u64().filter(|size| (1..=1 << 24).contains(size));
            found.map(|size| size as usize).ok_or_else(|| wrong(key, "a whole number from 1 to 2^24", value))
        };
        let is_mt5 = map.get("model_type").and_then(Value::as_str) == Some("mt5");
        let mlp = match value("feed_forward_proj") {
            None if is_mt5 => "gated-gelu",
            None => "relu",
            Some(value) => value.as_str().unwrap_or_default(),
        };
        let is_gated = match mlp {
            "relu" | "gelu" => false,
            "gated-gelu" | "gated-silu" | "gated-relu" => true,
            other => {
                return Err(wrong("feed_forward_proj", "relu, gelu, gated-gelu, gated-silu or gated-relu", &other));
            }
        };
        let tie_word_embeddings = match value("tie_word_embeddings") {
            None => !is_mt5,
            Some(value) => value.as_bool().ok_or_else(|| wrong("tie_word_embeddings", "true or false", value))?,
        };
        let num_layers = size("num_layers", None)?;
        Ok(Self {
            d_model: size("d_model", None)?,
            d_ff: size("d_ff", None)?,
            d_kv: size("d_kv", None)?,
            num_heads: size("num_heads", None)?,
            num_layers,
            num_decoder_layers: size("num_decoder_layers", Some(num_layers))?,
            vocab_size: size("vocab_size", None)?,
            relative_attention_num_buckets: size("relative_attention_num_buckets", Some(32))?,
            is_gated,
            tie_word_embeddings,
        })
    }

    /// Numbers that its weights are: `V d` for the table, once more for a head of its own, `4 d q` for each attention,
    /// `(g + 1) d f` for each MLP, `d` for each norm, and for each stack a bias of attention.
    pub fn parameters(&self) -> u128 {
        let Widths { d, f, g, q, h, v, .. } = self.widths();
        let (encoder, decoder) = (self.num_layers as u128, self.num_decoder_layers as u128);
        let attention = 4 * d * q + d;
        let mlp = (g + 1) * d * f + d;
        let ends = 2 * (d + self.relative_attention_num_buckets as u128 * h);
        let tables = if self.tie_word_embeddings { v * d } else { 2 * v * d };
        encoder * (attention + mlp) + decoder * (2 * attention + mlp) + ends + tables
    }

    fn largest(&self) -> u128 {
        let Widths { d, f, q, v, .. } = self.widths();
        d * v.max(f).max(q)
    }

    fn widths(&self) -> Widths {
        let [d, f, h, dim, v] =
            [self.d_model, self.d_ff, self.num_heads, self.d_kv, self.vocab_size].map(|size| size as u128);
        Widths { d, f, g: if self.is_gated { 2 } else { 1 }, q: h * dim, h, v }
    }

    /// What `step` holds at its peak.
    pub fn peak(&self, step: &T5Step) -> T5Peak {
        let moments = Walk::new(self, step).moments();
        // The list is never empty.
        moments.into_iter().max_by_key(T5Peak::sum).unwrap_or(T5Peak { name: "", bytes: [0; 5] })
    }
}

#[derive(Debug, Clone, Copy)]
struct Widths {
    d: u128,
    f: u128,
    g: u128,
    /// Of queries, and of keys and values alike.
    q: u128,
    h: u128,
    v: u128,
}

/// A stack of layers, in symbols.
#[derive(Debug, Clone, Copy)]
struct Stack {
    rows: u128,
    layers: u128,
    is_decoder: bool,
}

/// Logits at once, at most: `ops/loss/cuda.rs`.
const LOGITS: u128 = 4 * 1024 * 1024;
const CHUNK: u128 = 512;
const TRAINED_LOGITS: u128 = 16 * 1024 * 1024;

struct Walk<'a> {
    config: &'a T5Config,
    step: &'a T5Step,
    w: Widths,
    encoder: Stack,
    decoder: Stack,
    e: u128,
    a: u128,
    trains: bool,
}

impl<'a> Walk<'a> {
    fn new(config: &'a T5Config, step: &'a T5Step) -> Self {
        let trains = step.method == Method::Full;
        let prompt = if trains { 0 } else { step.prompt_rows as u128 };
        let (examples, labels) = (step.examples as u128, step.labels.min(step.tokens) as u128);
        let encoded = examples * (prompt + step.tokens as u128 - labels);
        Self {
            config,
            step,
            w: config.widths(),
            encoder: Stack { rows: encoded, layers: config.num_layers as u128, is_decoder: false },
            decoder: Stack { rows: examples * labels, layers: config.num_decoder_layers as u128, is_decoder: true },
            e: step.dtype.size() as u128,
            a: step.dtype.accumulator().size() as u128,
            trains,
        }
    }

    fn if_trained(&self, bytes: u128) -> u128 {
        if self.trains { bytes } else { 0 }
    }

    /// Queries, output and their log-sum-exp, of `rows` that ask; in bf16 also the bits that are left out of the output.
    fn asked(&self, rows: u128) -> u128 {
        let low = if self.step.dtype == DType::BF16 { self.w.q } else { 0 };
        rows * (2 * self.w.q * self.e + self.w.h * self.a + low)
    }

    fn attention_kept(&self, stack: Stack, index: u128) -> u128 {
        let Self { w, e, .. } = self;
        let rows = stack.rows;
        let normed = self.if_trained(rows * w.d * e);
        if !stack.is_decoder {
            let prompts = self.step.prompt_rows as u128 * self.step.examples as u128;
            let before = if index == 0 && !self.trains { prompts } else { rows };
            return before * w.d * e + 2 * rows * w.q * e + self.asked(rows) + normed;
        }
        let is_constant = index == 0 && !self.trains;
        let of_itself = if is_constant { 0 } else { rows * (w.d + 2 * w.q) * e + self.asked(rows) + normed };
        let input = if is_constant { 0 } else { rows * w.d * e };
        of_itself + input + self.asked(rows) + 2 * self.encoder.rows * w.q * e + normed
    }

    fn mlp_kept(&self, stack: Stack) -> u128 {
        let Self { w, e, .. } = self;
        stack.rows * (w.d + w.g * w.f) * e + self.if_trained(stack.rows * (w.d + w.f) * e)
    }

    /// Kept by a layer if nothing is computed again.
    fn whole(&self, stack: Stack, index: u128) -> u128 {
        self.attention_kept(stack, index) + self.mlp_kept(stack)
    }

    fn policy(&self, stack: Stack, index: u128) -> Recompute {
        match stack.is_decoder && index + 1 == stack.layers {
            true => Recompute::None,
            false => self.step.recompute,
        }
    }

    fn kept(&self, stack: Stack, index: u128) -> u128 {
        let input = stack.rows * self.w.d * self.e;
        match self.policy(stack, index) {
            Recompute::None => self.whole(stack, index),
            Recompute::Mlp => self.attention_kept(stack, index) + input,
            Recompute::Layer => input,
        }
    }

    /// Kept by the first `layers` layers of a stack.
    fn all_kept(&self, stack: Stack, layers: u128) -> u128 {
        // Those between the first and the last are alike.
        match layers {
            0 => 0,
            1 => self.kept(stack, 0),
            _ => self.kept(stack, 0) + (layers - 2) * self.kept(stack, 1) + self.kept(stack, layers - 1),
        }
    }

    /// What a layer's backward pass holds beside what the layers before it keep: what it kept or computes again, and at the
    /// MLP, where gradients are widest, those of the stream, of its branch, and of gate and up.
    fn walked(&self, stack: Stack, index: u128) -> (u128, u128) {
        let Self { w, e, .. } = self;
        let weights = self.if_trained((w.g + 1) * w.d * w.f * e);
        (self.whole(stack, index), stack.rows * (2 * w.d + w.g * w.f) * e + weights)
    }

    fn moments(&self) -> Vec<T5Peak> {
        let Self { w, e, a, encoder, decoder, .. } = *self;
        let numbers = self.config.parameters();
        let weights = numbers * e;
        let is_copied = e < a;
        let prompt = self.step.prompt_rows as u128 * w.d * a;
        let optimizer = if self.trains { numbers * a * if is_copied { 3 } else { 2 } } else { 3 * prompt };
        let peak = |name, saved: u128, workspace: u128, gradients: u128| T5Peak {
            name,
            bytes: [weights, saved, workspace, gradients, optimizer],
        };
        // The encoder's last norm keeps its input; its output is the input of every layer of the decoder.
        let encoded = self.all_kept(encoder, encoder.layers) + 2 * encoder.rows * w.d * e;
        let decoded = self.all_kept(decoder, decoder.layers) + decoder.rows * w.d * e;
        let logits = match self.trains {
            true => (TRAINED_LOGITS / w.v).clamp(1, decoder.rows.max(1)) * w.v * 4,
            false => decoder.rows * (LOGITS / decoder.rows.max(1)).max(CHUNK).min(w.v) * 4,
        };
        let head = self.if_trained(w.v * w.d * e);
        let hidden = decoder.rows * w.d * e;
        let mut moments = vec![peak("loss", encoded + decoded, 2 * hidden + logits, head)];
        // Gradients of the encoder's output are summed up while the decoder is walked back.
        let of_encoded = encoder.rows * w.d * e;
        let passed = |stack: Stack, layers: u128| {
            let attentions = if stack.is_decoder { 2 } else { 1 };
            self.if_trained(layers * (attentions * 4 * w.d * w.q + (w.g + 1) * w.d * w.f) * e)
        };
        // In each stack the first that is walked back holds most of what is saved, the last most gradients of weights.
        for (stack, name, before, gradients) in [
            (decoder, "backward: decoder", encoded, head + of_encoded),
            (encoder, "backward: encoder", 0, head + passed(decoder, decoder.layers)),
        ] {
            for index in [stack.layers - 1, stack.layers.saturating_sub(2), 0] {
                let (saved, own) = self.walked(stack, index);
                let after = passed(stack, stack.layers - 1 - index);
                moments.push(peak(name, before + self.all_kept(stack, index) + saved, 0, gradients + own + after));
            }
        }
        let gradients = if self.trains { numbers * e } else { prompt };
        let converted = if self.trains && is_copied { self.config.largest() * (a + e) } else { 0 };
        moments.push(peak("optimizer", 0, converted, gradients));
        moments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> T5Config {
        let map: Map<String, Value> = serde_json::from_str(text).unwrap();
        assert!(T5Config::is_one(&map));
        T5Config::read(&map, Path::new("config.json")).unwrap()
    }

    fn small() -> T5Config {
        config(
            r#"{"model_type": "t5", "d_model": 512, "d_ff": 2048, "d_kv": 64, "num_heads": 8, "num_layers": 6,
                "vocab_size": 32128, "relative_attention_num_buckets": 32}"#,
        )
    }

    fn xxl() -> T5Config {
        config(
            r#"{"model_type": "t5", "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24,
                "num_decoder_layers": 24, "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
                "tie_word_embeddings": false}"#,
        )
    }

    fn step(method: Method, recompute: Recompute, examples: usize) -> T5Step {
        T5Step { method, dtype: DType::BF16, prompt_rows: 100, examples, tokens: 32, labels: 1, recompute }
    }

    #[test]
    fn parameters_are_those_that_are_published() {
        assert_eq!(small().parameters(), 60_506_624);
        assert_eq!(xxl().parameters(), 11_135_332_352);
        let base =
            T5Config { d_model: 768, d_ff: 3072, num_heads: 12, num_layers: 12, num_decoder_layers: 12, ..small() };
        assert_eq!(base.parameters(), 222_903_552);
    }

    #[test]
    fn policies_save_and_weights_cost() {
        let xxl = xxl();
        // Beside gradients and moments of all weights a few examples do not show.
        for (method, examples) in [(Method::Prompt, 16), (Method::Full, 4096)] {
            let need = |recompute| xxl.peak(&step(method, recompute, examples)).total();
            let [none, mlp, layer] = Recompute::ALL.map(need);
            assert!(none > mlp && mlp > layer, "{method:?}: {none} {mlp} {layer}");
        }
        let of = |method| xxl.peak(&step(method, Recompute::None, 1));
        assert!(of(Method::Full).total() > 16 * 11_135_332_352);
        assert_eq!(of(Method::Prompt).bytes(Kind::Weights), 2 * 11_135_332_352);
        assert_eq!(of(Method::Prompt).bytes(Kind::Optimizer), 3 * 100 * 4096 * 4);
        assert_eq!(of(Method::Full).bytes(Kind::Optimizer), 12 * 11_135_332_352);
    }

    #[test]
    fn memory_grows_with_examples_and_never_overflows() {
        let need = |examples| small().peak(&step(Method::Prompt, Recompute::None, examples)).total();
        assert!(need(1) < need(2) && need(2) < need(64));
        let huge = T5Config {
            d_model: 1 << 24,
            d_ff: 1 << 24,
            d_kv: 1 << 24,
            num_heads: 1 << 24,
            num_layers: 1 << 24,
            num_decoder_layers: 1 << 24,
            vocab_size: 1 << 24,
            relative_attention_num_buckets: 1 << 24,
            ..small()
        };
        assert!(huge.parameters() > u128::from(u64::MAX));
        for method in [Method::Prompt, Method::Full] {
            let many = T5Step { prompt_rows: 1 << 20, tokens: 1 << 20, ..step(method, Recompute::None, 1 << 20) };
            assert_eq!(huge.peak(&many).total(), u64::MAX);
        }
        for layers in [1, 2] {
            let short = T5Config { num_layers: layers, num_decoder_layers: layers, ..small() };
            assert!(short.peak(&step(Method::Prompt, Recompute::Layer, 4)).total() > 0);
        }
    }

    #[test]
    fn what_no_model_has_is_refused_by_name() {
        let good = r#"{"model_type": "t5", "d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "num_layers": 1, "vocab_size": 9}"#;
        let map = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
        assert!(T5Config::read(&map(good), Path::new("c")).is_ok());
        for (key, value) in [
            ("d_model", "0"),
            ("d_ff", "-1"),
            ("d_kv", "1.5"),
            ("num_heads", "\"two\""),
            ("num_layers", "4294967296"),
            ("vocab_size", "null"),
            ("feed_forward_proj", "\"swish\""),
            ("feed_forward_proj", "7"),
            ("tie_word_embeddings", "\"yes\""),
        ] {
            let mut broken = map(good);
            broken.insert(key.into(), serde_json::from_str(value).unwrap());
            let error = T5Config::read(&broken, Path::new("c")).unwrap_err();
            assert_eq!(error.exit_code(), 4);
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
