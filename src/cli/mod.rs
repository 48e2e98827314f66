//! The command line: a file a command, and what they share.
//!
//! Results go to stdout, progress and errors to stderr. The exit code is the error's group, see
//! [`crate::Error::exit_code`].

mod bench;
mod doctor;
mod emit;
mod eval;
mod experiment;
mod export;
mod few_shot;
mod generate;
mod gradient;
mod import;
mod inspect;
mod kernels;
mod members;
mod options;
mod prepare;
mod profile;
mod report;
mod sweep;
mod texts;
mod train;

use crate::error::{Error, Place, Problem, Result};
use clap::{Args, FromArgMatches};
use serde_json::json;
use std::borrow::Cow;
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
            // Last, as the flattened structs of flags bring descriptions of their own.
            build: |command| $module::$Args::augment_args(command).about($about).long_about(None),
            run: |matches, terminal| {
                let args = $module::$Args::from_arg_matches(matches).map_err(|error| usage(&error))?;
                $module::run(&args, terminal)
            },
        }
    };
}

const COMMANDS: &[Command] = &[
    Command { name: "train", build: train::command, run: train::run },
    Command { name: "experiment", build: experiment::command, run: experiment::run },
    Command { name: "sweep", build: sweep::command, run: sweep::run },
    derived!("eval", eval::EvalArgs, "Score a prompt on labelled rows, or the model without one"),
    derived!("generate", generate::GenerateArgs, "Continue texts behind a prompt"),
    derived!("gradient", gradient::GradientArgs, "Write one batch's mean loss and prompt gradient"),
    derived!(
        "inspect",
        inspect::InspectArgs,
        "Show what a model, prompt or checkpoint holds, or a prompt's nearest tokens"
    ),
    derived!("report", report::ReportArgs, "Write a page that joins runs: tables, curves, nearest tokens"),
    derived!("export", export::ExportArgs, "Write a prompt in the form of another tool"),
    derived!("import", import::ImportArgs, "Turn a prompt of another tool into one of ours"),
    derived!(
        "bench",
        bench::BenchArgs,
        "Time a training step by its parts, against this machine's limit, and its memory"
    ),
    derived!(
        "profile",
        profile::ProfileArgs,
        "Report the memory of a training step by what it is held for, measured or predicted"
    ),
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
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let matches = match command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => {
            drop(error.print());
            if error.use_stderr() && arguments.iter().any(|argument| argument == "--json") {
                print_json(&usage(&error));
            }
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let Some((name, matches)) = matches.subcommand() else { return ExitCode::from(2) };
    let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) else { return ExitCode::from(2) };
    let terminal = Terminal { json: matches.get_flag("json"), quiet: matches.get_flag("quiet") };
    // A bad value is told with what would be right; the whole list is never far.
    let advised = |error: Error| match error {
        Error::Usage(_) | Error::Config(_) => error.or_hint(format!("see softprompt {name} --help")),
        _ => error,
    };
    ExitCode::from(guarded(&terminal, || (entry.run)(matches, &terminal).map_err(advised)))
}

/// Runs `work`, reports how it failed, and gives the exit code. A panic is a bug: 1.
fn guarded(terminal: &Terminal, work: impl FnOnce() -> Result<()>) -> u8 {
    // A library that panics on a broken file is contained and becomes an error: its message is for this place only.
    static MESSAGE: Mutex<String> = Mutex::new(String::new());
    panic::set_hook(Box::new(|info| {
        if let Ok(mut message) = MESSAGE.lock() {
            let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
            let payload = info.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            *message = format!("{} at {place}", text.unwrap_or("something failed"));
        }
    }));
    let error = match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(_) => {
            let message = MESSAGE.lock().map(|message| message.clone()).unwrap_or_default();
            Error::op("softprompt", "no failure", message)
        }
    };
    if let Error::Io { path, source, .. } = &error
        && source.kind() == io::ErrorKind::BrokenPipe
        && path.as_os_str() == "stdout"
    {
        // Whoever read the results has seen enough.
        return 0;
    }
    // Nobody may be listening; the code says it too.
    drop(writeln!(io::stderr(), "{}", described(&error)));
    if terminal.json {
        print_json(&error);
    }
    error.exit_code()
}

