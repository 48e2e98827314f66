//! The memory of one training step: predicted from a model's sizes alone, and measured.
//!
//! The prediction is a walk over the *moments* of a step, each a formula of what is held then; the peak is the largest. A
//! formula follows from what the ops allocate, save and free (`ops/*/mod.rs`), and from what the layers let live
//! (`models/stack.rs`). Bytes are those of the device's own account, by [`crate::device::Kind`].
//!
//! | symbol | is | symbol | is |
//! |---|---|---|---|
//! | `n` | layers | `P` | prompt rows, in front of all examples once |
//! | `d` | width of the stream | `B` | examples |
//! | `f` | width inside the MLP | `T` | tokens of an example, label included: T − 1 rows |
//! | `g` | 2 with a gate, else 1 | `S` | rows of the stream, `P + B (T − 1)` |
//! | `q` | query heads × their size | `s` | rows that are scored: label tokens |
//! | `k` | key heads × their size | `b` | rows that carry gradient in front of a layer's attention |
//! | `h` | query heads | `r` | rows that ask in a layer's attention |
//! | `V` | tokens of the vocabulary | `e` | bytes of an element; `a` of a sum: those of f32 for bf16 |
//!
//! In the first layer `b` is P, else S; in the last `r` is s, else S. Where weights are trained `b` is S everywhere and P is 0.
//!
//! | kept by a layer | recompute `none` | `mlp` | `layer` |
//! |---|---|---|---|
//! | attention | `b (d + 2 k) e + r (2 q e + h a)` | the same | `S d e` in all |
//! | MLP | `r (d + g f) e` | `r d e` | |
//! | more, if weights are trained | `S d e + r (d + f) e`, in the last layer `s d e` | `S d e` | |
//!
//! The last layer keeps as with `none`, whatever the policy. The rest is in `moments.rs`, what ops need beside it in `scratch.rs`.

mod architecture;
mod choose;
mod measure;
mod moments;
mod scratch;
mod sizes;
mod t5;

pub use architecture::{Architecture, Need, Plan};
pub use choose::{Choice, choose, largest_batch};
pub use measure::{Measured, measure};
pub use moments::{Moment, Prediction, predict};
pub use sizes::{MOST_ROWS, Method, Parameters, Setup, Stream};
