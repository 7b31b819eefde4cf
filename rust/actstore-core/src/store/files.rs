//! Small files: read whole, replaced whole, durable when that is asked.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::format::json;

/// The folder of a store's lock and records.
pub const COMMITS: &str = "commits";
/// What temporary files in it are called; whoever has the lock may remove them.
pub const TEMPORARY: &str = ".tmp-";
/// Metadata beyond this are not believed.
const MAX_METADATA: u64 = 1 << 30;

/// Reads a file, None where there is none.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let said = file.metadata().map_err(|error| Error::io("read", path, &error))?.len();
    let mut bytes = Vec::new();
    if said <= MAX_METADATA {
        file.take(MAX_METADATA + 1).read_to_end(&mut bytes).map_err(|error| Error::io("read", path, &error))?;
    }
    if said.max(bytes.len() as u64) > MAX_METADATA {
        return Err(Error::metadata(format!("{} has more than {MAX_METADATA} bytes", path.display())));
    }
    Ok(Some(bytes))
}

/// Opens a file to read, None where there is none. Pipes and devices, which could block for ever, are
/// refused.
pub fn open(path: &Path) -> Result<Option<File>> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(Error::metadata(format!("{} is no file", path.display()))),
        Ok(_) => {}
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(Error::io("read", path, &error)),
    }
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(Error::io("open", path, &error)),
    }
}

/// Reads a JSON file, None where there is none.
pub fn read_json(path: &Path) -> Result<Option<Value>> {
    read(path)?.map(|bytes| json::parse(&bytes).map_err(|error| error.at(path.display()))).transpose()
}

/// Whether nothing is there, be it the file or a folder above it.
pub fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// A name for a temporary file that no other thread takes.
pub fn temporary(store: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    store.join(COMMITS).join(format!("{TEMPORARY}{}-{n}", std::process::id()))
}

/// A new file, for writing and reading back.
pub fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|error| Error::io("create", path, &error))
}

/// Writes a temporary file, durable, for a rename or a link.
pub fn stage(store: &Path, bytes: &[u8]) -> Result<PathBuf> {
    let path = temporary(store);
    let mut file = create(&path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| {
        let _ = fs::remove_file(&path);
        Error::io("write", &path, &error)
    })?;
    Ok(path)
}

/// Puts `bytes` where `path` is, at once and for good; the folder is the caller's to sync.
pub fn replace(store: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    refuse_links(store, path.parent().unwrap_or(store))?;
    let staged = stage(store, bytes)?;
    fs::rename(&staged, path).map_err(|error| {
        let _ = fs::remove_file(&staged);
        Error::io("replace", path, &error)
    })
}

/// Gives a file its final name, unless something has that name already. The old name is gone after it.
pub fn publish(from: &Path, to: &Path) -> Result<()> {
    publish_by(&[Publish::Link, Publish::Rename, Publish::Look], from, to)
}

/// How a file gets a name that nothing has.
#[derive(Clone, Copy, Debug)]
enum Publish {
    /// A second name, which fails where there is one. Not every file system has hard links.
    Link,
    /// `renameat2` with `RENAME_NOREPLACE`, which not every file system has either.
    Rename,
    /// A look, then a plain rename: safe under the lock, for nobody else publishes there. The name never
    /// stands for half a file, as it would if the file were written under it.
    Look,
}

/// Tries the ways in turn, until one is supported.
fn publish_by(ways: &[Publish], from: &Path, to: &Path) -> Result<()> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Error::new(Kind::Exists, format!("{} is there already", to.display())),
        _ => Error::io("publish", to, &error),
    };
    let mut last = None;
    for way in ways {
        let done = match way {
            Publish::Link => fs::hard_link(from, to).map(|()| {
                let _ = fs::remove_file(from);
            }),
            Publish::Rename => renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(Into::into),
            Publish::Look if to.symlink_metadata().is_ok() => Err(std::io::ErrorKind::AlreadyExists.into()),
            Publish::Look => fs::rename(from, to),
        };
        match done {
            Ok(()) => return Ok(()),
            Err(error) if is_unsupported(&error) => last = Some(error),
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(last.unwrap_or_else(|| std::io::ErrorKind::Unsupported.into())))
}

/// Whether a file system says that it does not have a call, in one of the ways in which they say so.
fn is_unsupported(error: &std::io::Error) -> bool {
    let unsupported = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOTSUP, Errno::NOSYS, Errno::INVAL];
    unsupported.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Puts the folder `new` in the place of the folder `path`, at once where the file system can exchange
/// names. What was there is then called `new`, and is the caller's to remove.
pub fn exchange(new: &Path, path: &Path) -> Result<()> {
    match renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE).map_err(std::io::Error::from) {
        Err(error) if is_unsupported(&error) => exchange_by_renames(new, path),
        done => done.map_err(|error| Error::io("put in place", path, &error)),
    }
}

