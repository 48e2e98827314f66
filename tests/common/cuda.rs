//! The GPU of the tests: the stand-in driver of `ptxsim`, with all its checks on, or a real one.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses its own part")]

use ptxsim::standin::{Library, environment_for_children, install};
use softprompt::device::{CudaOptions, Device};
use std::process::Command;
use std::sync::OnceLock;

/// A GPU: the stand-in, or with `SOFTPROMPT_TEST_GPU=1` the machine's first.
pub fn cuda() -> Device {
    // Without a pool the stand-in sees each use of memory that was given back, and each read before a write.
    cuda_with(CudaOptions { pooled: is_real(), ..CudaOptions::default() })
}

/// The same with other options.
pub fn cuda_with(options: CudaOptions) -> Device {
    with_stand_in();
    Device::cuda(options).unwrap()
}

/// Has this process use the stand-in driver, unless the tests run on a real GPU.
pub fn with_stand_in() {
    static STAND_IN: OnceLock<()> = OnceLock::new();
    STAND_IN.get_or_init(|| {
        if !is_real() {
            install(&Library::ALL).unwrap_or_else(|error| panic!("the stand-in driver: {error}"));
        }
    });
}

/// Whether the tests run on a real GPU.
pub fn is_real() -> bool {
    std::env::var_os("SOFTPROMPT_TEST_GPU").is_some_and(|value| value == "1")
}

/// Has a program that is started use the same driver.
pub fn same_driver(command: &mut Command) -> &mut Command {
    if !is_real() {
        let (name, value) = environment_for_children(&Library::ALL).unwrap();
        command.env(name, value);
    }
    command
}

/// Runs this program's test `print_bits` with blocks forward and last first, on two threads and on one; it prints
/// `bits` and a hash, which must be the same.
pub fn assert_order_of_blocks_changes_no_bit() {
    if is_real() {
        eprintln!("SKIPPED: a real GPU chooses the order itself");
        return;
    }
    let run = |reverse: &str, threads: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "print_bits", "--nocapture"]);
        command.env("PTXSIM_REVERSE", reverse).env("PTXSIM_THREADS", threads);
        let output = same_driver(&mut command).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text.lines().find_map(|line| line.split_once("bits ").map(|(_, hash)| hash.to_string())).unwrap()
    };
    let straight = run("0", "2");
    assert_eq!(run("1", "2"), straight, "blocks last first");
    assert_eq!(run("0", "1"), straight, "one thread");
}

/// `Σ (a−b)² / Σ b²`
pub fn squared_error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 = got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum();
    difference / want.iter().map(|x| x * x).sum::<f64>()
}
