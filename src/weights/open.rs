//! Finding a model's files and joining what they hold.

use super::stored::Source;
use super::{Entry, Weights, gguf, safetensors};
use crate::error::Place;
use crate::{Error, Result};
use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

pub(super) fn open(path: &Path) -> Result<Weights> {
    if path.is_dir() {
        return open_directory(path);
    }
    match path.extension().and_then(OsStr::to_str) {
        Some("gguf") => open_gguf(path),
        Some("safetensors") => open_files(path, &[path.to_path_buf()]),
        Some("json") if path.to_string_lossy().ends_with(".safetensors.index.json") => open_index(path, path),
        // A missing file is reported as such, whatever it is called.
        other => match std::fs::metadata(path) {
            Err(e) => Err(Error::io(path, "open", e)),
            Ok(_) => Err(Error::input(
                Place::file(path),
                "a model directory, a .safetensors file or a .gguf file",
                other.map_or("a file without an extension".to_owned(), |e| format!("a .{e} file")),
            )),
        },
    }
}

fn open_directory(path: &Path) -> Result<Weights> {
    let (single, index) = (path.join(SINGLE), path.join(INDEX));
    if single.exists() {
        return open_files(path, &[single]);
    }
    if index.exists() {
        return open_index(path, &index);
    }
    let others = weight_files(path)?;
    let ggufs: Vec<_> = others.iter().filter(|p| p.extension() == Some(OsStr::new("gguf"))).collect();
    if let [only] = ggufs[..] {
        return open_gguf(only);
    }
    let listed: Vec<_> = others.iter().filter_map(|p| p.file_name()).map(OsStr::to_string_lossy).collect();
    let expected = format!("{SINGLE}, {INDEX} or one .gguf file");
    let got = if listed.is_empty() { "none of them".to_owned() } else { listed.join(", ") };
    let hint = if ggufs.len() > 1 || listed.iter().any(|name| name.ends_with(".safetensors")) {
        "name the file itself"
    } else {
        "PyTorch's .bin and .pt files must be converted to safetensors first"
    };
    Err(Error::input(Place::file(path), expected, got).hint(hint))
}

/// Files of `directory` that look like weights in any format, sorted.
fn weight_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let listing = std::fs::read_dir(directory).map_err(|e| Error::io(directory, "list", e))?;
    let mut found = Vec::new();
    for entry in listing {
        let path = entry.map_err(|e| Error::io(directory, "list", e))?.path();
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        if ["gguf", "safetensors", "bin", "pt", "pth", "h5", "msgpack"].contains(&extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn open_gguf(path: &Path) -> Result<Weights> {
    let source = Source::mapped(path)?;
    let (metadata, infos) = gguf::parse(path, &source)?;
    if let Some(parts) = metadata.u64("split.count")?
        && parts > 1
    {
        return Err(Error::input(Place::file(path), "a model in one file", format!("one of {parts} parts of a model"))
            .hint("join the parts with llama.cpp's llama-gguf-split --merge"));
    }
    let tensors = infos.into_iter().map(|info| (info.name.clone(), Entry { info, source: source.clone() })).collect();
    Ok(Weights { path: path.to_path_buf(), tensors, metadata: BTreeMap::new(), gguf: Some(metadata) })
}

/// Opens safetensors files that share one space of names.
fn open_files(model: &Path, files: &[PathBuf]) -> Result<Weights> {
    let mut tensors = BTreeMap::new();
    let mut metadata = BTreeMap::new();
    for file in files {
        let source = Source::mapped(file)?;
        let header = safetensors::parse(file, source.bytes())?;
        metadata.extend(header.metadata);
        for info in header.tensors {
            insert(&mut tensors, Entry { info, source: source.clone() })?;
        }
    }
    Ok(Weights { path: model.to_path_buf(), tensors, metadata, gguf: None })
}

fn insert(tensors: &mut BTreeMap<String, Entry>, entry: Entry) -> Result<()> {
    match tensors.entry(entry.info.name.clone()) {
        Slot::Vacant(slot) => {
            slot.insert(entry);
            Ok(())
        }
        Slot::Occupied(other) => {
            let place = Place::file(&entry.source.path).of(&entry.info.name);
            let got = format!("it in {} too", other.get().source.path.display());
            Err(Error::input(place, "each tensor in one shard", got))
        }
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: safetensors::UniqueMap<String>,
}

fn open_index(model: &Path, index: &Path) -> Result<Weights> {
    let text = std::fs::read(index).map_err(|e| Error::io(index, "read", e))?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|e| {
        Error::input(Place::file(index), "{\"weight_map\": {tensor: file}} with each tensor once", e.to_string())
    })?;
    let directory = index.parent().unwrap_or(Path::new("."));
    let mut files = BTreeSet::new();
    for (name, file) in &parsed.weight_map.0 {
        // A shard lies beside its index; anything else would read a file the model's owner may not mean.
        let mut parts = Path::new(file).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(Error::input(Place::file(index).of(name), "the name of a file beside the index", file));
        }
        files.insert(directory.join(file));
    }
    let mut weights = open_files(model, &files.into_iter().collect::<Vec<_>>())?;
    check_against_index(&mut weights, index, directory, &parsed.weight_map)?;
    Ok(weights)
}

/// Every tensor of the index is in the shard it names; tensors the index does not know are dropped.
fn check_against_index(
    weights: &mut Weights,
    index: &Path,
    directory: &Path,
    map: &safetensors::UniqueMap<String>,
) -> Result<()> {
    let mut listed = BTreeSet::new();
    for (name, file) in &map.0 {
        let found = weights.tensors.get(name).map(|entry| entry.source.path.clone());
        if found != Some(directory.join(file)) {
            let got = found.map_or("nowhere".to_owned(), |path| path.display().to_string());
            return Err(Error::input(Place::file(index).of(name), format!("the tensor in {file}"), got)
                .hint("the shards do not belong to this index, or are incomplete: download the model again"));
        }
        listed.insert(name.as_str());
    }
    weights.tensors.retain(|name, _| listed.contains(name.as_str()));
    Ok(())
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