/// What went wrong on one line, what to do about it on the next.
fn described(error: &Error) -> String {
    if let Some(hint) = system_hint(error) {
        return format!("error: {}\nhint: {hint}", printable(&error.to_string()));
    }
    match error.problem() {
        Some(problem) if !problem.hint.is_empty() => {
            let bare = Problem { hint: String::new(), ..problem.clone() };
            format!("error: {}\nhint: {}", printable(&bare.to_string()), printable(&problem.hint))
        }
        _ => {
            let whose = if error.exit_code() == 1 { "this is a bug in softprompt, please report it: " } else { "" };
            format!("error: {whose}{}", printable(&error.to_string()))
        }
    }
}

/// What to do about a refusal of the operating system.
fn system_hint(error: &Error) -> Option<&'static str> {
    let Error::Io { source, .. } = error else { return None };
    Some(match source.kind() {
        io::ErrorKind::StorageFull => "free some space, or write to another disk",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "choose a place that you may write to",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "a part of the path is a file, not a directory",
        io::ErrorKind::IsADirectory => "give the path of a file, not of a directory",
        _ => "the system refused: check the path, the disk and its rights",
    })
}

/// `text` with control characters written out: names in a hostile file must not steer the terminal. Tabs and line breaks
/// stay.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if steers(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

fn print_json(error: &Error) {
    drop(writeln!(io::stdout(), "{}", error_json(error)));
}

fn error_json(error: &Error) -> serde_json::Value {
    let mut problem = error.problem().cloned().unwrap_or_default();
    match error {
        Error::Io { path, action, source } => {
            problem.place = Place::file(path);
            problem.expected = format!("to {action}");
            problem.got = source.to_string();
            problem.hint = system_hint(error).unwrap_or_default().to_owned();
        }
        Error::Op { op, expected, got } => {
            problem.place = Place::item(*op);
            problem.expected.clone_from(expected);
            problem.got.clone_from(got);
        }
        _ => {}
    }
    let place = &problem.place;
    json!({ "error": {
        "code": error.exit_code(),
        "message": error.to_string(),
        "place": place.to_string(),
        "path": place.path.as_ref().map(|path| path.display().to_string()),
        "line": place.line,
        "item": place.item,
        "expected": problem.expected,
        "got": problem.got,
        "hint": problem.hint,
    }})
}

/// An error of the argument parser as one of ours.
fn usage(error: &clap::Error) -> Error {
    let text = error.to_string();
    let text = text.trim().trim_start_matches("error: ");
    Error::usage(Place::default(), "", text)
}

/// Refuses to write over a file, unless told to.
fn refuse_to_overwrite(path: &std::path::Path, force: bool) -> Result<()> {
    if !force && path.exists() && (path.is_file() || path.is_dir()) {
        return Err(Error::usage(Place::file(path), "a path where nothing is yet", "something")
            .hint("pass --force to write over it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Terminal = Terminal { json: false, quiet: true };

    #[test]
    fn the_flags_are_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does_and_not_what_its_flags_do() {
        for (entry, built) in COMMANDS.iter().zip(command().get_subcommands()) {
            let about = built.get_about().map(ToString::to_string).unwrap_or_default();
            let verbs = ["Tune", "Train", "Score", "Continue", "Write", "Show", "Turn", "Time", "Report"];
            assert!(verbs.iter().any(|verb| about.starts_with(verb)), "{}: {about}", entry.name);
            assert!(built.get_long_about().is_none(), "{}", entry.name);
        }
    }

    #[test]
    fn a_panic_is_a_bug_and_a_closed_pipe_is_none() {
        assert_eq!(guarded(&SILENT, || panic!("out of sorts")), 1);
        let closed = |path: &'static str| move || Err(Error::io(path, "write", io::ErrorKind::BrokenPipe.into()));
        assert_eq!(guarded(&SILENT, closed("stdout")), 0);
        assert_eq!(guarded(&SILENT, closed("elsewhere")), 7);
        assert_eq!(guarded(&SILENT, || Err(Error::Interrupted { signal: 2 })), 130);
    }

    #[test]
    fn an_error_is_told_with_its_hint_below_and_without_control_characters() {
        let error = Error::input(Place::file("m").of("a\u{1b}[2J"), "one", "two\r").hint("do this");
        assert_eq!(described(&error), "error: m: a\\u{1b}[2J: expected one, got two\\r\nhint: do this");
        let told = &error_json(&error)["error"];
        assert_eq!(told["code"], 4);
        assert_eq!(told["hint"], "do this");
        assert_eq!(error_json(&Error::io("f", "write", io::ErrorKind::StorageFull.into()))["error"]["place"], "f");
    }
}
