//! Sums over the rows of a matrix on a GPU, for the ops whose weights' gradients they are. A CPU's are in
//! [`super::wide`].

#[allow(unsafe_code, reason = "kernel launches")]
mod cuda;

pub(crate) use cuda::{Normed, Sum, join, moments, sum};
