//! The T5 family's memory, by the same rules as [`super::moments`], for an encoder and a decoder.
//!
//! Beside the symbols of [`crate::profile`], with `E = B (P + T − l)` rows of the encoder, `l` labels of an example and
//! `D = B l` rows of the decoder:
//!
//! | kept by a layer | recompute `none` | `mlp` | `layer` |
//! |---|---|---|---|
//! | encoder's attention | `b d e + E (2 k e + 2 q e + h a)` | the same | `E d e` in all |
//! | decoder's attention to itself | the same with `D`; in layer 0 nothing | the same | `D d e` in all |
//! | decoder's attention to the encoder | `D (d + 2 q) e + D h a + 2 E k e`, head by head `D (d + 2 h d) e + D h a` | the same | |
//! | MLP | `E (d + g f) e`, `D (d + g f) e` | `E d e`, `D d e` | |
//!
//! The mask of the encoder is full: prompt rows see the input, so each example has prompt rows of its own, and in its first
//! layer keys and values of all rows are kept. The decoder's rows are the labels, shifted, and carry no gradient before they
//! have seen the encoder's output. What single ops need beside that is not counted. Only the decoder's last layer is kept with `none` whatever the policy.

use super::moments::Moment;
use super::sizes::{MOST_ROWS, Method, Setup, Stream};
use crate::dtype::DType;
use crate::models::{EncoderDecoderConfig, ModelConfig, Recompute};

/// Numbers that the weights are: `V d` for the table, once more for a head of its own, `4 d q` for each attention,
/// `(g + 1) d f` for each MLP, `d` for each norm, and for each stack a bias of attention.
pub(super) fn parameters(config: &ModelConfig, more: &EncoderDecoderConfig) -> u128 {
    let Widths { d, f, g, q, h, v } = Widths::of(config);
    let (encoder, decoder) = (config.num_hidden_layers as u128, more.num_decoder_layers as u128);
    let attention = 4 * d * q + d;
    let mlp = (g + 1) * d * f + d;
    let ends = 2 * (d + more.relative_attention_num_buckets as u128 * h);
    let tables = if config.tie_word_embeddings { v * d } else { 2 * v * d };
    encoder * (attention + mlp) + decoder * (2 * attention + mlp) + ends + tables
}

/// Those of the norms.
pub(super) fn norms(config: &ModelConfig, more: &EncoderDecoderConfig) -> u128 {
    let layers = 2 * config.num_hidden_layers as u128 + 3 * more.num_decoder_layers as u128;
    (layers + 2) * config.hidden_size as u128
}

