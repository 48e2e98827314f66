//! The kernels' PTX and what ptxas says of it, as `build.rs` found or made them.
#![allow(dead_code, unreachable_pub, reason = "generated whole: tests and `doctor` read what the device does not")]

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
