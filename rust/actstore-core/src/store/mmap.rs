//! Mapped shards. Only files that are replaced, never changed in place, are mapped.
#![allow(unsafe_code)]

use std::fs::File;

use memmap2::Mmap;

/// Maps all of a file.
pub fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: only shards that a record pins are mapped (`PartArray::maps`). A published shard is never written or
    // truncated in place: writers and compaction make a new file and rename it. Its length was checked against
    // the record before; a foreign program that truncates it while it is mapped is outside what a reader can
    // guard against.
    unsafe { Mmap::map(file) }
}