/// The same in three steps. A kill between them leaves the old folder beside `path`, as `NAME.old`.
fn exchange_by_renames(new: &Path, path: &Path) -> Result<()> {
    let name = new.file_name().unwrap_or_default().to_string_lossy();
    let aside = new.with_file_name(format!("{name}.old"));
    fs::rename(path, &aside).map_err(|error| Error::io("move aside", path, &error))?;
    // A folder with anything in it, which somebody made there meanwhile, is not replaced by a rename.
    if let Err(error) = fs::rename(new, path) {
        let error = Error::io("put in place", path, &error);
        return Err(match fs::rename(&aside, path) {
            Ok(()) => error,
            Err(_) => error.at(format!("the old store is now {}", aside.display())),
        });
    }
    fs::rename(&aside, new).map_err(|error| Error::io("rename", &aside, &error))
}

/// An error when `path`, or a folder between it and `store`, is a symbolic link: what is written, renamed or
/// removed through it would be somebody else's.
pub fn refuse_links(store: &Path, path: &Path) -> Result<()> {
    for folder in path.ancestors().take_while(|folder| *folder != store) {
        if folder.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
            let message = format!(
                "{} is a symbolic link: nothing is written through links, put the folder itself there",
                folder.display()
            );
            return Err(Error::unsupported(message));
        }
    }
    Ok(())
}

/// Makes a folder of a store and those between them; the folders whose entries are new.
pub fn create_folders(store: &Path, path: &Path) -> Result<Vec<PathBuf>> {
    refuse_links(store, path)?;
    make_folders(store, path)
}

/// Makes a folder and those above it up to `top`, through links as well; the folders whose entries are new.
pub fn make_folders(top: &Path, path: &Path) -> Result<Vec<PathBuf>> {
    let mut touched = Vec::new();
    let mut missing: Vec<&Path> = path.ancestors().take_while(|p| *p != top && !p.is_dir()).collect();
    while let Some(folder) = missing.pop() {
        match fs::create_dir(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("create", folder, &error)),
        }
        touched.extend(folder.parent().map(Path::to_path_buf));
    }
    Ok(touched)
}

/// Makes a folder's entries durable.
pub fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| Error::io("sync", path, &error))
}

/// The names in a folder; none where there is no folder.
pub fn list(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", path, &error)),
    };
    entries
        .map(|entry| {
            entry.map(|e| e.file_name().to_string_lossy().into_owned()).map_err(|error| Error::io("list", path, &error))
        })
        .collect()
}

/// The numbers of the records there are, in order.
pub fn record_numbers(store: &Path) -> Result<Vec<u64>> {
    let mut numbers: Vec<u64> = list(&store.join(COMMITS))?.iter().filter_map(|name| record_number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The number of a record's file; None of any other.
pub fn record_number(name: &str) -> Option<u64> {
    name.strip_suffix(".json").filter(|n| n.len() == 20)?.parse().ok()
}

/// A record's file.
pub fn record_name(number: u64) -> String {
    format!("{number:020}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("actstore-files-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn each_way_of_publishing_gives_a_free_name_and_leaves_a_taken_one() {
        let folder = folder("publish");
        for (i, way) in [Publish::Link, Publish::Rename, Publish::Look].into_iter().enumerate() {
            let (from, to) = (folder.join("from"), folder.join(i.to_string()));
            fs::write(&from, "new").unwrap();
            publish_by(&[way], &from, &to).unwrap();
            assert_eq!(fs::read(&to).unwrap(), b"new");
            assert!(!from.exists());
            fs::write(&from, "other").unwrap();
            assert_eq!(publish_by(&[way], &from, &to).unwrap_err().kind, Kind::Exists, "{way:?}");
            assert_eq!((fs::read(&to).unwrap(), fs::read(&from).unwrap()), (b"new".to_vec(), b"other".to_vec()));
            // A link that leads nowhere has the name as well.
            let dangling = folder.join(format!("{i}-link"));
            std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
            assert_eq!(publish_by(&[way], &from, &dangling).unwrap_err().kind, Kind::Exists, "{way:?}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn folders_are_exchanged_with_and_without_the_systems_help() {
        let folder = folder("exchange");
        let (new, path) = (folder.join("new"), folder.join("path"));
        for (name, at) in [("new", &new), ("old", &path)] {
            fs::create_dir(at).unwrap();
            fs::write(at.join(name), "").unwrap();
        }
        for (way, there) in [(exchange as fn(&Path, &Path) -> Result<()>, "new"), (exchange_by_renames, "old")] {
            way(&new, &path).unwrap();
            assert_eq!(list(&path).unwrap(), [there]);
            assert_eq!(list(&folder).unwrap().len(), 2);
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
