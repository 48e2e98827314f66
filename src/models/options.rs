//! What a model is opened with, and whether it can be.

use super::{ModelConfig, Recompute};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Place, Result};
use crate::layout::{PromptMask, PromptOn, PromptPlace};
use std::path::Path;

/// How weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightStorage {
    /// As the file stores them, in the memory map; widened panel by panel at every use.
    #[default]
    Mapped,
    /// Widened once to the working type: faster steps, for the memory that `memory()` reports.
    Widened,
}

impl WeightStorage {
    /// The mode of that name: `mapped` or `widened`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "mapped" => Some(Self::Mapped),
            "widened" => Some(Self::Widened),
            _ => None,
        }
    }
}

/// What to open a model with.
#[derive(Debug, Clone, Copy, Default)]
pub struct ModelOptions {
    /// The type that activations are computed in.
    pub dtype: DType,
    /// How weights are held.
    pub weights: WeightStorage,
    /// What is computed again in the backward pass rather than kept.
    pub recompute: Recompute,
    /// Whether weights are parameters: copied into the working type, with gradients and updates, rather than frozen.
    pub trainable: bool,
    /// Where an encoder–decoder's prompt stands.
    pub prompt_on: PromptOn,
    /// What its rows on the encoder see.
    pub prompt_mask: PromptMask,
    /// Begin with fresh weights made from this seed, as for training from scratch: only the configuration and the
    /// tokenizer are read.
    pub init_weights: Option<u64>,
}

/// That the device computes in the type.
pub(super) fn check(device: &Device, options: ModelOptions) -> Result<()> {
    let dtype = options.dtype;
    if device.computes_in(dtype) {
        return Ok(());
    }
    let types = [DType::F32, DType::F64, DType::BF16].into_iter().filter(|&dtype| device.computes_in(dtype));
    let types: Vec<String> = types.map(|dtype| dtype.to_string()).collect();
    let expected = format!("{} on {}", types.join(" or "), device.name());
    Err(Error::config(Place::item("dtype"), expected, dtype.to_string()).hint("give another --dtype or --device"))
}

/// That a causal model was not asked for a prompt on one of its halves.
pub(super) fn check_place(place: PromptPlace, config: &ModelConfig, path: &Path) -> Result<()> {
    if config.is_encoder_decoder() || place == PromptPlace::default() {
        return Ok(());
    }
    let (item, got) = match place.on {
        PromptOn::Encoder => ("prompt_mask", place.mask.name()),
        on => ("prompt_on", on.name()),
    };
    let expected = format!("an encoder–decoder, which {} is not", path.display());
    Err(Error::config(Place::item(item), expected, got).hint("a causal model has its prompt in front: leave this out"))
}