/// The moments of a step of an encoder–decoder.
pub(super) fn moments(
    setup: &Setup,
    more: &EncoderDecoderConfig,
    stream: &Stream,
    recompute: Recompute,
) -> Vec<Moment> {
    Walk::new(setup, more, stream, recompute).moments()
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

impl Widths {
    fn of(config: &ModelConfig) -> Self {
        let [d, f, g, h, dim, v] = [
            config.hidden_size,
            config.intermediate_size,
            config.mlp_inputs(),
            config.num_attention_heads,
            config.head_dim,
            config.vocab_size,
        ]
        .map(|size| size as u128);
        Self { d, f, g, q: h * dim, h, v }
    }
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
    setup: &'a Setup,
    recompute: Recompute,
    /// Numbers that the weights are, and those of them that are norms.
    numbers: [u128; 2],
    w: Widths,
    prompt: u128,
    examples: u128,
    encoder: Stack,
    decoder: Stack,
    /// Whether the decoder asks of the encoder's rows as they are: see `ops/by_head`.
    by_head: bool,
    e: u128,
    a: u128,
    trains: bool,
}

impl<'a> Walk<'a> {
    fn new(setup: &'a Setup, more: &EncoderDecoderConfig, stream: &Stream, recompute: Recompute) -> Self {
        let config = &setup.config;
        let trains = setup.method == Method::Full;
        let [prompt, examples, labels] = [stream.prompt_rows, stream.examples, stream.scored].map(|rows| rows as u128);
        let prompt = if trains { 0 } else { prompt };
        // A stream's examples have a token more than rows.
        let tokens = stream.longest as u128 + 1;
        let most = MOST_ROWS as u128;
        let encoded = (examples * (prompt + tokens) - labels.min(examples * tokens)).min(most);
        let pairs = labels * encoded / examples.max(1);
        let [rows, asked, seen] = [labels, pairs, encoded].map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        let by_head = !trains && !setup.on_gpu && config.heads().asks_by_head(config.hidden_size, rows, asked, seen);
        Self {
            setup,
            recompute,
            numbers: [parameters(config, more), norms(config, more)],
            w: Widths::of(config),
            prompt,
            examples,
            encoder: Stack { rows: encoded, layers: config.num_hidden_layers as u128, is_decoder: false },
            decoder: Stack { rows: labels, layers: more.num_decoder_layers as u128, is_decoder: true },
            by_head,
            e: setup.dtype.size() as u128,
            a: setup.dtype.accumulator().size() as u128,
            trains,
        }
    }

    /// Trained weights are held in the working type; frozen ones as they are stored, or as a GPU holds them, with the norms
    /// once more.
    fn weights(&self) -> u128 {
        let Self { setup, numbers: [numbers, norms], e, .. } = *self;
        let stored = |numbers: u128| (numbers as f64 * setup.stored_bits / 8.0).round() as u128;
        let wide = (numbers - norms) * e;
        // Biases by distance of both stacks: a table as far as its positions reach.
        let reach = |positions: u128| 2 * positions.next_power_of_two().max(128) - 1;
        let [of_encoder, of_decoder] =
            [self.encoder, self.decoder].map(|stack| reach(stack.rows / self.examples.max(1)));
        let tables = self.w.h * (of_encoder + of_decoder) * self.a;
        let weights = match (self.trains, setup.on_gpu) {
            (true, _) => numbers * e,
            (_, true) => norms * e + if setup.is_direct() { wide } else { stored(numbers - norms) },
            (_, false) => {
                let is_copied = setup.widened && setup.stored_bits != (8 * e) as f64;
                stored(numbers) + norms * e + if is_copied { wide } else { 0 }
            }
        };
        weights + if self.trains { 0 } else { tables }
    }

    fn if_trained(&self, bytes: u128) -> u128 {
        if self.trains { bytes } else { 0 }
    }

    /// Queries, output and their log-sum-exp, of `rows` that ask; in bf16 also the bits that are left out of the output.
    fn asked(&self, rows: u128) -> u128 {
        let low = if self.setup.dtype == DType::BF16 { self.w.q } else { 0 };
        rows * (2 * self.w.q * self.e + self.w.h * self.a + low)
    }

    fn attention_kept(&self, stack: Stack, index: u128) -> u128 {
        let Self { w, e, .. } = self;
        let rows = stack.rows;
        let normed = self.if_trained(rows * w.d * e);
        if !stack.is_decoder {
            let prompts = (self.prompt * self.examples).min(rows);
            let before = if index == 0 && !self.trains { prompts } else { rows };
            return before * w.d * e + 2 * rows * w.q * e + self.asked(rows) + normed;
        }
        let is_constant = index == 0 && !self.trains;
        let of_itself = if is_constant { 0 } else { rows * (w.d + 2 * w.q) * e + self.asked(rows) + normed };
        let input = if is_constant { 0 } else { rows * w.d * e };
        let of_encoded = if self.by_head {
            // Queries and what they find are as wide as the stream, for each head.
            rows * (2 * w.h * w.d * e + w.h * self.a)
        } else {
            self.asked(rows) + 2 * self.encoder.rows * w.q * e
        };
        of_itself + input + of_encoded + normed
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
            false => self.recompute,
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

    fn moments(&self) -> Vec<Moment> {
        let Self { w, e, a, encoder, decoder, numbers: [numbers, _], .. } = *self;
        let weights = self.weights();
        let prompt = self.prompt * w.d * a;
        let optimizer = if self.trains { self.setup.state_of(numbers) } else { 3 * prompt };
        let peak = |name, saved: u128, workspace: u128, gradients: u128| {
            Moment::new(name, [weights, saved, workspace, gradients, optimizer])
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
        let converted = if self.trains && e < a { w.d * w.v.max(w.f).max(w.q) * (a + e) } else { 0 };
        moments.push(peak("optimizer", 0, converted, gradients));
        moments
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Parameters, predict};
    use super::*;
    use crate::device::Kind;

    fn small() -> ModelConfig {
        ModelConfig::named("t5-small").unwrap()
    }

    fn xxl() -> ModelConfig {
        let more = small().encoder_decoder.unwrap();
        ModelConfig {
            hidden_size: 4096,
            intermediate_size: 10_240,
            num_hidden_layers: 24,
            num_attention_heads: 64,
            num_key_value_heads: 64,
            is_gated: true,
            tie_word_embeddings: false,
            encoder_decoder: Some(EncoderDecoderConfig { num_decoder_layers: 24, ..more }),
            ..small()
        }
    }

    fn setup(config: ModelConfig, method: Method) -> Setup {
        Setup { method, on_gpu: true, dtype: DType::BF16, stored_bits: 16.0, ..Setup::new(config, 1) }
    }

    fn stream(method: Method, examples: usize) -> Stream {
        Stream::even(if method == Method::Full { 0 } else { 100 }, examples, 32, 1)
    }

    #[test]
    fn parameters_are_those_that_are_published() {
        let of = |config: &ModelConfig| Parameters::of(config).total;
        assert_eq!(of(&small()), 60_506_624);
        assert_eq!(of(&xxl()), 11_135_332_352);
        assert_eq!(of(&ModelConfig::named("t5-base").unwrap()), 222_903_552);
    }

    #[test]
    fn policies_save_and_weights_cost() {
        // Beside gradients and moments of all weights a few examples do not show.
        for (method, examples) in [(Method::Prompt, 16), (Method::Full, 4096)] {
            let need = |recompute| predict(&setup(xxl(), method), &stream(method, examples), recompute).total();
            let [none, mlp, layer] = Recompute::ALL.map(need);
            assert!(none > mlp && mlp > layer, "{method:?}: {none} {mlp} {layer}");
        }
        let of = |method| predict(&setup(xxl(), method), &stream(method, 1), Recompute::None);
        let (prompt, full) = (of(Method::Prompt), of(Method::Full));
        assert!(full.total() > 16 * 11_135_332_352);
        // And the tables of biases of 64 heads: up to 256 positions on the encoder, and 128 on the decoder.
        assert_eq!(prompt.peak().bytes(Kind::Weights), 2 * 11_135_332_352 + 64 * (511 + 255) * 4);
        assert_eq!(prompt.peak().bytes(Kind::Optimizer), 3 * 100 * 4096 * 4);
        assert_eq!(full.peak().bytes(Kind::Optimizer), 12 * 11_135_332_352);
    }

    #[test]
    fn memory_grows_with_examples_and_never_overflows() {
        let prompt = setup(small(), Method::Prompt);
        let need = |examples| predict(&prompt, &stream(Method::Prompt, examples), Recompute::None).total();
        assert!(need(1) < need(2) && need(2) < need(64));
        let most = 1 << 30;
        let more = small().encoder_decoder.unwrap();
        let huge = ModelConfig {
            hidden_size: most,
            intermediate_size: most,
            num_hidden_layers: most,
            num_attention_heads: most,
            num_key_value_heads: most,
            head_dim: most,
            vocab_size: most,
            encoder_decoder: Some(EncoderDecoderConfig { num_decoder_layers: most, ..more }),
            ..small()
        };
        for method in [Method::Prompt, Method::Full] {
            let many = Stream::even(usize::MAX, usize::MAX, usize::MAX, usize::MAX);
            assert_eq!(predict(&setup(huge.clone(), method), &many, Recompute::None).total(), u64::MAX);
        }
        for layers in [1, 2] {
            let encoder_decoder = Some(EncoderDecoderConfig { num_decoder_layers: layers, ..more });
            let short = ModelConfig { num_hidden_layers: layers, encoder_decoder, ..small() };
            let need = predict(&setup(short, Method::Prompt), &stream(Method::Prompt, 4), Recompute::Layer);
            assert!(need.total() > 0);
        }
    }
}
