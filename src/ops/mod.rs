//! The ops: a folder each, with the same name in the code, the tests and the benches.
//!
//! `mod.rs` holds what the op computes, what it saves and its backward step; `cpu.rs` the loops. An op checks the shapes
//! it is given and never calls another op.

pub mod activation;
pub mod add;
pub mod attention;
pub mod by_head;
pub mod cast;
pub(crate) mod columns;
pub mod embedding;
pub mod gated;
pub(crate) mod gemm;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod optimizer;
pub mod position_bias;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod scale;
pub(crate) mod simd;
pub(crate) mod wide;

pub use activation::{Activation, activation};
pub use add::add;
pub use attention::{PositionBias, attention};
pub use by_head::{Direction, by_head};
pub use cast::cast;
pub use embedding::{Positions, embedding};
pub use gated::gated;
pub use layer_norm::{add_layer_norm, layer_norm};
pub use linear::linear;
pub use loss::{CrossEntropy, cross_entropy};
pub use position_bias::position_bias;
pub use rms_norm::{add_rms_norm, rms_norm};
pub use rope::{Pairing, rope};
pub use rows::rows;
pub use scale::scale;
