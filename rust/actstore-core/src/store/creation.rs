//! Creates a store: at a free path, over the remains of an interrupted creation, or in the place of another store.
//! Nothing else is ever removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::ThreadPool;
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::format::zarr::ArraySpec;
use crate::process::pool;
use crate::store::files::{self, COMMITS};
use crate::store::lock::Lock;
use crate::store::place::{Place, is_folder, is_of_commits, only_shards, remains, rootless};
use crate::store::recovery::is_orphan;
use crate::store::writer::Writer;
use crate::store::{Reader, Verify, view};

/// Which stores a new one replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// None.
    Never,
    /// Those to which no example was ever committed.
    Empty,
    /// All.
    Always,
}

impl Overwrite {
    /// `never`, `empty` or `always`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "never" => Ok(Overwrite::Never),
            "empty" => Ok(Overwrite::Empty),
            "always" => Ok(Overwrite::Always),
            other => Err(Error::invalid(format!("overwrite '{other}': give 'never', 'empty' or 'always'"))),
        }
    }
}

impl Writer {
    /// Creates a store at `path` with `arrays` without rows, and publishes its first record. Anything at `path` is an
    /// error, unless it is a store that `overwrite` allows to replace.
    pub fn create(
        path: &Path,
        attributes: Value,
        arrays: &[ArraySpec],
        state: Value,
        overwrite: Overwrite,
        threads: usize,
    ) -> Result<Self> {
        let pool = pool(threads)?;
        // Everything that can be refused is refused before the disk is touched.
        for spec in arrays {
            spec.metadata().map_err(|error| error.at(format!("array '{}'", spec.name)))?;
        }
        let lock = loop {
            let place = Place::of(path)?;
            if overwrite != Overwrite::Never && place == Place::Zarr {
                return replace(path, attributes, arrays, state, overwrite, pool);
            }
            check_free(path, place)?;
            for folder in files::make_folders(Path::new(""), &path.join(COMMITS))? {
                files::sync_folder(if folder.as_os_str().is_empty() { Path::new(".") } else { &folder })?;
            }
            let lock = Lock::take(path)?;
            // Another process may have been here before the lock was taken.
            let place = Place::of(path)?;
            if overwrite == Overwrite::Never || place != Place::Zarr {
                check_free(path, place)?;
                break lock;
            }
        };
        // The lock must be durable: an interrupted creation is recognized by it.
        files::sync_folder(&path.join(COMMITS))?;
        clear(path)?;
        Writer::first(path, lock, attributes, arrays, state, pool)
    }
}

/// An error unless a store can be created there without losing anything.
fn check_free(path: &Path, place: Place) -> Result<()> {
    let what = match place {
        Place::Free | Place::Interrupted => return Ok(()),
        Place::Zarr => return Err(exists(path)),
        Place::Rootless => return Err(Error::new(Kind::Exists, rootless(path).message)),
        Place::Other if path.is_dir() => "is a folder with other files in it: choose a new one".to_string(),
        Place::Other if path.exists() => "is a file".to_string(),
        Place::Other => "is a link that leads nowhere".to_string(),
    };
    Err(Error::new(Kind::Exists, format!("{} {what}", path.display())))
}

/// Creates a store beside the one at `path`, and exchanges the two. There is a store at every moment, and the old one
/// stays if the new one cannot be created.
fn replace(
    path: &Path,
    attributes: Value,
    arrays: &[ArraySpec],
    state: Value,
    overwrite: Overwrite,
    pool: Arc<ThreadPool>,
) -> Result<Writer> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let old = Replaced::take(path)?;
    if overwrite == Overwrite::Empty && !is_empty(&old.path)? {
        return Err(exists(path));
    }
    let name = old.path.file_name().unwrap_or_default().to_string_lossy();
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let beside = old.path.with_file_name(format!(".{name}.new-{}-{n}", std::process::id()));
    fs::create_dir(&beside).map_err(|error| Error::io("create", &beside, &error))?;
    let made = files::create_folders(&beside, &beside.join(COMMITS))
        .and_then(|_| Lock::take(&beside))
        .and_then(|lock| Writer::first(&beside, lock, attributes, arrays, state, pool))
        .and_then(|writer| old.exchange(&beside).map(|()| writer));
    match made {
        Ok(mut writer) => {
            writer.moved(path);
            old.remove(&beside)?;
            Ok(writer)
        }
        Err(error) => {
            let _ = fs::remove_dir_all(&beside);
            Err(error)
        }
    }
}

