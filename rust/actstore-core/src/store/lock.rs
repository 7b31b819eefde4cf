//! One writer a store: a lock that goes with its process, and is not kept by forked children.
//!
//! `flock` belongs to the open file, which a forked child shares: it would hold its dead parent's
//! lock. So all locks are in one table, and [`release_inherited`], called in a new child, closes the
//! child's copies; the parent's stay.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags};

use crate::error::{Error, Kind, Result};
use crate::store::files;

static HELD: LazyLock<Mutex<HashMap<u64, File>>> = LazyLock::new(Mutex::default);

/// A held lock; released when dropped.
#[derive(Debug)]
pub struct Lock {
    number: u64,
    pid: u32,
    /// Device and inode of its file.
    file: (u64, u64),
}

impl Lock {
    /// Takes the lock of a store, or says who has it.
    pub fn take(store: &Path) -> Result<Self> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let path = place(store);
        files::refuse_links(store, path.parent().unwrap_or(store))?;
        let (mut file, place) = loop {
            let file = open(&path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(locked(store, file)),
                Err(errno) => return Err(Error::io("lock", &path, &errno.into())),
            }
            // The store may have been replaced since the file was opened: then this is the lock of the old one.
            let opened = identity(&file.metadata().map_err(|error| Error::io("read", &path, &error))?);
            if path.symlink_metadata().is_ok_and(|found| identity(&found) == opened) {
                break (file, opened);
            }
        };
        let pid = std::process::id();
        name_holder(&mut file, pid);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        HELD.lock().expect("no panic while held").insert(number, file);
        Ok(Lock { number, pid, file: place })
    }

    /// The same of a store that is there: no folder is made, and no file of a lock where there are no commits.
    pub fn take_existing(store: &Path) -> Result<Self> {
        let commits = store.join(files::COMMITS);
        if !commits.is_dir() {
            return Err(Error::metadata(format!("{} has no folder '{}'", store.display(), files::COMMITS)));
        }
        Lock::take(store)
    }

    /// An error when the store at `store` is not the one whose lock this is: it was moved or removed.
    pub fn check_place(&self, store: &Path) -> Result<()> {
        self.check_process()?;
        if place(store).symlink_metadata().is_ok_and(|found| identity(&found) == self.file) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Io,
            format!("{} is not the store that this writer opened: it was moved, removed or replaced", store.display()),
        ))
    }

    /// An error in any process but the one that took it.
    pub fn check_process(&self) -> Result<()> {
        if self.pid == std::process::id() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Forked,
            format!("this writer belongs to process {}: a forked child cannot use it", self.pid),
        ))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.pid == std::process::id()
            && let Ok(mut held) = HELD.lock()
        {
            held.remove(&self.number);
        }
    }
}

fn place(store: &Path) -> PathBuf {
    store.join(files::COMMITS).join("lock")
}

fn identity(found: &std::fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Opens the lock's file: a regular one, no link that leads to somebody else's.
fn open(path: &Path) -> Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path);
    let irregular = || Error::unsupported(format!("{} is no regular file: it cannot be the lock", path.display()));
    let file = opened.map_err(|error| match path.symlink_metadata() {
        Ok(found) if !found.is_file() => irregular(),
        _ => Error::io("open", path, &error),
    })?;
    let found = file.metadata().map_err(|error| Error::io("read", path, &error))?;
    if found.is_file() { Ok(file) } else { Err(irregular()) }
}

fn locked(store: &Path, file: File) -> Error {
    let mut holder = String::new();
    let _ = file.take(MAX_HOLDER).read_to_string(&mut holder);
    Error::new(
        Kind::Locked,
        format!(
            "{} is being written by process {}: wait for it, or write a store of its own and open both as parts",
            store.display(),
            holder.trim()
        ),
    )
}

/// Bytes of a process' number and a newline at most.
const MAX_HOLDER: u64 = 24;

/// Writes into the file who has the lock, which serves messages alone. Anything but a number stays: by a
/// hard link the file may be somebody else's as well.
fn name_holder(file: &mut File, pid: u32) {
    let mut before = Vec::new();
    let read = Read::by_ref(file).take(MAX_HOLDER + 1).read_to_end(&mut before);
    if read.is_ok_and(|n| n as u64 <= MAX_HOLDER) && before.iter().all(|b| b.is_ascii_digit() || *b == b'\n') {
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{pid}"));
    }
}

/// In a new child: closes what it inherited of its parent's locks.
pub fn release_inherited() {
    // The parent holds the table for a few instructions at a time; a child born within them gives up
    // and merely keeps the lock as long as it lives.
    for _ in 0..100 {
        if let Ok(mut held) = HELD.try_lock() {
            held.clear();
            return;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}
