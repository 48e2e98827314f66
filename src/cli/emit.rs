//! A sweep as a list of jobs, for those who train on more than one machine.

use crate::config::Member;
use crate::error::{Error, Place, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The form of a list of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Emitted {
    /// A script for `sbatch`: an array of jobs.
    Slurm,
    /// A manifest for `kubectl apply`: a Job for each member.
    K8s,
    /// An object a line, for other schedulers.
    Jsonl,
}

/// What a job's name may have, by RFC 1123.
const LONGEST_LABEL: usize = 63;

impl Emitted {
    pub(super) const NAMES: [&'static str; 3] = ["slurm", "k8s", "jsonl"];

    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "slurm" => Some(Self::Slurm),
            "k8s" => Some(Self::K8s),
            "jsonl" => Some(Self::Jsonl),
            _ => None,
        }
    }
}

/// The jobs of `members`; containers are made from `image`.
pub(super) fn jobs(form: Emitted, members: &[Member], image: &str) -> Result<String> {
    // No system passes a NUL in an argument.
    for member in members {
        if let Some(flag) = member.resolved.flags().iter().find(|flag| flag.contains('\0')) {
            let key = flag.split('=').next().unwrap_or_default().to_owned();
            return Err(Error::config(Place::item(key), "a text that a command line can hold", "one with a NUL in it"));
        }
    }
    let name = job_name(members);
    Ok(match form {
        Emitted::Slurm => slurm(members, &name),
        Emitted::K8s => members.iter().enumerate().map(|(at, member)| k8s(member, &name, at, image)).collect(),
        Emitted::Jsonl => members.iter().map(|member| format!("{}\n", line(member))).collect(),
    })
}

/// A name for all jobs, after the directory that the members' directories are in.
fn job_name(members: &[Member]) -> String {
    let dir = members.first().and_then(|member| member.resolved.config.output_dir.parent()).and_then(Path::file_name);
    let dir = dir.map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let plain = dir.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    // Room for a number behind it.
    let plain: String = format!("softprompt-{}", plain.collect::<String>()).chars().take(LONGEST_LABEL - 8).collect();
    plain.trim_matches('-').to_owned()
}

fn arguments(member: &Member) -> Vec<String> {
    ["softprompt", "train"].into_iter().map(str::to_owned).chain(member.resolved.flags()).collect()
}

fn line(member: &Member) -> Value {
    let value = |value: &Option<toml::Value>| value.as_ref().map_or(Value::Null, |value| json!(value));
    let overrides: Map<String, Value> =
        member.overrides.iter().map(|(key, of_key)| ((*key).to_owned(), value(of_key))).collect();
    json!({"name": member.name, "argv": arguments(member), "overrides": overrides})
}

fn slurm(members: &[Member], name: &str) -> String {
    let mut text = format!("#!/bin/bash\n#SBATCH --job-name={name}\n#SBATCH --array=0-{}\n", members.len() - 1);
    text += "# Other options, as for GPUs and time, go on the command line: sbatch --gres=gpu:1 --time=1:00:00 FILE\n";
    text += "set -euo pipefail\n\ncase \"${SLURM_ARRAY_TASK_ID:?run this with sbatch}\" in\n";
    for (at, member) in members.iter().enumerate() {
        let words: Vec<String> = arguments(member).iter().map(|word| shell(word)).collect();
        text += &format!("{at}) # {}\n  exec {}\n  ;;\n", member.name, words.join(" "));
    }
    text + "*)\n  echo \"no member $SLURM_ARRAY_TASK_ID\" >&2\n  exit 2\n  ;;\nesac\n"
}

/// A word of a POSIX shell that is taken as it is.
fn shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=+,:@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn k8s(member: &Member, name: &str, at: usize, image: &str) -> String {
    // Of `$(NAME)` Kubernetes makes the value of a variable, and of `$$` a `$`.
    let arguments = member.resolved.flags().into_iter().map(|flag| flag.replace('$', "$$"));
    let arguments: String = arguments.map(|flag| format!("            - {}\n", yaml(&flag))).collect();
    format!(
        "---\napiVersion: batch/v1\nkind: Job\nmetadata:\n  name: {}\n  annotations:\n    softprompt/member: {}\nspec:\n  \
         backoffLimit: 0\n  template:\n    spec:\n      restartPolicy: Never\n      containers:\n        - name: softprompt\n          \
         image: {}\n          command: [\"softprompt\", \"train\"]\n          args:\n{arguments}",
        yaml(&format!("{name}-{at}")),
        yaml(&member.name),
        yaml(image)
    )
}

/// A double-quoted YAML scalar. What is not printable in YAML is escaped, and so are the line breaks that only YAML knows.
fn yaml(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        let code = u32::from(c);
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted += "\\n",
            '\t' => quoted += "\\t",
            ' '..='~' => quoted.push(c),
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' | '\0'..='\u{9f}' => {
                quoted += &format!("\\u{code:04x}");
            }
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_a_shell_as_they_are() {
        for (word, quoted) in [
            ("--seed=1", "--seed=1"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", "'it'\\''s'"),
            ("$(rm -rf /) `x` \"y\" \\", "'$(rm -rf /) `x` \"y\" \\'"),
            ("one\n#SBATCH --two", "'one\n#SBATCH --two'"),
            ("~/x", "'~/x'"),
            ("ä", "'ä'"),
        ] {
            assert_eq!(shell(word), quoted);
        }
    }

    #[test]
    fn texts_reach_yaml_as_they_are() {
        for (text, quoted) in [
            ("yes", "\"yes\""),
            ("a: b # c", "\"a: b # c\""),
            ("\"\\\n\t\r\0", "\"\\\"\\\\\\n\\t\\u000d\\u0000\""),
            ("\u{85}\u{7f}\u{2028}\u{feff}", "\"\\u0085\\u007f\\u2028\\ufeff\""),
            ("ä😀", "\"ä😀\""),
        ] {
            assert_eq!(yaml(text), quoted);
        }
    }
}
