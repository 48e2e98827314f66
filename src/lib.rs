//! Soft prompt tuning of frozen language models: only the work the prompt's gradient needs.

pub mod account;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod dtype;
pub mod error;
pub mod eval;
pub mod flops;
pub mod generate;
pub mod indices;
pub mod inspect;
pub mod layout;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod plot;
pub mod prompt;
pub mod step;
pub mod storage;
pub mod tape;
pub mod tensor;
pub mod tensorfile;
pub mod train;
pub mod values;
pub mod weights;

pub use device::Device;
pub use dtype::DType;
pub use error::{Error, Result};
pub use models::{Model, ModelConfig, ModelOptions, WeightStorage};
pub use step::{Batch, Loss, LossAndGrad, LossAndWeightGrads};
pub use tensor::Tensor;
