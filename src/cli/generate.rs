//! `softprompt generate`: texts continued behind a prompt.

use super::Terminal;
use super::options::{ModelArgs, encoder, prompt_for};
use crate::data::tokenizer::Tokenizer;
use crate::data::{ExampleOptions, RecordReader, Template, TextEncoder};
use crate::error::{Error, Place, Result};
use crate::generate::{Generator, Sampling};
use serde_json::json;
use std::io::BufRead;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt; without it the model alone continues
    #[arg(long, value_name = "PATH")]
    prompt: Option<PathBuf>,
    /// A text to continue; repeat it. Without --text and --data each line of stdin is one
    #[arg(long = "text", value_name = "TEXT", allow_hyphen_values = true)]
    texts: Vec<String>,
    /// Rows to continue, by --template
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    data: Option<PathBuf>,
    /// The text of a row, as in "{text} Topic:"; without it the field `input`
    #[arg(long, value_name = "TEXT")]
    template: Option<String>,
    /// New tokens, at most
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
    /// What logits are divided by; 0 takes the likeliest token every time
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temperature: f64,
    /// Choose among so many of the likeliest tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Choose among the likeliest tokens whose probabilities reach this sum
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    top_p: f64,
    /// The seed of sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End a text where this stands in it; repeat it
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Texts that go through the model together
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
}

pub(super) fn run(args: &GenerateArgs, terminal: &Terminal) -> Result<()> {
    let model = args.model.open()?;
    let tokenizer = model.require_tokenizer()?;
    let prompt = prompt_for(&model, args.prompt.as_ref())?;
    let generator = Generator::new(&model, &prompt)?;
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    let texts = texts(args)?;
    let options = ExampleOptions::default();
    let encoder = encoder(&model).map(|tokenizer| TextEncoder::new(tokenizer, &options)).transpose()?;
    let encode = |text: &String| match &encoder {
        Some(encoder) => encoder.input(text),
        None => tokenizer.encode(text),
    };
    for texts in texts.chunks(args.batch_size as usize) {
        let ids = texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let inputs: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let mut stop = |new: &[u32]| ends(tokenizer, new, &args.stop);
        let new = generator.generate(&inputs, args.max_new_tokens, sampling, &mut stop)?;
        for (text, ids) in texts.iter().zip(new) {
            let mut generated = tokenizer.decode(&ids, true)?;
            generated.truncate(cut(&generated, &args.stop).unwrap_or(generated.len()));
            terminal.result(&json!({"text": text, "generated": generated, "tokens": ids.len()}), &generated)?;
        }
    }
    Ok(())
}

/// Whether the `new` tokens end with the end token or hold a stop text.
pub(super) fn ends(tokenizer: &Tokenizer, new: &[u32], stops: &[String]) -> bool {
    let is_end = tokenizer.eos_id().is_some() && new.last().copied() == tokenizer.eos_id();
    is_end || (!stops.is_empty() && tokenizer.decode(new, true).is_ok_and(|text| cut(&text, stops).is_some()))
}

/// Where the first of the stop texts begins.
pub(super) fn cut(text: &str, stops: &[String]) -> Option<usize> {
    stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop.as_str())).min()
}

fn texts(args: &GenerateArgs) -> Result<Vec<String>> {
    if let Some(path) = &args.data {
        let template = match &args.template {
            Some(text) => Template::parse(text)?,
            None => Template::field("input"),
        };
        let rendered = RecordReader::open(path)?.map(|record| {
            let record = record?;
            template.render(&record).map_err(|error| error.in_file(path).on_line(record.line))
        });
        return rendered.collect();
    }
    if !args.texts.is_empty() {
        return Ok(args.texts.clone());
    }
    let text = |(line, number): (std::io::Result<Vec<u8>>, u64)| {
        let line = line.map_err(|error| Error::io("stdin", "read", error))?;
        String::from_utf8(line).map(|line| line.trim_end_matches('\r').to_string()).map_err(|error| {
            let column = error.utf8_error().valid_up_to() + 1;
            let place = Place::file("stdin").at_line(number);
            Error::input(place, "UTF-8 text", format!("other bytes at column {column}"))
                .hint("convert the text to UTF-8")
        })
    };
    std::io::stdin().lock().split(b'\n').zip(1..).map(text).collect()
}
