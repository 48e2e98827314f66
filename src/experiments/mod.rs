//! The experiments of Lester et al. 2021 as plans and results: which runs an experiment is made of, and what their figures
//! come to. Training and scoring are the caller's.

mod plan;
mod results;

pub use plan::{Full, Group, Member, Plan, method_name};
pub use results::{Failure, Output, Results, Row, curve_of, neighbours};
