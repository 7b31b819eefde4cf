//! Stores on disk: read at a commit, written by one writer, verified and compacted.

pub mod array;
mod array_writer;
mod blocks;
mod chunk;
mod commit;
mod compact;
pub mod creation;
mod files;
pub mod lock;
mod mmap;
mod part;
mod pipeline;
mod place;
pub mod reader;
mod recovery;
mod repair;
mod segments;
mod shard_file;
mod verify;
mod view;
pub mod writer;

pub use array::Array;
pub use blocks::Selection;
pub use compact::{Compaction, compact};
pub use creation::Overwrite;
pub use files::exchange;
pub use place::Place;
pub use reader::{Reader, Usage};
pub use repair::repair;
pub use verify::{Damage, Report};
pub use writer::Writer;

/// When checksums of mapped (raw) chunks are computed; those of compressed ones are at every read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// When a chunk is first touched.
    First,
    /// At every read.
    Always,
    /// Never.
    Never,
}

impl Verify {
    /// `first`, `always` or `never`.
    pub fn parse(name: &str) -> crate::Result<Self> {
        match name {
            "first" => Ok(Verify::First),
            "always" => Ok(Verify::Always),
            "never" => Ok(Verify::Never),
            other => Err(crate::Error::invalid(format!("verify='{other}': give 'first', 'always' or 'never'"))),
        }
    }
}
