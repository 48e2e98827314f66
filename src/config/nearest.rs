//! The key a person may have meant.

use super::keys::KEYS;

/// What other programs call some of the keys.
const ELSEWHERE: &[(&str, &str)] = &[
    ("lr", "learning_rate"),
    ("epochs", "num_train_epochs"),
    ("num_epochs", "num_train_epochs"),
    ("steps", "max_steps"),
    ("batch_size", "per_device_train_batch_size"),
    ("eval_batch_size", "per_device_eval_batch_size"),
    ("prompt_length", "num_virtual_tokens"),
    ("optimizer", "optim"),
    ("scheduler", "lr_scheduler_type"),
    ("clip", "max_grad_norm"),
    ("data", "train_file"),
    ("validation_file", "eval_file"),
    ("max_seq_length", "max_length"),
    ("patience", "early_stopping_patience"),
    ("resume_from_checkpoint", "resume"),
    ("init", "prompt_tuning_init"),
];

/// The key nearest to `name`, if one is near at all.
pub(super) fn key(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    if let Some(&(_, key)) = ELSEWHERE.iter().find(|(other, _)| *other == name) {
        return Some(key);
    }
    let limit = (name.chars().count() / 3).clamp(1, 4);
    let near = KEYS.iter().map(|key| (distance(&name, key.name), key.name)).min()?;
    if near.0 <= limit {
        return Some(near.1);
    }
    // A part of a long name, or a longer form of a short one.
    let holds = |key: &&str| name.len() > 3 && (key.contains(&name) || (key.len() > 4 && name.contains(*key)));
    KEYS.iter().map(|key| key.name).find(holds)
}

/// How many letters to insert, remove, replace or swap with their neighbour to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, steps) in [("", "", 0), ("abc", "", 3), ("abc", "abd", 1), ("abcd", "acbd", 1), ("seed", "sed", 1)] {
            assert_eq!(distance(a, b), steps, "{a} {b}");
            assert_eq!(distance(b, a), steps, "{b} {a}");
        }
    }

    #[test]
    fn the_key_that_was_meant() {
        for (name, key) in [
            ("learning-rate", Some("learning_rate")),
            ("learnig_rate", Some("learning_rate")),
            ("LR", Some("learning_rate")),
            ("sede", Some("seed")),
            ("batch_size", Some("per_device_train_batch_size")),
            ("accumulation_steps", Some("gradient_accumulation_steps")),
            ("resume_from", Some("resume")),
            ("xyzzy", None),
            ("", None),
        ] {
            assert_eq!(super::key(name), key, "{name}");
        }
        for (_, key) in ELSEWHERE {
            assert!(KEYS.iter().any(|k| k.name == *key), "{key}");
        }
    }
}
