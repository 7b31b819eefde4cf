//! Small files: read whole, replaced whole, durable when that is asked.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::error::{Error, Result};

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
    read(path)?
        .map(|bytes| {
            serde_json::from_slice(&bytes)
                .map_err(|error| Error::metadata(format!("{} does not parse: {error}", path.display())))
        })
        .transpose()
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
    let staged = stage(store, bytes)?;
    fs::rename(&staged, path).map_err(|error| {
        let _ = fs::remove_file(&staged);
        Error::io("replace", path, &error)
    })
}

/// Makes a folder and those above it up to `store`; the folders whose entries are new.
pub fn create_folders(store: &Path, path: &Path) -> Result<Vec<PathBuf>> {
    let mut touched = Vec::new();
    let mut missing: Vec<&Path> = path.ancestors().take_while(|p| *p != store && !p.is_dir()).collect();
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
