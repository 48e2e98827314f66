//! Language models: opened from disk, run over a [`Layout`] with a prompt in front.
//!
//! A new family of models is a file here that fills a `stack::Stack`, or two of them, and an arm in `Model::load`.

mod cache;
mod config;
mod gpt2;
mod llama;
mod load;
mod options;
mod save;
mod shapes;
mod stack;
mod t5;

pub use cache::{KeyValueCache, Step};
pub use config::{EncoderDecoderConfig, Family, ModelConfig, RopeScaling};
pub use options::{ModelOptions, WeightStorage};
pub use save::MODEL_FILE;
pub use stack::Recompute;

use crate::data::tokenizer::Tokenizer;
use crate::device::{Device, Kind};
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::layout::{EncoderLayout, Layout, PromptPlace};
use crate::ops::{self, CrossEntropy};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::weights::{Matrix, Parameter, Weights, locate::locate};
use load::{Loader, Origin};
use options::{check, check_place};
use stack::{Stack, Stream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A language model, causal or of encoder and decoder, with its tokenizer where there is one.
///
/// ```no_run
/// use softprompt::{Device, Model, ModelOptions};
///
/// let model = Model::open("models/SmolLM2-135M", &Device::cpu(None)?, ModelOptions::default())?;
/// println!("{} layers of width {}", model.config().num_hidden_layers, model.config().hidden_size);
/// # Ok::<(), softprompt::Error>(())
/// ```
#[derive(Debug)]
pub struct Model {
    name: String,
    path: PathBuf,
    device: Device,
    dtype: DType,
    config: ModelConfig,
    encoder: Option<Stack>,
    decoder: Stack,
    head: Arc<Matrix>,
    prompt_place: PromptPlace,
    recompute: Recompute,
    parameters: Vec<Arc<Parameter>>,
    kind: save::Kind,
    tokenizer: Option<Tokenizer>,
    mapped_bytes: usize,
    stored_bytes: usize,
    weights: WeightStorage,
    fingerprint: String,
}

impl Model {
    /// Opens a directory in Hugging Face layout, a `.gguf` file, or a hub id found in the local cache.
    ///
    /// # Errors
    /// [`Error::Input`] for a model that is broken, incomplete, or has a configuration value that is not supported,
    /// which is named.
    pub fn open(model: impl AsRef<Path>, device: &Device, options: ModelOptions) -> Result<Self> {
        check(device, options)?;
        let name = model.as_ref().to_string_lossy().into_owned();
        let path = locate(&name)?;
        let broken_config = "the configuration is damaged, or of a model that softprompt cannot run";
        let broken_tokenizer = "the tokenizer is damaged: copy it again from where the model came from";
        if let Some(seed) = options.init_weights {
            let config =
                ModelConfig::read_json(&path.join("config.json")).map_err(|error| error.or_hint(broken_config))?;
            let file = path.join("tokenizer.json");
            let tokenizer = file.exists().then(|| Tokenizer::from_file(&file)).transpose();
            let tokenizer = tokenizer.map_err(|error| error.or_hint(broken_tokenizer))?;
            let deviation = |name: &str, shape: &[usize]| match config.family {
                Family::T5 | Family::Mt5 => t5::deviation(&config, name, shape),
                Family::Gpt2 => gpt2::deviation(&config, name),
                _ => load::DEVIATION,
            };
            let loader = Loader::new(Origin::Fresh { seed, deviation: &deviation }, device, options);
            let (kind, config) = (save::Kind::HuggingFace, config.clone());
            return device.run(|| Self::load(name, path, kind, config, tokenizer, loader, options));
        }
        let weights = Weights::open(&path)?;
        let config = ModelConfig::read(&path, &weights).map_err(|error| error.or_hint(broken_config))?;
        let tokenizer = Tokenizer::open(&path, &weights).map_err(|error| error.or_hint(broken_tokenizer))?;
        let kind = if weights.gguf().is_some() { save::Kind::Gguf } else { save::Kind::HuggingFace };
        if options.trainable && kind == save::Kind::Gguf {
            let what = match config.family {
                Family::Gpt2 => Some("one of GPT-2"),
                Family::T5 => Some("one of T5"),
                _ => None,
            };
            let what = what.or(weights.find("rope_freqs.weight").map(|_| "one with scaled rotation (rope_freqs)"));
            if let Some(what) = what {
                return Err(Error::input(Place::file(&path), "a GGUF file that can be written as a directory", what)
                    .hint("weights are trained from the model's Hugging Face directory"));
            }
        }
        let loader = Loader::new(Origin::Files(&weights), device, options);
        device
            .run(|| Self::load(name, path, kind, config, tokenizer, loader, options))
            .map_err(|error| error.or_hint("configuration and weights do not belong to the same model"))
    }

    /// A model of the given sizes with random weights, for benches and tests: the same seed, the same weights.
    ///
    /// # Errors
    /// [`Error::Op`] if the sizes contradict each other.
    pub fn random(config: ModelConfig, seed: u64, device: &Device, options: ModelOptions) -> Result<Self> {
        check(device, options)?;
        let (name, path, origin) = ("random".to_string(), PathBuf::from("random"), Origin::Random { seed });
        let loader = Loader::new(origin, device, options);
        device.run(|| Self::load(name, path, save::Kind::Random, config, None, loader, options))
    }

    fn load(
        name: String,
        path: PathBuf,
        kind: save::Kind,
        config: ModelConfig,
        tokenizer: Option<Tokenizer>,
        loader: Loader<'_>,
        options: ModelOptions,
    ) -> Result<Self> {
        let prompt_place = PromptPlace { on: options.prompt_on, mask: options.prompt_mask };
        check_place(prompt_place, &config, &path)?;
        let (mut encoder, decoder, head);
        encoder = None;
        match (config.family, config.encoder_decoder) {
            (_, Some(more)) => {
                let t5 = t5::load(&loader, &config, &more)?;
                (encoder, decoder, head) = (Some(t5.encoder), t5.decoder, t5.head);
            }
            (Family::Gpt2, None) => (decoder, head) = gpt2::load(&loader, &config)?,
            _ => (decoder, head) = llama::load(&loader, &config)?,
        }
        // A GPU counts the weights it holds, and both do of those that are trained; on a CPU others are the mapped file.
        let is_mapped = matches!(loader.device, Device::Cpu(_)) && !options.trainable;
        let stored_bytes = loader.mapped_bytes();
        let mapped_bytes = if is_mapped { stored_bytes } else { 0 };
        let device = loader.device;
        device.count_external(mapped_bytes, Kind::Weights);
        let (device, dtype) = (device.clone(), options.dtype);
        let (fingerprint, recompute) = (loader.fingerprint(), options.recompute);
        let parameters = loader.into_parameters();
        Ok(Self {
            name,
            path,
            device,
            dtype,
            config,
            encoder,
            decoder,
            head,
            prompt_place,
            recompute,
            parameters,
            kind,
            tokenizer,
            mapped_bytes,
            stored_bytes,
            weights: options.weights,
            fingerprint,
        })
    }

    /// The name it was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A hash of its tensors' names, shapes, formats and samples of their bytes: two models that differ have two.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type that its prompts have, and what the optimizer keeps: the one it computes in, or f32 where that is bf16.
    pub fn prompt_dtype(&self) -> DType {
        self.dtype.accumulator()
    }

    /// The type it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its sizes.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its tokenizer, if it came with one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// [`Error::Input`] if it came without one.
    pub fn require_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::input(Place::file(&self.path), "a tokenizer.json beside the model", "none")
                .hint("add one, or give the data as input_ids and target_ids")
        })
    }

    /// The embedding of token `id`, as f64.
    ///
    /// # Errors
    /// [`Error::Op`] if there is no such token.
    pub fn embedding_row(&self, id: u32) -> Result<Vec<f64>> {
        let table = &self.decoder.embedding;
        if id as usize >= table.out_features() {
            return Err(Error::op("embedding", format!("tokens below {}", table.out_features()), id.to_string()));
        }
        let width = table.in_features();
        if let Some(parameter) = table.parameter() {
            return Ok(parameter.value().to_f64_vec()?[id as usize * width..][..width].to_vec());
        }
        let mut row = vec![0f64; width];
        table.widen_row(id as usize, &mut row);
        Ok(row)
    }

    /// The weights that are trained, by their number; none of a frozen model.
    pub fn parameters(&self) -> &[Arc<Parameter>] {
        &self.parameters
    }

    /// Bytes of its tensors as they are stored, those that are tied once.
    pub fn stored_bytes(&self) -> usize {
        self.stored_bytes
    }

    /// How its weights are held.
    pub fn weight_storage(&self) -> WeightStorage {
        self.weights
    }

    /// Changes what is computed again in the backward pass; no bit of a result depends on it.
    pub fn set_recompute(&mut self, recompute: Recompute) {
        self.recompute = recompute;
    }

    /// What is computed again in the backward pass rather than kept.
    pub fn recompute(&self) -> Recompute {
        self.recompute
    }

    /// An empty cache of keys and values for `rows` rows.
    ///
    /// # Errors
    /// [`Error::Device`] if there is too little memory for it.
    pub fn new_cache(&self, rows: usize) -> Result<KeyValueCache> {
        self.device.run(|| Ok(KeyValueCache::new(&self.device, self.dtype, &self.config, rows)))
    }

    /// How a prompt enters it, if it is an encoder–decoder.
    pub fn prompt_place(&self) -> PromptPlace {
        self.prompt_place
    }

    /// The last hidden rows `[scored rows, d]`, after the final norm, of the stream that `layout` describes; in an
    /// encoder–decoder of the decoder's. `prompt` `[all prompt rows, d]` stands first in it, or in the encoder's stream: see
    /// [`Layout`].
    ///
    /// # Errors
    /// [`Error::Input`] for a token that the model does not have or more positions than it has;
    /// [`Error::Op`] if prompt and layout do not fit.
    pub fn hidden(&self, tape: &mut Tape, prompt: &Var, layout: &Layout, step: Option<Step<'_>>) -> Result<Var> {
        self.check(layout)?;
        let prompt = ops::cast(tape, prompt, self.dtype)?;
        let encoded = match (&self.encoder, &layout.encoder) {
            (Some(encoder), Some(layout)) => Some(self.encode(tape, encoder, &prompt, layout)?),
            (None, None) => None,
            (Some(_), None) if step.is_some() => None,
            _ => return Err(Error::op("hidden", "a layout for this kind of model", "one for another")),
        };
        let prompt = match &layout.prompt_index {
            Some(index) => ops::rows(tape, &prompt, &index.as_slice().into())?,
            None => prompt,
        };
        let stream = Stream::of_decoder(layout);
        let hidden = self.decoder.forward(tape, &prompt, &stream, encoded, step, self.recompute)?;
        match self.config.encoder_decoder {
            Some(more) if more.scale_decoder_outputs => {
                ops::scale(tape, hidden, 1.0 / (self.config.hidden_size as f64).sqrt())
            }
            _ => Ok(hidden),
        }
    }

    /// The encoder's rows of the stream that `layout` describes. `prompt` is of the type computed in.
    fn encode(&self, tape: &mut Tape, encoder: &Stack, prompt: &Var, layout: &EncoderLayout) -> Result<Var> {
        let prompt = ops::rows(tape, prompt, &layout.prompt_index.as_slice().into())?;
        encoder.forward(tape, &prompt, &Stream::of_encoder(layout), None, None, self.recompute)
    }

    /// Runs the encoder for sequences that are to be written behind `cache`, which keeps what the decoder reads of it.
    ///
    /// # Errors
    /// As [`Model::hidden`]; [`Error::Op`] for a causal model.
    pub fn encode_into(&self, cache: &mut KeyValueCache, prompt: &Tensor, layout: &EncoderLayout) -> Result<()> {
        let Some(encoder) = &self.encoder else {
            return Err(Error::op("encode_into", "a model with an encoder", "a causal one"));
        };
        self.check_ids(&layout.ids)?;
        self.device.run(|| {
            let tape = &mut Tape::new();
            let prompt = ops::cast(tape, &Var::constant(prompt.clone()), self.dtype)?;
            let encoded = self.encode(tape, encoder, &prompt, layout)?;
            cache.set_cross(self.decoder.cross_keys(&encoded)?);
            Ok(())
        })
    }

    fn check(&self, layout: &Layout) -> Result<()> {
        let place = || Place::file(&self.path);
        let limit = self.config.max_position_embeddings;
        let encoder = layout.encoder.as_ref().map_or(&[][..], |encoder| &encoder.ids);
        [encoder, &layout.ids, &layout.labels].into_iter().try_for_each(|ids| self.check_ids(ids))?;
        let longest = layout.positions.iter().max().map_or(0, |&last| last + 1);
        if longest > limit {
            return Err(Error::input(place(), format!("at most {limit} positions"), longest.to_string())
                .hint("prompt rows and tokens of an example together; shorten one of them"));
        }
        Ok(())
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocabulary = self.config.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(id) => {
                let place = Place::file(&self.path);
                Err(Error::input(place, format!("token ids below {vocabulary}"), id.to_string()))
            }
            None => Ok(()),
        }
    }

    /// Scores the labels of `layout` with the rows that [`Model::hidden`] gave; row `i` counts `scale[i]` in the loss.
    ///
    /// # Errors
    /// [`Error::Op`] if the shapes do not fit.
    pub fn cross_entropy(&self, tape: &mut Tape, hidden: &Var, layout: &Layout, scale: &[f64]) -> Result<CrossEntropy> {
        ops::cross_entropy(tape, hidden, &self.head, &layout.labels, scale)
    }

    /// `ln p(token)` for each of the `wanted` (row, token) pairs, with rows as [`Model::hidden`] gave them.
    ///
    /// # Errors
    /// [`Error::Input`] for a token that the model does not have; [`Error::Op`] if there is no such row.
    pub fn log_probabilities(&self, hidden: &Var, wanted: &[(usize, u32)]) -> Result<Vec<f64>> {
        wanted.iter().try_for_each(|(_, id)| self.check_ids(std::slice::from_ref(id)))?;
        ops::loss::log_probabilities(hidden.tensor(), &self.head, wanted)
    }

    /// The logits `[rows, vocabulary]` of a few hidden rows.
    ///
    /// # Errors
    /// [`Error::Op`] if the shapes do not fit.
    pub fn logits(&self, hidden: &Var) -> Result<Tensor> {
        Ok(ops::linear(&mut Tape::new(), &Var::constant(hidden.tensor().clone()), &self.head, None)?.into_tensor())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.device.uncount_external(self.mapped_bytes, Kind::Weights);
    }
}
