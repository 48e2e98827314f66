//! The kernels' PTX, as `build.rs` found or made it.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
