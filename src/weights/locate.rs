//! From what a person calls a model to where it lies.

use crate::error::Place;
use crate::{Error, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where `model` lies: a path that exists, or a hub id (`org/name`, `org/name@revision`) in the local Hugging Face
/// cache. Nothing is downloaded.
///
/// # Errors
/// [`Error::Input`] naming the places that were looked at.
pub fn locate(model: &str) -> Result<PathBuf> {
    locate_with(model, &|name| std::env::var_os(name))
}

/// [`locate`] with environment variables looked up by `var`.
///
/// # Errors
/// As [`locate`].
pub fn locate_with(model: &str, var: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let path = Path::new(model);
    if !model.is_empty() && path.exists() {
        return Ok(path.to_path_buf());
    }
    let Some((id, revision)) = hub_id(model) else {
        return Err(Error::input(Place::item(model), "an existing model directory or file, or a hub id", "neither")
            .hint("check the path; a hub id is org/name or org/name@revision"));
    };
    let caches = caches(var);
    for cache in &caches {
        let repository = cache.join(format!("models--{}", id.replace('/', "--")));
        if let Some(snapshot) = snapshot(&repository, revision)? {
            return Ok(snapshot);
        }
    }
    let looked = std::iter::once(path).chain(caches.iter().map(PathBuf::as_path));
    let looked: Vec<_> = looked.map(|p| p.display().to_string()).collect();
    Err(Error::input(Place::item(model), "a path, or a hub id in the local cache", "neither").hint(format!(
        "looked at {}; nothing is downloaded from here: run `hf download {id}`{}, or give a path",
        looked.join(", "),
        if revision == "main" { String::new() } else { format!(" with `--revision {revision}`") },
    )))
}

/// The Hugging Face cache that [`locate`] looks in, if the environment names one or a home to find it in.
pub fn cache_directory() -> Option<PathBuf> {
    caches(&|name| std::env::var_os(name)).into_iter().next()
}

/// `org/name@revision` in parts; `None` if it cannot be a hub id.
fn hub_id(model: &str) -> Option<(&str, &str)> {
    let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
    let part_ok = |part: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.chars().all(legal) && !part.starts_with(['.', '-']) && !part.contains("..")
    };
    let is_file = [".gguf", ".safetensors", ".json", ".bin"].iter().any(|end| id.ends_with(end));
    let id_ok = !is_file && id.split('/').count() <= 2 && id.split('/').all(part_ok);
    (id_ok && revision.split('/').all(part_ok)).then_some((id, revision))
}

/// The caches to look at: the first that is configured, in the order `huggingface_hub` has.
fn caches(var: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| set("HOME").or_else(|| set("USERPROFILE")).map(|home| home.join(".cache/huggingface/hub")));
    cache.into_iter().collect()
}

/// The directory of `revision` in a cached repository: a commit's own, or the one a branch or tag points to.
fn snapshot(repository: &Path, revision: &str) -> Result<Option<PathBuf>> {
    let snapshots = repository.join("snapshots");
    let commit = snapshots.join(revision);
    if commit.is_dir() {
        return Ok(Some(commit));
    }
    let reference = repository.join("refs").join(revision);
    if !reference.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&reference).map_err(|e| Error::io(&reference, "read", e))?;
    let hash = text.trim();
    if hash.is_empty() || !hash.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(Error::input(Place::file(&reference), "a commit hash", format!("{:.80?}", hash)));
    }
    let commit = snapshots.join(hash);
    if commit.is_dir() {
        return Ok(Some(commit));
    }
    Err(Error::input(Place::file(&commit), "the snapshot that refs points to", "nothing there")
        .hint("the cache is incomplete: download the model again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn cache() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("hub/models--org--name");
        fs::create_dir_all(repository.join("refs/pr")).unwrap();
        fs::create_dir_all(repository.join("snapshots/abc123")).unwrap();
        fs::write(repository.join("refs/main"), "abc123\n").unwrap();
        fs::write(repository.join("refs/pr/1"), "abc123").unwrap();
        fs::write(repository.join("refs/gone"), "def456").unwrap();
        fs::write(repository.join("refs/evil"), "../../..").unwrap();
        dir
    }

    fn find(model: &str, name: &'static str, value: &Path) -> Result<PathBuf> {
        locate_with(model, &|asked| (asked == name).then(|| value.as_os_str().to_owned()))
    }

    #[test]
    fn a_hub_id_is_found_by_branch_tag_and_commit() {
        let dir = cache();
        let snapshot = dir.path().join("hub/models--org--name/snapshots/abc123");
        for id in ["org/name", "org/name@main", "org/name@pr/1", "org/name@abc123"] {
            assert_eq!(find(id, "HF_HOME", dir.path()).unwrap(), snapshot, "{id}");
            assert_eq!(find(id, "HF_HUB_CACHE", &dir.path().join("hub")).unwrap(), snapshot, "{id}");
        }
        fs::create_dir_all(dir.path().join(".cache/huggingface")).unwrap();
        fs::rename(dir.path().join("hub"), dir.path().join(".cache/huggingface/hub")).unwrap();
        assert!(find("org/name", "HOME", dir.path()).is_ok());
    }

    #[test]
    fn what_is_not_there_says_where_it_was_looked_for() {
        let dir = cache();
        let error = find("org/other", "HF_HOME", dir.path()).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        let text = error.to_string();
        assert!(text.contains(dir.path().join("hub").to_str().unwrap()) && text.contains("hf download org/other"));
        assert!(find("org/name@gone", "HF_HOME", dir.path()).unwrap_err().to_string().contains("def456"));
        assert!(find("org/name@evil", "HF_HOME", dir.path()).is_err());
        assert!(locate_with("org/name", &|_| None).is_err());
    }

    #[test]
    fn paths_come_first_and_bad_ids_touch_nothing() {
        let dir = cache();
        let file = dir.path().join("m.gguf");
        fs::write(&file, "x").unwrap();
        assert_eq!(find(file.to_str().unwrap(), "HF_HOME", dir.path()).unwrap(), file);
        for bad in ["", "a/b/c", "../x", "org/..", "org/name@../../x", "x.gguf", "/no/such", "org/na me", "@main"] {
            assert!(find(bad, "HF_HOME", dir.path()).unwrap_err().to_string().contains("neither"), "{bad}");
        }
    }
}