/// Replaces the store at `path` by the finished store `new`.
pub fn put_in_place(new: &Path, path: &Path) -> Result<()> {
    let old = Replaced::take(path)?;
    old.exchange(new)?;
    old.remove(new)
}

/// An error unless the store at `path` may be replaced at this moment.
pub fn check_replaceable(path: &Path) -> Result<()> {
    Replaced::take(path).map(|_| ())
}

/// A store that is being replaced, and its lock.
struct Replaced {
    path: PathBuf,
    lock: Lock,
}

impl Replaced {
    /// Refuses a path that is no store, a store with a writer, and one with other files in its folder.
    fn take(path: &Path) -> Result<Self> {
        // Behind a link, the store is replaced, not the link.
        let real = fs::canonicalize(path).map_err(|error| Error::io("follow", path, &error))?;
        let root = files::read_json(&real.join("zarr.json")).ok().flatten().unwrap_or_default();
        if root.pointer("/attributes/actstore").is_none() || !real.join(COMMITS).is_dir() {
            return Err(Error::new(
                Kind::Exists,
                format!("{} is not an actstore store: overwrite does not remove it", path.display()),
            ));
        }
        let lock = Lock::take_existing(&real)?;
        check_own(&real, &root)?;
        Ok(Replaced { path: real, lock })
    }

    fn exchange(&self, new: &Path) -> Result<()> {
        self.lock.check_place(&self.path)?;
        files::exchange(new, &self.path)
    }

    /// Removes it from its place after the exchange.
    fn remove(self, aside: &Path) -> Result<()> {
        files::sync_folder(self.path.parent().unwrap_or(Path::new("/")))?;
        fs::remove_dir_all(aside)
            .map_err(|error| Error::io("remove", aside, &error).at("the new store is there, the old one is not gone"))
    }
}

/// Whether no rows were ever committed, apart from the 0 with which offsets begin.
fn is_empty(path: &Path) -> Result<bool> {
    let reader = Reader::open(path, Verify::First)?;
    Ok(reader.refused().is_empty()
        && reader.view().arrays.values().all(|meta| meta.shape[0] <= usize::from(meta.ndim == 1)))
}

fn exists(path: &Path) -> Error {
    let message = format!("{} exists already: append to it, or create with overwrite=True", path.display());
    Error::new(Kind::Exists, message)
}

/// An error unless everything in a store's folder belongs to the store.
fn check_own(path: &Path, root: &Value) -> Result<()> {
    // In a damaged store, whatever can be read says what belongs to it.
    let mut known: BTreeSet<String> = BTreeSet::from([COMMITS.to_string()]);
    if let Some(members) = root.pointer("/consolidated_metadata/metadata").and_then(Value::as_object) {
        known.extend(members.keys().cloned());
    }
    if let Ok(Some(record)) = view::newest_record(path) {
        known.extend(record.groups.into_keys().chain(record.arrays.into_keys()));
    }
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for name in files::list(&path.join(&folder))? {
            let inner = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            if known.contains(&inner) {
                if is_folder(&path.join(&inner)) {
                    folders.push(inner);
                }
                continue;
            }
            let own = match folder.as_str() {
                _ if name == "zarr.json" => true,
                COMMITS => is_of_commits(&name),
                "" => is_orphan(path, &inner)?,
                _ if name == "c" => path.join(&inner).is_symlink() || only_shards(&path.join(&inner), 0)?,
                _ => is_orphan(path, &inner)?,
            };
            if !own {
                return Err(Error::new(
                    Kind::Exists,
                    format!(
                        "'{inner}' in {} does not belong to the store: overwrite does not remove it",
                        path.display()
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Removes the remains of an interrupted creation, except the lock, which the caller holds.
fn clear(path: &Path) -> Result<()> {
    for one in remains(path)?.unwrap_or_default() {
        // One by one: a folder that got new contents meanwhile stays.
        let removed = if is_folder(&one) { fs::remove_dir(&one) } else { fs::remove_file(&one) };
        removed.map_err(|error| Error::io("remove", &one, &error))?;
    }
    Ok(())
}
