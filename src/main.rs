//! The command line of `softprompt`.

use std::process::ExitCode;

fn main() -> ExitCode {
    softprompt::cli::main(std::env::args_os())
}
