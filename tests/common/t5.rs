//! Golden cases of encoder–decoders, opened.

use super::{Golden, golden, golden_meta};
use softprompt::layout::{PromptMask, PromptOn};
use softprompt::weights::Parameter;
use softprompt::{Batch, Device, Model, ModelOptions, Tensor};

/// The rows of a case as (input, label), padding removed.
pub fn rows(golden: &Golden, case: &str) -> Vec<(Vec<u32>, Vec<u32>)> {
    let numbers = |name: &str| golden.numbers(&format!("{case}.{name}"));
    let width = |name: &str| golden.shape(&format!("{case}.{name}"))[1];
    let (ids, mask, labels) = (numbers("input_ids"), numbers("attention_mask"), numbers("labels"));
    let inputs = ids.chunks_exact(width("input_ids")).zip(mask.chunks_exact(width("input_ids")));
    let inputs =
        inputs.map(|(ids, mask)| ids.iter().zip(mask).filter(|(_, mask)| **mask == 1.0).map(|(id, _)| *id as u32));
    let labels =
        labels.chunks_exact(width("labels")).map(|row| row.iter().filter(|id| **id >= 0.0).map(|id| *id as u32));
    inputs.zip(labels).map(|(input, label)| (input.collect(), label.collect())).collect()
}

/// The part of the whole tensor in `golden` that `parameter` is.
pub fn part(golden: &Golden, kind: &str, parameter: &Parameter) -> Vec<f64> {
    let place = parameter.place();
    let (values, cols) = (golden.numbers(&format!("{kind}.{}", place.name)), *place.shape.last().unwrap());
    let row = |row: usize| &values[row * cols + place.cols.start..row * cols + place.cols.end];
    place.rows.clone().flat_map(row).copied().collect()
}

pub struct Case {
    pub what: String,
    pub file: Golden,
    pub meta: serde_json::Value,
    pub model: Model,
    pub prompt: Tensor,
    pub batch: Batch,
}

impl Case {
    /// On a CPU.
    pub fn open(name: &str, case: &str, options: ModelOptions) -> Self {
        Self::open_on(&Device::cpu(Some(2)).unwrap(), name, case, options)
    }

    pub fn open_on(device: &Device, name: &str, case: &str, options: ModelOptions) -> Self {
        let folder = golden(name);
        let file = Golden::read(&folder.join("golden.safetensors"));
        let meta = golden_meta(name).unwrap()["cases"][case].clone();
        let prompt_on = PromptOn::named(meta["prompt_on"].as_str().unwrap()).unwrap();
        let prompt_mask = PromptMask::named(meta["prompt_mask"].as_str().unwrap()).unwrap();
        let options = ModelOptions { prompt_on, prompt_mask, ..options };
        let model = Model::open(&folder, device, options).unwrap();
        let values = file.numbers(&format!("{case}.prompt"));
        let prompt = model.prompt_from(file.shape(&format!("{case}.prompt"))[0], &values).unwrap();
        let mut batch = Batch::new();
        for (input, label) in rows(&file, case) {
            batch.push(&input, &label).unwrap();
        }
        Self { what: format!("{name} {case} {}", options.dtype), file, meta, model, prompt, batch }
    }

    pub fn number(&self, key: &str) -> f64 {
        self.meta[key].as_f64().unwrap()
    }
}
