//! Keys that contradict each other.

use super::{Method, Metric, Objective, PromptInit, RecomputePolicy, Resolved};
use crate::device::{Device, parse_bytes};
use crate::{Error, Result};

/// Refuses combinations that cannot be meant, naming both keys.
pub(super) fn check(resolved: &Resolved) -> Result<()> {
    check_device(resolved)?;
    check_method(resolved)?;
    check_objective(resolved)?;
    check_memory(resolved)?;
    check_init(resolved)?;
    check_evaluation(resolved)?;
    check_steps(resolved)
}

fn check_device(resolved: &Resolved) -> Result<()> {
    let name = &resolved.config.device;
    if Device::is_name(name) {
        return Ok(());
    }
    Err(Error::config(resolved.place("device"), "cpu, cuda or cuda:N", format!("{name:?}"))
        .hint("cuda:1 is the machine's second GPU"))
}

fn check_method(resolved: &Resolved) -> Result<()> {
    let config = &resolved.config;
    let method = match config.method {
        Method::Prompt if config.init_weights.is_some() => {
            return Err(Error::config(resolved.place("init_weights"), "method = full or pretrain beside it", "prompt")
                .hint("a prompt for a model that knows nothing learns nothing: remove init_weights"));
        }
        Method::Prompt => return Ok(()),
        Method::Full => "full",
        Method::Pretrain => "pretrain",
    };
    // There is no prompt to be shaped.
    let of_prompts = [
        "num_virtual_tokens",
        "prompt_on",
        "prompt_mask",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "prompt_init_file",
        "init_top_k",
        "init_range",
    ];
    if let Some(key) = of_prompts.into_iter().find(|key| resolved.is_chosen(key)) {
        return Err(Error::config(resolved.place(key), format!("method = prompt beside {key}"), method)
            .hint(format!("{method} has no prompt: remove {key}")));
    }
    if config.method == Method::Pretrain && config.metric_for_best_model != Metric::Loss {
        return Err(Error::config(resolved.place("metric_for_best_model"), "loss for method = pretrain", "another")
            .hint("texts have no labels"));
    }
    Ok(())
}

/// Keys of pretraining beside another method or objective.
fn check_objective(resolved: &Resolved) -> Result<()> {
    let config = &resolved.config;
    if config.method != Method::Pretrain && resolved.is_chosen("objective") {
        return Err(Error::config(resolved.place("objective"), "method = pretrain beside objective", "another")
            .hint("prompt and full learn each row's target: remove objective"));
    }
    let (spans, prefixes) = (&[Objective::SpanCorruption][..], &[Objective::PrefixLm][..]);
    let both = &[Objective::SpanCorruption, Objective::PrefixLm][..];
    for (key, objectives) in
        [("noise_density", spans), ("mean_noise_span_length", spans), ("prefix_cut", prefixes), ("corruptions", both)]
    {
        if resolved.is_chosen(key) && !objectives.contains(&config.objective) {
            let names: Vec<&str> = objectives.iter().map(|objective| objective.name()).collect();
            let expected = format!("objective = {} beside {key}", names.join(" or "));
            return Err(Error::config(resolved.place(key), expected, config.objective.name())
                .hint(format!("remove {key}, or set objective")));
        }
    }
    if config.corruptions > 1 && config.eval_fraction > 0.0 {
        return Err(Error::config(
            resolved.place("corruptions"),
            "1 beside eval_fraction",
            config.corruptions.to_string(),
        )
        .hint("other corruptions of a held-out text would be trained on: give held-out texts as eval_file"));
    }
    Ok(())
}

fn check_memory(resolved: &Resolved) -> Result<()> {
    let config = &resolved.config;
    match &config.memory_limit {
        Some(limit) if parse_bytes(limit).is_none() => {
            Err(Error::config(resolved.place("memory_limit"), "bytes, as 8GiB, 500MB or 1000000", format!("{limit:?}")))
        }
        None if config.recompute == RecomputePolicy::Auto => {
            Err(Error::config(resolved.place("recompute"), "memory_limit beside recompute = auto", "none")
                .hint("say how much memory a step may need"))
        }
        _ => Ok(()),
    }
}

fn check_init(resolved: &Resolved) -> Result<()> {
    let config = &resolved.config;
    let text = config.prompt_tuning_init_text.as_deref().is_some_and(|text| !text.is_empty());
    let companions = [
        (PromptInit::Text, "text", "prompt_tuning_init_text", text, config.prompt_tuning_init_text.is_some()),
        (
            PromptInit::File,
            "file",
            "prompt_init_file",
            config.prompt_init_file.is_some(),
            config.prompt_init_file.is_some(),
        ),
    ];
    for (init, word, key, usable, given) in companions {
        let chosen = config.prompt_tuning_init == init;
        if chosen && !usable {
            let got = if given { "an empty one" } else { "none" };
            return Err(Error::config(
                resolved.place("prompt_tuning_init"),
                format!("{key} beside prompt_tuning_init = {word}"),
                got,
            )
            .hint(format!("set {key}, or choose another prompt_tuning_init")));
        }
        if given && !chosen {
            return Err(Error::config(
                resolved.place(key),
                format!("prompt_tuning_init = {word} beside {key}"),
                format!("another, from {}", resolved.source("prompt_tuning_init")),
            )
            .hint(format!("set prompt_tuning_init = {word}, or remove {key}")));
        }
    }
    Ok(())
}

fn check_evaluation(resolved: &Resolved) -> Result<()> {
    let config = &resolved.config;
    let fraction = config.eval_fraction > 0.0;
    if fraction && config.eval_file.is_some() {
        return Err(Error::config(
            resolved.place("eval_fraction"),
            "one of eval_file and eval_fraction",
            format!("both, eval_file from {}", resolved.source("eval_file")),
        )
        .hint("held-out rows come from a file of their own or from train_file, not from both"));
    }
    if fraction || config.eval_file.is_some() {
        return Ok(());
    }
    let wants = [
        ("early_stopping_patience", config.early_stopping_patience.is_some()),
        ("eval_steps", config.eval_steps.is_some()),
        ("metric_for_best_model", config.metric_for_best_model != Metric::Loss),
    ];
    match wants.into_iter().find(|&(_, wanted)| wanted) {
        None => Ok(()),
        Some((key, _)) => {
            Err(Error::config(resolved.place(key), format!("eval_file or eval_fraction beside {key}"), "neither")
                .hint(format!("say what to evaluate on, or remove {key}")))
        }
    }
}

fn check_steps(resolved: &Resolved) -> Result<()> {
    let config = &resolved.config;
    match config.max_steps {
        Some(max) if config.warmup_steps > max => Err(Error::config(
            resolved.place("warmup_steps"),
            format!("at most max_steps = {max} (from {})", resolved.source("max_steps")),
            config.warmup_steps.to_string(),
        )
        .hint("the learning rate would never reach its peak")),
        _ => Ok(()),
    }
}
