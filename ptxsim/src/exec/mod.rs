//! What instructions do: `alu` on registers alone, `memory`, `warp` between lanes, `matrix` on the tensor cores.

pub(crate) mod access;
pub(crate) mod alu;
mod convert;
pub(crate) mod copy;
pub(crate) mod float;
mod float64;
mod integer;
pub(crate) mod lanes;
pub(crate) mod matrix;
pub(crate) mod memory;
mod rare;
pub(crate) mod tile;
pub(crate) mod warp;
