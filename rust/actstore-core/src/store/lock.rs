//! One writer a store: a lock that goes with its process, and is not kept by forked children.
//!
//! `flock` belongs to the open file, which a forked child shares: it would hold its dead parent's
//! lock. So all locks are in one table, and [`release_inherited`], called in a new child, closes the
//! child's copies; the parent's stay.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::error::{Error, Kind, Result};
use crate::store::files;

static HELD: LazyLock<Mutex<HashMap<u64, File>>> = LazyLock::new(Mutex::default);

/// A held lock; released when dropped.
#[derive(Debug)]
pub struct Lock {
    number: u64,
    pid: u32,
}

impl Lock {
    /// Takes the lock of a store, or says who has it.
    pub fn take(store: &Path) -> Result<Self> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let path = store.join(files::COMMITS).join("lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(|error| Error::io("open", &path, &error))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(Error::new(
                    Kind::Locked,
                    format!(
                        "{} is being written by process {}: wait for it, or write a store of its own and open both as parts",
                        store.display(),
                        holder.trim()
                    ),
                ));
            }
            Err(errno) => return Err(Error::io("lock", &path, &errno.into())),
        }
        // Who it is serves the message above alone.
        let pid = std::process::id();
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{pid}"));
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        HELD.lock().expect("no panic while held").insert(number, file);
        Ok(Lock { number, pid })
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
