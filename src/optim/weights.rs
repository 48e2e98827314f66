//! An optimizer of all weights of a model.

use super::{AdafactorConfig, AdamWConfig, Optimizer, OptimizerConfig, converted};
use crate::device::Kind;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use crate::values::Values;
use crate::weights::Parameter;
use std::sync::Arc;

/// An optimizer for every weight that is trained. Biases and norms' weights do not decay, as in the HF Trainer.
///
/// Weights in bf16 have a copy in f32 that the steps are taken on; the model's own are rounded from it.
#[derive(Debug)]
pub struct WeightOptimizer {
    all: Vec<One>,
}

#[derive(Debug)]
struct One {
    parameter: Arc<Parameter>,
    optimizer: Optimizer,
    /// The parameter in f32, where it is narrower.
    master: Option<Tensor>,
}

impl WeightOptimizer {
    /// A fresh optimizer of `parameters`, before its first step.
    ///
    /// # Errors
    /// [`Error::Config`] for a constant out of range; [`Error::Device`] where there is no memory for the state.
    pub fn new(config: &OptimizerConfig, parameters: &[Arc<Parameter>]) -> Result<Self> {
        let all = parameters.iter().map(|parameter| {
            let config = if parameter.is_decayed() { config.clone() } else { without_decay(config) };
            let value = parameter.value();
            let wide = value.dtype().accumulator();
            let master = (wide != value.dtype()).then(|| converted(value.clone(), wide)).transpose()?;
            if let Some(master) = &master {
                master.retag(Kind::Optimizer);
            }
            let optimizer = Optimizer::new(&config, master.as_ref().unwrap_or(&value))?;
            Ok(One { parameter: Arc::clone(parameter), optimizer, master })
        });
        Ok(Self { all: all.collect::<Result<_>>()? })
    }

    /// Moves the weights one step against `grads`, each times `factor`, at learning rate `lr`. A gradient is let go when its
    /// weight has moved.
    ///
    /// # Errors
    /// [`Error::Op`] where there are not as many gradients as weights, or a shape differs; [`Error::Device`] where a GPU
    /// fails.
    pub fn step(&mut self, grads: Vec<Tensor>, lr: f64, factor: f64) -> Result<()> {
        if grads.len() != self.all.len() {
            let expected = format!("{} gradients", self.all.len());
            return Err(Error::op("WeightOptimizer", expected, grads.len().to_string()));
        }
        for (one, grad) in self.all.iter_mut().zip(grads) {
            let device = grad.device().clone();
            let One { parameter, optimizer, master } = one;
            // In place, as what has been recorded of a step names the memory.
            device.run(|| {
                parameter.update(|value| match master {
                    Some(master) => optimizer.step_weight(master, grad, lr, factor, Some(value)),
                    None => optimizer.step_weight(value, grad, lr, factor, None),
                })
            })?;
        }
        Ok(())
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.all.first().map_or(0, |one| one.optimizer.steps())
    }

    /// Bytes of state, copies in f32 included.
    pub fn state_bytes(&self) -> usize {
        let bytes =
            |one: &One| one.optimizer.state_bytes() + one.master.as_ref().map_or(0, |master| master.buffer_bytes());
        self.all.iter().map(bytes).sum()
    }

    /// Bytes that the state of `parameters` will have.
    pub fn state_bytes_of(config: &OptimizerConfig, parameters: &[Arc<Parameter>]) -> usize {
        let bytes = |parameter: &Arc<Parameter>| {
            let value = parameter.value();
            let wide = value.dtype().accumulator();
            let master = if wide == value.dtype() { 0 } else { value.len() * wide.size() };
            config.state_bytes(value.rows(), value.cols(), wide) + master
        };
        parameters.iter().map(bytes).sum()
    }

    /// The state of the weight of that number, as [`Optimizer::state`] gives it, with `master` where there is a copy in f32.
    ///
    /// # Errors
    /// [`Error::Device`] where a GPU fails.
    pub fn state_of(&self, id: usize) -> Result<Vec<(String, Values)>> {
        let one = &self.all[id];
        let mut state = one.optimizer.state()?;
        if let Some(master) = &one.master {
            state.push((MASTER.to_string(), master.to_values()?));
        }
        Ok(state)
    }

