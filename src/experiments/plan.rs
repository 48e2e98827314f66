//! The runs of an experiment: groups that differ in what is asked about, each with the same seeds.

use crate::config::{Method, PromptInit, Report, TrainConfig};
use crate::error::Result;
use std::path::{Path, PathBuf};

/// Runs that differ in their seed alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// What tells it from the others.
    pub name: String,
    /// The same as a number, if it is one.
    pub x: Option<f64>,
    /// What tells it from groups of the same name; else empty.
    pub series: String,
}

/// A run.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// The index of its group.
    pub group: usize,
    /// Its configuration.
    pub config: TrainConfig,
}

/// Groups and their members, group after group.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The groups.
    pub groups: Vec<Group>,
    /// Every run.
    pub members: Vec<Member>,
    base: TrainConfig,
    seeds: u64,
}

/// How weights are trained where prompts and weights are compared.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Full {
    /// The learning rate; unset: that of `method = full`.
    pub learning_rate: Option<f64>,
    /// Steps; unset: as many as for prompts.
    pub max_steps: Option<u64>,
}

impl Plan {
    /// No groups yet. Each will have runs with the seeds of `base` and on, `seeds` of them.
    pub fn new(base: TrainConfig, seeds: u64) -> Self {
        Self { groups: Vec::new(), members: Vec::new(), base, seeds }
    }

    /// Adds a group, in the folder `name` of the output directory.
    fn add(&mut self, name: &str, x: Option<f64>, change: impl Fn(&mut TrainConfig)) {
        self.add_to(name, x, "", change);
    }

    /// Adds a group of a series, whose folder has one of its own.
    fn add_to(&mut self, name: &str, x: Option<f64>, series: &str, change: impl Fn(&mut TrainConfig)) {
        let group = self.groups.len();
        self.groups.push(Group { name: name.to_owned(), x, series: series.to_owned() });
        for seed in (0..self.seeds).map(|offset| self.base.seed.saturating_add(offset)) {
            let mut config = self.base.clone();
            change(&mut config);
            config.seed = seed;
            config.output_dir = self.base.output_dir.join(folder(name)).join(series).join(format!("seed-{seed}"));
            if !config.report_to.contains(&Report::Jsonl) {
                config.report_to.push(Report::Jsonl);
            }
            self.members.push(Member { group, config });
        }
    }

    /// One group: the runs as they are.
    #[must_use]
    pub fn seeds(mut self) -> Self {
        self.add("prompt", None, |_| ());
        self
    }

    /// A group for each prompt length in rows.
    #[must_use]
    pub fn lengths(mut self, lengths: &[usize]) -> Self {
        for &rows in lengths {
            self.add(&format!("P{rows}"), Some(rows as f64), |config| config.num_virtual_tokens = rows);
        }
        self
    }

    /// A group for each initialisation; `text` is that of [`PromptInit::Text`].
    #[must_use]
    pub fn inits(mut self, inits: &[(PromptInit, &str)], text: Option<&str>) -> Self {
        for &(init, name) in inits {
            self.add(name, None, |config| {
                config.prompt_tuning_init = init;
                config.prompt_tuning_init_text = text.filter(|_| init == PromptInit::Text).map(str::to_owned);
                config.prompt_init_file = None;
            });
        }
        self
    }

    /// A group for each model, with its number of parameters, and each method; of several methods each is a series.
    ///
    /// # Errors
    /// Those of [`Plan::methods`].
    pub fn models(mut self, models: &[(PathBuf, f64)], methods: &[Method], full: Full) -> Result<Self> {
        let defaults = defaults_of_full(&self.base)?;
        for (index, (model, parameters)) in models.iter().enumerate() {
            let name = format!("{} {}", index + 1, model_name(model));
            for &method in methods {
                let series = if methods.len() > 1 { method_name(method) } else { "" };
                self.add_to(&name, Some(*parameters), series, |config| {
                    config.model.clone_from(model);
                    if method != Method::Prompt {
                        as_full(config, &defaults, full);
                    }
                });
            }
        }
        Ok(self)
    }

    /// A group for prompts, and one for all weights.
    ///
    /// # Errors
    /// Those of a configuration that cannot be, which a base that was resolved does not have.
    pub fn methods(mut self, methods: &[Method], full: Full) -> Result<Self> {
        let defaults = defaults_of_full(&self.base)?;
        for &method in methods {
            self.add(method_name(method), None, |config| {
                if method != Method::Prompt {
                    as_full(config, &defaults, full);
                }
            });
        }
        Ok(self)
    }
}

/// What a method is called in a table.
pub fn method_name(method: Method) -> &'static str {
    if method == Method::Prompt { "prompt" } else { "full" }
}

/// What a run of `method = full` has where nothing is said.
fn defaults_of_full(base: &TrainConfig) -> Result<TrainConfig> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let flags = [
        ("model", path(&base.model)),
        ("output_dir", path(&base.output_dir)),
        ("train_file", path(&base.train_file)),
        ("method", "full".to_owned()),
    ];
    let flags = flags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Ok(TrainConfig::resolve(None, std::iter::empty(), flags)?.config)
}

