use super::*;

const NEEDED: [(&str, &str); 3] = [("model", "m"), ("output_dir", "o"), ("train_file", "t.jsonl")];

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Resolves with the needed keys as flags and `toml` as `run.toml`.
fn resolve(toml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Resolved> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, toml).unwrap();
    let flags = pairs(&[&NEEDED, flags].concat());
    TrainConfig::resolve(Some(&path), pairs(env).into_iter(), flags)
}

fn refused(toml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> String {
    let mut error = resolve(toml, env, flags).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    if let Error::Config(problem) = &mut error
        && let Some(path) = &mut problem.place.path
    {
        *path = path.file_name().unwrap().into();
    }
    error.to_string()
}

#[test]
fn the_defaults_are_those_promised() {
    let config = resolve("", &[], &[]).unwrap().config;
    assert_eq!(config.num_virtual_tokens, 20);
    assert_eq!(config.prompt_tuning_init, PromptInit::SampleVocab);
    assert_eq!((config.init_top_k, config.init_range), (5000, 0.5));
    assert_eq!((config.optim, config.learning_rate, config.weight_decay), (Optim::Adamw, 0.01, 0.0));
    assert_eq!((config.adam_beta1, config.adam_beta2, config.adam_epsilon), (0.9, 0.999, 1e-8));
    assert_eq!((config.adafactor_decay_rate, config.adafactor_clip_threshold), (0.8, 1.0));
    assert_eq!(config.adafactor_epsilon, 1e-30);
    assert_eq!((config.per_device_train_batch_size, config.per_device_eval_batch_size), (8, 32));
    assert_eq!((config.num_train_epochs, config.max_steps, config.seed), (3.0, None, 0));
    assert_eq!((config.on_long, config.separator.as_str()), (OnLong::Error, " "));
    assert_eq!((config.device.as_str(), config.dtype, config.weights), ("cpu", Precision::F32, Weights::Mapped));
    assert_eq!((config.resume, config.report_to), (Resume::Last(false), vec![Report::Jsonl, Report::Tensorboard]));
    assert!(config.labels.is_empty() && config.eval_file.is_none() && config.template.is_none());
}

#[test]
fn what_depends_on_the_optimizer_follows_it() {
    let config = resolve("optim = 'Adafactor'", &[], &[]).unwrap().config;
    assert_eq!((config.optim, config.learning_rate, config.weight_decay), (Optim::Adafactor, 0.3, 1e-5));
    let config = resolve("optim = 'adafactor'\nlearning_rate = 1", &[], &[]).unwrap().config;
    assert_eq!(config.learning_rate, 1.0);
}

#[test]
fn flags_over_environment_over_file_over_defaults() {
    let toml = "seed = 1\nmax_length = 1\nlogging_steps = 1\n";
    let env = [("SOFTPROMPT_SEED", "2"), ("SOFTPROMPT_MAX_LENGTH", "2"), ("HOME", "x"), ("SOFTPROMPT_DTYPE", "")];
    let resolved = resolve(toml, &env, &[("seed", "3"), ("--save-steps", "9")]).unwrap();
    let config = &resolved.config;
    assert_eq!((config.seed, config.max_length, config.logging_steps, config.save_steps), (3, 2, 1, 9));
    assert_eq!(*resolved.source("seed"), Source::Flag);
    assert_eq!(*resolved.source("max_length"), Source::Environment);
    assert!(matches!(resolved.source("logging_steps"), Source::File(_, 3)));
    assert_eq!(*resolved.source("dtype"), Source::Default);
    assert_eq!(resolved.place("seed").to_string(), "--seed");
    assert_eq!(resolved.place("max_length").to_string(), "SOFTPROMPT_MAX_LENGTH");
    assert!(resolved.place("logging_steps").to_string().ends_with("run.toml:3: logging_steps"));
    assert_eq!(resolved.place("dtype").to_string(), "dtype");
}

#[test]
fn the_saved_file_reads_back_as_the_same_run() {
    let flags = [
        ("optim", "adafactor"),
        ("labels", "[\"a, b\", \"c\"]"),
        ("template", "{text} \"quoted\"\nTopic:"),
        ("separator", ""),
        ("seed", "9223372036854775807"),
        ("resume", "ckpt/7"),
        ("max_steps", "5"),
        ("eval_fraction", "0.1"),
        ("learning_rate", "0.1"),
    ];
    let first = resolve("", &[], &flags).unwrap().config;
    let text = first.to_toml().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.toml");
    std::fs::write(&path, &text).unwrap();
    let second = TrainConfig::resolve(Some(&path), std::iter::empty(), vec![]).unwrap().config;
    assert_eq!(first, second);
    assert_eq!(text, second.to_toml().unwrap());
    assert!(first.differences(&second).unwrap().is_empty());
    let third = TrainConfig { seed: 1, max_steps: None, ..second };
    assert_eq!(first.differences(&third).unwrap(), ["max_steps", "seed"]);
}

#[test]
fn a_saved_file_of_every_method_reads_back() {
    let span =
        [("method", "pretrain"), ("objective", "span_corruption"), ("noise_density", "0.3"), ("corruptions", "4")];
    let prefix = [("method", "pretrain"), ("objective", "prefix_lm"), ("prefix_cut", "middle")];
    for flags in [&[("method", "full")][..], &[("method", "pretrain")], &span, &prefix] {
        let first = resolve("", &[], flags).unwrap().config;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("saved.toml");
        std::fs::write(&path, first.to_toml().unwrap()).unwrap();
        let second = TrainConfig::resolve(Some(&path), std::iter::empty(), vec![]).unwrap().config;
        assert_eq!(first, second);
    }
}

#[test]
fn keys_of_pretraining_stand_beside_what_they_are_for() {
    let pretrain = |objective, key, value| {
        [("method", "pretrain"), ("objective", objective), (key, value)].map(|(k, v): (&str, &str)| (k, v))
    };
    for (flags, wanted) in [
        (&[("objective", "prefix_lm")][..], "--objective: expected method = pretrain beside objective"),
        (&[("noise_density", "0.3")], "expected objective = span_corruption beside noise_density, got next_token"),
        (
            &pretrain("prefix_lm", "mean_noise_span_length", "2"),
            "objective = span_corruption beside mean_noise_span_length",
        ),
        (
            &pretrain("span_corruption", "prefix_cut", "middle"),
            "objective = prefix_lm beside prefix_cut, got span_corruption",
        ),
        (&pretrain("next_token", "corruptions", "2"), "objective = span_corruption or prefix_lm beside corruptions"),
        (&pretrain("span_corruption", "noise_density", "1"), "a number > 0 and < 1"),
        (&pretrain("span_corruption", "mean_noise_span_length", "0.5"), "a number ≥ 1"),
        (
            &[("method", "pretrain"), ("objective", "prefix_lm"), ("corruptions", "2"), ("eval_fraction", "0.1")],
            "1 beside eval_fraction, got 2",
        ),
    ] {
        let error = refused("", &[], flags);
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn the_table_and_the_struct_have_the_same_keys_in_the_same_order() {
    let flags = [
        ("template", "t"),
        ("target", "t"),
        ("prompt_tuning_init", "text"),
        ("prompt_tuning_init_text", "t"),
        ("max_steps", "1"),
        ("eval_file", "e"),
        ("eval_steps", "1"),
        ("early_stopping_patience", "1"),
        ("threads", "1"),
        ("memory_limit", "1GiB"),
        ("append_eos", "true"),
        ("max_target_length", "1"),
    ];
    let mut config = resolve("", &[], &flags).unwrap().config;
    (config.prompt_init_file, config.init_weights) = (Some("f".into()), Some(1));
    let text = config.to_toml().unwrap();
    let written: Vec<&str> = text.lines().map(|line| line.split(" = ").next().unwrap()).collect();
    assert_eq!(written, KEYS.iter().map(|key| key.name).collect::<Vec<_>>());
    for key in KEYS {
        assert!(!key.help.is_empty() && !key.value_name.is_empty(), "{}", key.name);
        if let Fallback::By(others, cases) = key.fallback {
            let mut words = Vec::new();
            for other in others {
                let Kind::Choice(of_other) = Key::find(other).unwrap().kind else { panic!("{other}") };
                words.extend(of_other);
                let at = |name: &str| KEYS.iter().position(|key| key.name == name);
                assert!(at(other) < at(key.name), "{} is resolved before {other}", key.name);
            }
            assert!(cases.iter().all(|(case, _)| case.split('+').all(|word| words.contains(&word))), "{}", key.name);
            // The last key's values are all there: one case always decides.
            let Kind::Choice(last) = Key::find(others.last().unwrap()).unwrap().kind else { panic!() };
            assert!(last.iter().all(|word| cases.iter().any(|(case, _)| case == word)), "{}", key.name);
        }
    }
}

#[test]
fn a_bad_value_is_told_with_where_it_came_from() {
    assert_eq!(
        refused("\nlearning_rate = 'fast'", &[], &[]),
        "run.toml:2: learning_rate: expected a number > 0, got \"fast\""
    );
    assert_eq!(
        refused("", &[("SOFTPROMPT_LEARNING_RATE", "fast")], &[]),
        "SOFTPROMPT_LEARNING_RATE: expected a number > 0, got \"fast\""
    );
    assert_eq!(refused("", &[], &[("learning_rate", "fast")]), "--learning-rate: expected a number > 0, got \"fast\"");
    let overridden = refused("seed = -1", &[], &[("seed", "1")]);
    assert_eq!(overridden, "run.toml:1: seed: expected an integer ≥ 0, got -1");
}

#[test]
fn every_kind_refuses_what_it_is_not() {
    for (key, value) in [
        ("learning_rate", "0"),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("learning_rate", "-1e-3"),
        ("learning_rate", "none"),
        ("adam_beta1", "1"),
        ("adam_beta1", "-0.1"),
        ("adafactor_decay_rate", "0"),
        ("eval_fraction", "1"),
        ("weight_decay", "-1"),
        ("seed", "-1"),
        ("seed", "9223372036854775808"),
        ("seed", "1.5"),
        ("seed", "none"),
        ("num_virtual_tokens", "0"),
        ("threads", "0"),
        ("threads", "4097"),
        ("max_steps", "0"),
        ("max_steps", "many"),
        ("append_eos", "maybe"),
        ("optim", "sgd"),
        ("device", "tpu"),
        ("on_long", ""),
        ("model", ""),
        ("resume", ""),
        ("template", "{text"),
        ("labels", "a,,b"),
        ("labels", "a,a"),
        ("labels", "[1]"),
        ("report_to", "wandb"),
    ] {
        let error = refused("", &[], &[(key, value)]);
        assert!(error.starts_with(&Key::find(key).unwrap().flag()), "{key} {value}: {error}");
    }
    for line in [
        "learning_rate = nan",
        "learning_rate = true",
        "learning_rate = '0.1'",
        "seed = 1.0",
        "append_eos = 1",
        "separator = 1",
        "labels = 'a'",
        "labels = [1]",
        "labels = ['']",
        "template = 3",
        "model = 1979-05-27",
        "resume = 1",
        "report_to = ['jsonl', 'jsonl']",
        "max_steps = [1]",
    ] {
        let error = refused(line, &[], &[]);
        assert!(error.starts_with("run.toml:1: "), "{line}: {error}");
    }
}

#[test]
fn every_kind_takes_what_it_is() {
    let toml = "learning_rate = 1\nlabels = ['a', 'b']\nmax_steps = 'none'\nresume = true\nreport_to = []\nthreads = 2";
    let config = resolve(toml, &[], &[("prompt_tuning_init", "RANDOM"), ("append_eos", "1"), ("threads", "none")]);
    let config = config.unwrap().config;
    assert_eq!((config.learning_rate, config.max_steps, config.threads), (1.0, None, None));
    assert_eq!((config.labels, config.report_to), (vec!["a".to_owned(), "b".to_owned()], vec![]));
    assert_eq!((config.resume, config.prompt_tuning_init), (Resume::Last(true), PromptInit::Random));
    assert_eq!(config.append_eos, Some(true));
}

#[test]
fn a_list_flag_adds_and_others_replace() {
    let flags = [("labels", "a"), ("labels", "b, c"), ("seed", "1"), ("seed", "2")];
    let config = resolve("labels = ['z']", &[], &flags).unwrap().config;
    assert_eq!(config.labels, ["a", "b", "c"]);
    assert_eq!(config.seed, 2);
    assert!(refused("", &[], &[("labels", "a"), ("labels", "a")]).contains("distinct"));
    assert!(is_list(Key::find("labels").unwrap()) && !is_list(Key::find("seed").unwrap()));
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    let error = refused("seed = 1\nlearnin_rate = 1", &[], &[]);
    let said = "run.toml:2: learnin_rate: expected a known key, got an unknown one (did you mean learning_rate?)";
    assert_eq!(error, said);
    let error = refused("[train]\nseed = 1", &[], &[]);
    assert!(error.starts_with("run.toml:1: train: expected a known key"), "{error}");
    let error = refused("", &[("SOFTPROMPT_LR", "1")], &[]);
    assert!(
        error.starts_with("SOFTPROMPT_LR: ") && error.contains("did you mean SOFTPROMPT_LEARNING_RATE?"),
        "{error}"
    );
    assert!(refused("", &[("SOFTPROMPT_seed", "1")], &[]).contains("SOFTPROMPT_SEED"));
    assert!(refused("", &[("SOFTPROMPT_XYZZY", "1")], &[]).contains("--help"));
    let error = resolve("", &[], &[("batch-size", "1")]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("did you mean --per-device-train-batch-size?"), "{error}");
    for other in ["CONFIG", "MATMUL", "TEST_ALL", "REQUIRE_ALL", "REQUIRE_NVCC", "UPDATE_PREBUILT"] {
        assert!(resolve("", &[(&format!("SOFTPROMPT_{other}"), "x")], &[]).is_ok(), "{other}");
    }
}

#[test]
fn files_that_cannot_be_read_are_told_apart() {
    assert!(refused("seed = 1\nseed = 2", &[], &[]).starts_with("run.toml:2: expected TOML, got duplicate key"));
    assert!(refused("seed = 1\n\nlabels = [", &[], &[]).starts_with("run.toml:3: expected TOML"));
    let missing = TrainConfig::resolve(Some(Path::new("no/such.toml")), std::iter::empty(), vec![]).unwrap_err();
    assert_eq!(missing.exit_code(), 4);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("latin.toml");
    std::fs::write(&path, b"seed = 1\nseparator = '\xE9'").unwrap();
    let error = TrainConfig::resolve(Some(&path), std::iter::empty(), vec![]).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("latin.toml:2: expected UTF-8"), "{error}");
}

#[test]
fn what_a_run_needs_is_asked_for() {
    let error = TrainConfig::resolve(None, std::iter::empty(), pairs(&NEEDED[1..])).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let said = "model: expected a path, got nothing (give --model, SOFTPROMPT_MODEL or `model = …` in the TOML file)";
    assert_eq!(error.to_string(), said);
}

#[test]
fn keys_that_contradict_each_other_are_both_named() {
    for (toml, flags, keys) in [
        ("prompt_tuning_init = 'text'", &[][..], ["prompt_tuning_init", "prompt_tuning_init_text"]),
        ("prompt_tuning_init = 'text'\nprompt_tuning_init_text = ''", &[], ["prompt_tuning_init", "an empty one"]),
        ("prompt_tuning_init_text = 'x'", &[], ["prompt_tuning_init_text", "prompt_tuning_init = text"]),
        ("prompt_tuning_init = 'file'", &[], ["prompt_tuning_init", "prompt_init_file"]),
        ("prompt_init_file = 'x'", &[], ["prompt_init_file", "prompt_tuning_init = file"]),
        ("eval_file = 'e.csv'", &[("eval_fraction", "0.1")], ["--eval-fraction", "eval_file from"]),
        ("early_stopping_patience = 2", &[], ["early_stopping_patience", "eval_file or eval_fraction"]),
        ("eval_steps = 2", &[], ["eval_steps", "eval_file or eval_fraction"]),
        ("metric_for_best_model = 'accuracy'", &[], ["metric_for_best_model", "eval_file or eval_fraction"]),
        ("max_steps = 5", &[("warmup_steps", "6")], ["--warmup-steps", "max_steps = 5"]),
    ] {
        let error = refused(toml, &[], flags);
        assert!(keys.iter().all(|key| error.contains(key)), "{toml}: {error}");
    }
    assert!(resolve("max_steps = 5\nwarmup_steps = 5\neval_fraction = 0.1\neval_steps = 2", &[], &[]).is_ok());
}

#[test]
fn templates_are_checked_and_handed_on() {
    let error = refused("template = 'a {b'", &[], &[]);
    assert!(error.contains("template: expected a template") && error.contains("character 3"), "{error}");
    let config = resolve("template = 'no field'\ntarget = '{y}'\nmax_length = 7", &[], &[]).unwrap().config;
    let sizes = ModelConfig { vocab_size: 50, ..ModelConfig::named("gpt2").unwrap() };
    let options = config.example_options(&sizes).unwrap();
    assert_eq!(options.target, Some(Template::field("y")));
    assert_eq!(options.template.unwrap().fields().count(), 0);
    assert_eq!((options.max_length, options.vocab_size, options.append_eos), (7, 50, false));
}

#[test]
fn the_real_environment_can_be_read() {
    assert!(environment().count() > 0);
}