    /// Puts back what [`WeightOptimizer::state_of`] gave; the weight itself is the caller's to put back.
    ///
    /// # Errors
    /// As [`Optimizer::load_state`].
    pub fn load_state_of(&mut self, id: usize, mut state: Vec<(String, Values)>) -> Result<()> {
        let one = &mut self.all[id];
        if let Some(master) = &mut one.master {
            let at = state.iter().position(|(name, values)| name == MASTER && values.len() == master.len());
            let at = at.ok_or_else(|| super::mismatch(MASTER, format!("{} f32 values", master.len()), "others"))?;
            let values = state.remove(at).1;
            *master = Tensor::from_values(master.device(), master.rows(), master.cols(), &values, Kind::Optimizer)?;
        }
        one.optimizer.load_state(&state)
    }
}

const MASTER: &str = "master";

fn without_decay(config: &OptimizerConfig) -> OptimizerConfig {
    match config {
        OptimizerConfig::AdamW(config) => OptimizerConfig::AdamW(AdamWConfig { weight_decay: 0.0, ..config.clone() }),
        OptimizerConfig::Adafactor(config) => {
            OptimizerConfig::Adafactor(AdafactorConfig { weight_decay: 0.0, ..config.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::ops;
    use crate::weights::ParameterPlace;

    #[test]
    fn a_step_is_that_of_one_optimizer_each_and_vectors_do_not_decay() {
        let adamw = AdamWConfig { weight_decay: 0.5, ..AdamWConfig::default() };
        let scaled = AdafactorConfig { weight_decay: 0.1, parameter_scale: Some(1e-3), ..AdafactorConfig::default() };
        let factored = AdafactorConfig { min_dim_factored: 2, ..scaled.clone() };
        for (config, bytes) in [
            (OptimizerConfig::AdamW(adamw), 2 * 6 * 8),
            (OptimizerConfig::Adafactor(scaled), 6 * 8),
            (OptimizerConfig::Adafactor(factored), 6 * 8),
        ] {
            check(&config, bytes);
        }
    }

    fn check(config: &OptimizerConfig, bytes: usize) {
        let device = Device::cpu(Some(2)).unwrap();
        let tensor = |rows, values: &[f64]| {
            Tensor::from_f64(&device, rows, values.len() / rows, DType::F64, values, Kind::Weights).unwrap()
        };
        let parameter = |id: usize, shape: Vec<usize>, value: Tensor| {
            let place = ParameterPlace { name: id.to_string(), shape, rows: 0..value.rows(), cols: 0..value.cols() };
            Arc::new(Parameter::new(id, place, value))
        };
        let (matrix, vector) = (tensor(2, &[1.0, -2.0, 3.0, 0.5]), tensor(1, &[4.0, -1.0]));
        let parameters = [parameter(0, vec![2, 2], matrix.clone()), parameter(1, vec![2], vector.clone())];
        let grads = || vec![tensor(2, &[0.3, -0.1, 0.0, 9.0]), tensor(1, &[-0.2, 0.7])];
        let mut all = WeightOptimizer::new(config, &parameters).unwrap();
        assert_eq!((all.state_bytes(), WeightOptimizer::state_bytes_of(config, &parameters)), (bytes, bytes));
        all.step(grads(), 0.1, 0.25).unwrap();
        all.step(grads(), 0.1, 1.0).unwrap();
        assert_eq!(all.steps(), 2);
        for (index, (mut value, config)) in
            [(matrix, config.clone()), (vector, without_decay(config))].into_iter().enumerate()
        {
            let mut one = Optimizer::new(&config, &value).unwrap();
            for factor in [0.25, 1.0] {
                let mut grad = grads().remove(index);
                ops::optimizer::scale(&mut grad, factor).unwrap();
                one.step(&mut value, &grad, 0.1).unwrap();
            }
            assert_eq!(parameters[index].value().to_f64_vec().unwrap(), value.to_f64_vec().unwrap());
            assert_eq!(all.state_of(index).unwrap(), one.state().unwrap());
        }
        assert!(all.step(Vec::new(), 0.1, 1.0).is_err());
    }
}
