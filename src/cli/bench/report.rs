//! What `softprompt bench` prints.

use crate::account::{self, GPUS};
use crate::bench::{Fit, Measurement, Point, Swept, fits};
use crate::device::{Device, Kind};
use crate::models::{Model, Recompute};
use serde_json::{Map, Value, json};
use std::path::Path;

/// What was measured.
pub(super) struct Subject<'a> {
    pub(super) shape: &'a str,
    pub(super) method: &'a str,
    pub(super) model: &'a Model,
}

const MIB: f64 = (1 << 20) as f64;

impl Subject<'_> {
    fn json(&self) -> Map<String, Value> {
        let device = self.model.device();
        let about = json!({
            "shape": self.shape, "method": self.method, "device": device.name(), "threads": device.threads(),
            "dtype": self.model.dtype().to_string(), "recompute": self.model.recompute().name(),
        });
        match about {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn text(&self) -> String {
        let device = self.model.device();
        let threads = match device {
            Device::Cpu(_) => format!(", {} threads", device.threads()),
            Device::Cuda(_) => String::new(),
        };
        let trained = if self.method == "full" { "all weights" } else { "a prompt" };
        format!(
            "{}, training {trained}, {} on {}{threads}, recompute {}",
            self.shape,
            self.model.dtype(),
            device.name(),
            self.model.recompute().name()
        )
    }

    /// The least time of the same step on GPUs that are known, by the account of `doctor --kernels`; for a GPU's step only.
    fn on_paper(&self, measured: &Measurement) -> Vec<(&'static str, f64, usize)> {
        let (config, dtype) = (self.model.config(), self.model.dtype());
        let is_accounted = self.method == "prompt" && self.model.recompute() == Recompute::None;
        if !is_accounted || matches!(self.model.device(), Device::Cpu(_)) {
            return Vec::new();
        }
        let Ok(launches) = account::training_step(config, &measured.layout, dtype) else { return Vec::new() };
        let of = |gpu: &account::Gpu| launches.iter().map(|launch| gpu.seconds(launch, dtype)).sum::<f64>();
        GPUS.iter().map(|gpu| (gpu.name, of(gpu), launches.len())).collect()
    }
}

fn by_kind(bytes: impl Fn(Kind) -> usize) -> Value {
    Kind::ALL.into_iter().map(|kind| (kind.name().to_string(), json!(bytes(kind)))).collect::<Map<_, _>>().into()
}

fn measured_json(measured: &Measurement) -> Map<String, Value> {
    let phases = measured.phases.map(|phases| {
        phases.named().into_iter().map(|(name, seconds)| (name.to_string(), json!(seconds))).collect::<Map<_, _>>()
    });
    let library = measured.library;
    let apart = (!measured.apart.is_empty()).then_some(&measured.apart);
    let value = json!({
        "prompts": measured.prompts,
        "num_virtual_tokens": measured.prompt_rows,
        "examples": measured.examples,
        "tokens": measured.longest,
        "batch_tokens": measured.tokens,
        "label_tokens": measured.label_tokens,
        "stream_rows": measured.stream_rows,
        "seconds": measured.seconds,
        "median_seconds": measured.median_seconds(),
        "phases": phases,
        "seconds_apart": apart,
        "gain": measured.gain().map(|gain| gain[0]),
        "gain_range": measured.gain().map(|gain| [gain[1], gain[2]]),
        "loss": measured.loss,
        "examples_per_second": measured.examples_per_second(),
        "tokens_per_second": measured.tokens_per_second(),
        "flops": measured.flops,
        "gflops_per_second": measured.flops_per_second() / 1e9,
        "gemm_gflops_per_second": library.map(|library| library.flops_per_second / 1e9),
        "gemm_ratio": library.map(|library| library.ratio[0]),
        "gemm_ratio_range": library.map(|library| [library.ratio[1], library.ratio[2]]),
        "peak_bytes": by_kind(|kind| measured.memory.at_peak(kind)),
        "peak_total_bytes": measured.memory.peak_total(),
        "peak_above_weights_bytes": measured.peak_above_weights(),
        "most_bytes": by_kind(|kind| measured.memory.peak(kind)),
        "peak_rss_bytes": measured.peak_rss,
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// One measurement.
pub(super) fn one_json(subject: &Subject<'_>, measured: &Measurement) -> Value {
    let mut map = subject.json();
    map.extend(measured_json(measured));
    let account = subject.on_paper(measured);
    if !account.is_empty() {
        let gpus = account
            .iter()
            .map(|(name, seconds, launches)| json!({"gpu": name, "least_seconds": seconds, "launches": launches}));
        map.insert("account".into(), gpus.collect());
    }
    Value::Object(map)
}

/// One measurement, for people.
pub(super) fn one_text(subject: &Subject<'_>, measured: &Measurement) -> String {
    let mut lines = vec![subject.text(), sizes(measured), String::new()];
    let seconds = measured.median_seconds();
    let (least, most) = ends(&measured.seconds);
    lines.push(format!(
        "step       {}  {:.2} examples/s  {:.1} tokens/s  ({} to {}, {} steps)",
        time(seconds),
        measured.examples_per_second(),
        measured.tokens_per_second(),
        time(least).trim(),
        time(most).trim(),
        measured.seconds.len()
    ));
    match measured.phases {
        Some(phases) => lines.extend(
            phases
                .named()
                .into_iter()
                .map(|(name, part)| format!("  {name:<9}{} {:5.1} %", time(part), 100.0 * part / seconds)),
        ),
        None => lines.push("  (a GPU is asked for a whole step at once: its parts cannot be told apart)".into()),
    }
    if let Some([gain, least, most]) = measured.gain() {
        let apart = measured.apart.iter().sum::<f64>() / measured.apart.len() as f64;
        let apart = time(apart);
        lines.push(format!(
            "apart      {apart}  a step of each prompt: {gain:.3} times as long ({least:.3} to {most:.3})"
        ));
    }
    lines.push(format!("loss       {:.6}", measured.loss));
    let gflop = measured.flops / 1e9;
    let digits = if gflop < 10.0 { 3 } else { 1 };
    lines.push(format!("arithmetic {gflop:.digits$} GFLOP a step, {:.1} GFLOP/s", measured.flops_per_second() / 1e9));
    if let Some(library) = measured.library {
        let [ratio, least, most] = library.ratio;
        lines.push(format!(
            "gemm       {:.1} GFLOP/s by the matrix library alone at the same shapes; the step reaches {ratio:.3} of it \
             ({least:.3} to {most:.3})",
            library.flops_per_second / 1e9
        ));
    }
    for (name, seconds, launches) in subject.on_paper(measured) {
        lines.push(format!("account    {} at least on {name}, {launches} launches", time(seconds).trim()));
    }
    lines.push(String::new());
    lines.push(format!("memory at the peak {:>12.1} MiB", measured.memory.peak_total() as f64 / MIB));
    let kinds = Kind::ALL.into_iter().filter(|&kind| measured.memory.at_peak(kind) > 0);
    lines
        .extend(kinds.map(|kind| format!("  {:<17}{:>12.1}", kind.name(), measured.memory.at_peak(kind) as f64 / MIB)));
    lines.push(match measured.peak_rss {
        Some(bytes) => format!("process            {:>12.1} MiB resident at its peak", bytes as f64 / MIB),
        None => "process            not told by this system".into(),
    });
    lines.join("\n")
}

fn sizes(measured: &Measurement) -> String {
    let prompts = if measured.prompts > 1 { format!("{} prompts of ", measured.prompts) } else { String::new() };
    format!(
        "{prompts}P = {}, B = {}, T = {}: {} tokens, {} rows, {} label tokens",
        measured.prompt_rows,
        measured.examples / measured.prompts.max(1),
        measured.longest,
        measured.tokens,
        measured.stream_rows,
        measured.label_tokens
    )
}

/// Seconds in a unit in which they can be read.
fn time(seconds: f64) -> String {
    if seconds >= 1.0 { format!("{seconds:>9.3} s ") } else { format!("{:>9.3} ms", seconds * 1e3) }
}

fn ends(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &x| (least.min(x), most.max(x)))
}

/// A sweep.
pub(super) fn sweep_json(subject: &Subject<'_>, swept: Swept, points: &[Point], plot: Option<&Path>) -> Value {
    let line = |fit: Option<Fit>| {
        fit.map(|fit| json!({"intercept": fit.intercept, "slope": fit.slope, "r_squared": fit.r_squared}))
    };
    let (of_time, of_bytes) = fits(points);
    let mut map = subject.json();
    map.insert("swept".into(), json!(swept.name()));
    let all = points.iter().map(|point| {
        let mut map = Map::new();
        map.insert("value".into(), json!(point.value));
        map.extend(measured_json(&point.measured));
        Value::Object(map)
    });
    map.insert("sweep".into(), all.collect());
    map.insert("fit".into(), json!({"seconds": line(of_time), "peak_above_weights_bytes": line(of_bytes)}));
    map.insert("plot".into(), json!(plot.map(|path| path.display().to_string())));
    Value::Object(map)
}

/// A sweep, for people.
pub(super) fn sweep_text(subject: &Subject<'_>, swept: Swept, points: &[Point], plot: Option<&Path>) -> String {
    let (of_time, of_bytes) = fits(points);
    let mut lines = vec![subject.text()];
    if let Some(point) = points.first() {
        let fixed = [
            (Swept::NumVirtualTokens, "P", point.measured.prompt_rows),
            (Swept::Examples, "B", point.measured.examples / point.measured.prompts.max(1)),
            (Swept::Tokens, "T", point.measured.longest),
        ];
        let fixed = fixed.iter().filter(|entry| entry.0 != swept).map(|(_, name, size)| format!("{name} = {size}"));
        lines.push(format!("{}; memory in MiB", fixed.collect::<Vec<_>>().join(", ")));
    }
    lines.push(String::new());
    lines.push(format!(
        "{:>18} {:>12} {:>12} {:>12} {:>10} {:>19}",
        swept.name(),
        "seconds",
        "examples/s",
        "tokens/s",
        "saved",
        "peak above weights"
    ));
    lines.extend(points.iter().map(|Point { value, measured }| {
        format!(
            "{value:>18} {:>12.4} {:>12.2} {:>12.1} {:>10.1} {:>19.1}",
            measured.median_seconds(),
            measured.examples_per_second(),
            measured.tokens_per_second(),
            measured.memory.peak(Kind::SavedActivations) as f64 / MIB,
            measured.peak_above_weights() as f64 / MIB
        )
    }));
    lines.push(String::new());
    if let Some(fit) = of_time {
        lines.push(format!("seconds = {:.3e} + {:.3e} x, R² {:.4}", fit.intercept, fit.slope, fit.r_squared));
    }
    if let Some(fit) = of_bytes {
        let (intercept, slope) = (fit.intercept / MIB, fit.slope / MIB);
        lines.push(format!("MiB above weights = {intercept:.3} + {slope:.4} x, R² {:.4}", fit.r_squared));
    }
    lines.extend(plot.map(|path| format!("drawn in {}", path.display())));
    lines.join("\n")
}
