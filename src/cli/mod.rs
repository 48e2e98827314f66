//! The command line: a file a command, and what they share.
//!
//! Results go to stdout, progress and errors to stderr. The exit code is the error's group, see
//! [`crate::Error::exit_code`].

mod doctor;
mod eval;
mod export;
mod generate;
mod gradient;
mod import;
mod inspect;
mod options;
mod train;

use crate::error::{Error, Problem, Result};
use clap::{Args, FromArgMatches};
use serde_json::json;
use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;

/// What a command reads and writes besides its files.
pub(crate) struct Terminal {
    /// Results for machines.
    pub(crate) json: bool,
    /// No progress.
    pub(crate) quiet: bool,
}

impl Terminal {
    /// Prints a result: `json` for machines, `text` for people.
    fn result(&self, json: &serde_json::Value, text: &str) -> Result<()> {
        let line = if self.json { json.to_string() } else { text.trim_end().to_string() };
        writeln!(io::stdout(), "{line}").map_err(|error| Error::io("stdout", "write", error))
    }

    /// Prints a line about what is going on.
    fn note(&self, text: &str) {
        if !self.quiet {
            // Nobody may be listening; the work goes on.
            drop(writeln!(io::stderr(), "{text}"));
        }
    }
}

/// A command: its name, its flags, and what runs it.
struct Command {
    name: &'static str,
    build: fn(clap::Command) -> clap::Command,
    run: fn(&clap::ArgMatches, &Terminal) -> Result<()>,
}

/// A command whose flags are a struct.
macro_rules! derived {
    ($name:literal, $module:ident :: $Args:ident, $about:literal) => {
        Command {
            name: $name,
            build: |command| $module::$Args::augment_args(command.about($about)),
            run: |matches, terminal| {
                let args = $module::$Args::from_arg_matches(matches).map_err(|error| usage(&error))?;
                $module::run(&args, terminal)
            },
        }
    };
}

const COMMANDS: &[Command] = &[
    Command { name: "train", build: train::command, run: train::run },
    derived!("eval", eval::EvalArgs, "Score a prompt on labelled rows, or the model without one"),
    derived!("generate", generate::GenerateArgs, "Continue texts behind a prompt"),
    derived!("gradient", gradient::GradientArgs, "Write one batch's mean loss and prompt gradient"),
    derived!(
        "inspect",
        inspect::InspectArgs,
        "Show what a model, prompt or checkpoint holds, or a prompt's nearest tokens"
    ),
    derived!("export", export::ExportArgs, "Write a prompt in the form of another tool"),
    derived!("import", import::ImportArgs, "Turn a prompt of another tool into one of ours"),
    derived!("doctor", doctor::DoctorArgs, "Report on this machine: devices, speed, caches"),
];

fn command() -> clap::Command {
    let mut command = clap::Command::new("softprompt")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Soft prompt tuning of frozen language models")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "Exit codes: 0 done, 1 a bug, 2 usage, 3 bad configuration, 4 bad model, tokenizer, data or checkpoint, \
             5 diverged, 6 out of memory or device failure, 7 I/O, 130/143 interrupted with a checkpoint saved.",
        );
    let flag = |name: &'static str, help: &'static str| {
        clap::Arg::new(name).long(name).action(clap::ArgAction::SetTrue).help(help)
    };
    for entry in COMMANDS {
        let built = (entry.build)(clap::Command::new(entry.name))
            .arg(flag("json", "Print the result as one line of JSON"))
            .arg(flag("quiet", "Print no progress"));
        command = command.subcommand(built);
    }
    command
}

/// Runs the command line and gives the process's exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => {
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::from(2) };
    let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) else { return ExitCode::from(2) };
    let terminal = Terminal { json: matches.get_flag("json"), quiet: matches.get_flag("quiet") };

    // A library that panics on a broken file is contained and becomes an error: its message is for this place only.
    static MESSAGE: Mutex<String> = Mutex::new(String::new());
    panic::set_hook(Box::new(|info| {
        if let Ok(mut message) = MESSAGE.lock() {
            *message = info.to_string();
        }
    }));
    match panic::catch_unwind(AssertUnwindSafe(|| (entry.run)(matches, &terminal))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        // Whoever read the results has seen enough.
        Ok(Err(Error::Io { path, source, .. }))
            if source.kind() == io::ErrorKind::BrokenPipe && path.as_os_str() == "stdout" =>
        {
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            report(&error, &terminal);
            ExitCode::from(error.exit_code())
        }
        Err(_) => {
            let message = MESSAGE.lock().map(|message| message.clone()).unwrap_or_default();
            drop(writeln!(io::stderr(), "error: this is a bug in softprompt, please report it: {message}"));
            ExitCode::from(1)
        }
    }
}

fn report(error: &Error, terminal: &Terminal) {
    let problem = match error {
        Error::Usage(p) | Error::Config(p) | Error::Input(p) | Error::Diverged(p) | Error::Device(p) => {
            Some(p.as_ref())
        }
        _ => None,
    };
    let text = match problem {
        Some(problem) if !problem.hint.is_empty() => {
            let bare = Problem { hint: String::new(), ..problem.clone() };
            format!("error: {bare}\nhint: {}", problem.hint)
        }
        _ => format!("error: {error}"),
    };
    drop(writeln!(io::stderr(), "{text}"));
    if terminal.json {
        let place = problem.map(|problem| &problem.place);
        let detail = json!({
            "code": error.exit_code(),
            "message": error.to_string(),
            "path": place.and_then(|place| place.path.as_ref()).map(|path| path.display().to_string()),
            "line": place.and_then(|place| place.line),
            "item": place.and_then(|place| place.item.clone()),
            "expected": problem.map(|problem| problem.expected.clone()),
            "got": problem.map(|problem| problem.got.clone()),
            "hint": problem.map(|problem| problem.hint.clone()),
        });
        drop(writeln!(io::stdout(), "{}", json!({ "error": detail })));
    }
}

/// An error of the argument parser as one of ours.
fn usage(error: &clap::Error) -> Error {
    let text = error.to_string();
    let text = text.trim().trim_start_matches("error: ");
    Error::usage(crate::error::Place::default(), "", text)
}

/// Refuses to write over a file, unless told to.
fn refuse_to_overwrite(path: &std::path::Path, force: bool) -> Result<()> {
    if !force && path.exists() && (path.is_file() || path.is_dir()) {
        return Err(Error::usage(crate::error::Place::file(path), "a path where nothing is yet", "something")
            .hint("pass --force to write over it"));
    }
    Ok(())
}
