//! The one error of the core: a stable kind, and a message saying what was asked, found and to do.

use std::fmt;
use std::path::Path;

/// What went wrong, in terms that stay. Python maps each to a class of `actstore.errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A store, array, layer or example that is not there.
    NotFound,
    /// An argument that cannot be used: dtype, selection, name.
    InvalidInput,
    /// A shape other than the one expected.
    Shape,
    /// Bytes that do not match their checksum.
    Checksum,
    /// A shard that a record lists and that is not there.
    MissingShard,
    /// A file shorter than what must be in it.
    Truncated,
    /// Metadata that contradicts itself or cannot be parsed.
    Metadata,
    /// A store of a later format version.
    Version,
    /// Valid Zarr that this reader does not read.
    Unsupported,
    /// The store was compacted since this view of it was opened.
    Compacted,
    /// An input or output error of the system.
    Io,
    /// Another writer holds the lock.
    Locked,
    /// Something is in the way of what was to be made.
    Exists,
    /// No room left to write.
    DiskFull,
    /// A forked child used its parent's writer.
    Forked,
    /// A closed writer was used.
    Closed,
    /// The caller asked to stop.
    Interrupted,
}

impl Kind {
    /// Every kind, with its stable name and the Python class it is raised as.
    pub const ALL: [(Kind, &'static str, &'static str); 17] = [
        (Kind::NotFound, "not_found", "NotFoundError"),
        (Kind::InvalidInput, "invalid_input", "InvalidInputError"),
        (Kind::Shape, "shape", "ShapeError"),
        (Kind::Checksum, "checksum", "FormatError"),
        (Kind::MissingShard, "missing_shard", "FormatError"),
        (Kind::Truncated, "truncated", "FormatError"),
        (Kind::Metadata, "metadata", "FormatError"),
        (Kind::Version, "version", "FormatError"),
        (Kind::Unsupported, "unsupported", "FormatError"),
        (Kind::Compacted, "compacted", "FormatError"),
        (Kind::Io, "io", "StorageError"),
        (Kind::Locked, "locked", "StorageError"),
        (Kind::Exists, "exists", "StorageError"),
        (Kind::DiskFull, "disk_full", "StorageError"),
        (Kind::Forked, "forked", "StorageError"),
        (Kind::Closed, "closed", "StorageError"),
        (Kind::Interrupted, "interrupted", "KeyboardInterrupt"),
    ];

    /// The stable name.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// The Python class.
    pub fn class(self) -> &'static str {
        self.entry().2
    }

    fn entry(self) -> &'static (Kind, &'static str, &'static str) {
        Self::ALL.iter().find(|(kind, ..)| *kind == self).expect("every kind is listed")
    }
}

/// An error of the core.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of thing went wrong.
    pub kind: Kind,
    /// What was asked, what was found, what to do.
    pub message: String,
}

/// The result of everything that can fail here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into() }
    }

    /// The same error, with where it happened said first.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Self {
        Error { kind: self.kind, message: format!("{place}: {}", self.message) }
    }

    /// A system error met while doing `what` to `path`.
    pub fn io(what: &str, path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        let kind = match error.kind() {
            E::StorageFull | E::QuotaExceeded | E::FileTooLarge => Kind::DiskFull,
            _ => Kind::Io,
        };
        Error::new(kind, format!("cannot {what} {}: {error}", path.display()))
    }
}

/// Shorthand for the commonest constructors.
macro_rules! kinds {
    ($($name:ident => $kind:ident),* $(,)?) => {
        impl Error {
            $(
                #[doc = concat!("An error of [`Kind::", stringify!($kind), "`].")]
                pub fn $name(message: impl Into<String>) -> Self {
                    Error::new(Kind::$kind, message)
                }
            )*
        }
    };
}

kinds! {
    not_found => NotFound,
    invalid => InvalidInput,
    shape => Shape,
    checksum => Checksum,
    truncated => Truncated,
    metadata => Metadata,
    unsupported => Unsupported,
}
