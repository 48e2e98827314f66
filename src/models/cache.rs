//! Keys and values of rows that have been computed, for rows that come later.

use super::ModelConfig;
use crate::device::{Device, Kind};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::indices::Indices;
use crate::tape::Var;
use crate::tensor::Tensor;

/// Keys and values of every layer, `[rows, key heads · head_dim]` each. Which row belongs to what is the caller's plan:
/// a prompt's rows first, then a stretch for each sequence, say.
#[derive(Debug, Clone)]
pub struct KeyValueCache {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    /// The position of what is in each row.
    positions: Vec<usize>,
    /// Keys and values that each layer of a decoder has of the encoder's rows.
    cross: Vec<(Tensor, Tensor)>,
}

/// A forward pass that writes to a cache and attends to all of it.
#[derive(Debug)]
pub struct Step<'a> {
    /// The cache; the layout's segments name its rows as keys.
    pub cache: &'a mut KeyValueCache,
    /// Where in the cache each row of the stream goes.
    pub placement: &'a [usize],
}

impl KeyValueCache {
    pub(super) fn new(device: &Device, dtype: DType, config: &ModelConfig, rows: usize) -> Self {
        let width = config.num_key_value_heads * config.head_dim;
        let new = || {
            let zeros = || Tensor::zeros(device, rows, width, dtype, Kind::Workspace);
            let layers = config.encoder_decoder.map_or(config.num_hidden_layers, |more| more.num_decoder_layers);
            (0..layers).map(|_| zeros()).collect::<Vec<_>>()
        };
        Self { keys: new(), values: new(), positions: vec![0; rows], cross: Vec::new() }
    }

    /// How many rows there is room for.
    pub fn rows(&self) -> usize {
        self.keys.first().map_or(0, Tensor::rows)
    }

    /// Copies the first `rows` rows of `other`, in every layer.
    ///
    /// # Errors
    /// [`Error::Op`] if either cache has fewer rows.
    pub fn copy_prefix(&mut self, other: &Self, rows: usize) -> Result<()> {
        if rows > self.rows().min(other.rows()) {
            return Err(Error::op("cache", format!("{rows} rows"), format!("{} and {}", self.rows(), other.rows())));
        }
        let all = self.keys.iter_mut().zip(&other.keys).chain(self.values.iter_mut().zip(&other.values));
        for (to, from) in all {
            to.copy_from_prefix(from, rows)?;
        }
        self.positions[..rows].copy_from_slice(&other.positions[..rows]);
        Ok(())
    }

    /// The encoder's rows that it has keys and values of.
    pub fn encoded_rows(&self) -> usize {
        self.cross.first().map_or(0, |(keys, _)| keys.rows())
    }

    /// Takes the keys and values that each layer makes of the encoder's rows.
    pub(super) fn set_cross(&mut self, cross: Vec<(Var, Var)>) {
        self.cross = cross.into_iter().map(|(key, value)| (key.into_tensor(), value.into_tensor())).collect();
    }
}

impl Step<'_> {
    /// Notes the positions of the stream's rows, and gives those of all rows of the cache.
    pub(super) fn note(&mut self, positions: &[usize]) -> Indices {
        for (&row, &position) in self.placement.iter().zip(positions) {
            if let Some(place) = self.cache.positions.get_mut(row) {
                *place = position;
            }
        }
        Indices::from(self.cache.positions.as_slice())
    }

    /// The keys and values of layer `layer` of the encoder's rows, if they are there.
    pub(super) fn cross(&self, layer: usize) -> Option<(Var, Var)> {
        let (keys, values) = self.cache.cross.get(layer)?;
        Some((Var::constant(keys.clone()), Var::constant(values.clone())))
    }

    /// Puts the new rows of layer `layer` in their places and returns the whole cache of the layer.
    pub(super) fn extend(&mut self, layer: usize, keys: &Var, values: &Var) -> Result<(Var, Var)> {
        let place = |cache: &mut Tensor, new: &Tensor, placement: &[usize]| {
            cache.write_rows(placement, new)?;
            Ok(Var::constant(cache.clone()))
        };
        let keys = place(&mut self.cache.keys[layer], keys.tensor(), self.placement)?;
        let values = place(&mut self.cache.values[layer], values.tensor(), self.placement)?;
        Ok((keys, values))
    }
}