/// Makes a prompt's configuration that of training all weights on the same rows: what is said of prompts and of their
/// optimizer falls back to what that method has by default.
fn as_full(config: &mut TrainConfig, defaults: &TrainConfig, full: Full) {
    config.method = Method::Full;
    config.num_virtual_tokens = defaults.num_virtual_tokens;
    config.prompt_tuning_init = defaults.prompt_tuning_init;
    config.prompt_tuning_init_text = None;
    config.prompt_init_file = None;
    config.init_top_k = defaults.init_top_k;
    config.init_range = defaults.init_range;
    config.prompt_on = defaults.prompt_on;
    config.prompt_mask = defaults.prompt_mask;
    config.optim = defaults.optim;
    config.weight_decay = defaults.weight_decay;
    config.learning_rate = full.learning_rate.unwrap_or(defaults.learning_rate);
    config.max_steps = full.max_steps.or(config.max_steps);
}

fn model_name(model: &Path) -> String {
    model.file_name().unwrap_or(model.as_os_str()).to_string_lossy().into_owned()
}

/// A group's name as the name of a folder.
fn folder(name: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.chars().map(safe).collect::<String>().trim_start_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(more: &[(&str, &str)]) -> TrainConfig {
        let flags = [("model", "m"), ("output_dir", "out"), ("train_file", "t.jsonl"), ("seed", "7")];
        let flags = flags.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        TrainConfig::resolve(None, std::iter::empty(), flags).unwrap().config
    }

    #[test]
    fn groups_have_the_same_seeds_and_folders_of_their_own() {
        let plan = Plan::new(base(&[("report_to", "tensorboard")]), 2).lengths(&[1, 20]);
        assert_eq!(plan.groups.iter().map(|group| group.x).collect::<Vec<_>>(), [Some(1.0), Some(20.0)]);
        let found: Vec<_> = plan
            .members
            .iter()
            .map(|member| (member.group, member.config.num_virtual_tokens, member.config.seed))
            .collect();
        assert_eq!(found, [(0, 1, 7), (0, 1, 8), (1, 20, 7), (1, 20, 8)]);
        let dirs: Vec<_> = plan.members.iter().map(|member| member.config.output_dir.clone()).collect();
        assert_eq!(dirs[3], Path::new("out/P20/seed-8"));
        assert!(plan.members.iter().all(|member| member.config.report_to.contains(&Report::Jsonl)));
    }

    #[test]
    fn a_texts_init_has_its_text_and_the_others_none() {
        let inits = [(PromptInit::Uniform, "uniform"), (PromptInit::Text, "text")];
        let plan = Plan::new(base(&[]), 1).inits(&inits, Some("a b"));
        assert_eq!(plan.members[0].config.prompt_tuning_init_text, None);
        assert_eq!(plan.members[1].config.prompt_tuning_init_text.as_deref(), Some("a b"));
    }

    #[test]
    fn all_weights_are_trained_as_that_method_is_by_default_and_their_file_is_read_back() {
        let more = [("num_virtual_tokens", "5"), ("optim", "adafactor"), ("max_steps", "9"), ("init_top_k", "50")];
        let methods = [Method::Prompt, Method::Full];
        let full = Full { learning_rate: None, max_steps: Some(4) };
        let plan = Plan::new(base(&more), 1).methods(&methods, full).unwrap();
        let (prompt, full) = (&plan.members[0].config, &plan.members[1].config);
        assert_eq!((prompt.num_virtual_tokens, prompt.max_steps, prompt.learning_rate), (5, Some(9), 0.3));
        assert_eq!((full.method, full.max_steps, full.learning_rate), (Method::Full, Some(4), 5e-5));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        std::fs::write(&path, full.to_toml().unwrap()).unwrap();
        let back = TrainConfig::resolve(Some(&path), std::iter::empty(), Vec::new()).unwrap().config;
        assert_eq!(back, *full);
    }

    #[test]
    fn folders_stay_inside_the_output_directory() {
        assert_eq!(folder("1 ../../x y"), "1-..-..-x-y");
        assert_eq!(folder(".."), "");
        let models = [("a/m.gguf".into(), 10.0), ("b/m.gguf".into(), 20.0)];
        let plan = Plan::new(base(&[]), 1).models(&models, &[Method::Prompt], Full::default()).unwrap();
        let dirs: Vec<_> = plan.members.iter().map(|member| member.config.output_dir.clone()).collect();
        assert_eq!(dirs, [Path::new("out/1-m.gguf/seed-7"), Path::new("out/2-m.gguf/seed-7")]);
        let methods = [Method::Prompt, Method::Full];
        let plan = Plan::new(base(&[]), 1).models(&models[..1], &methods, Full::default()).unwrap();
        let dirs: Vec<_> = plan.members.iter().map(|member| member.config.output_dir.clone()).collect();
        assert_eq!(dirs, [Path::new("out/1-m.gguf/prompt/seed-7"), Path::new("out/1-m.gguf/full/seed-7")]);
        assert_eq!((plan.groups[0].name.as_str(), plan.groups[1].series.as_str()), ("1 m.gguf", "full"));
    }
}
