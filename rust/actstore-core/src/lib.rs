//! The store behind actstore: token x layer x dim activations as plain Zarr v3, committed by numbered
//! records, read and written in parallel. Knows nothing of Python.

#[cfg(not(all(target_endian = "little", target_pointer_width = "64")))]
compile_error!("the format is little-endian and its sizes have 64 bits: so must be the machine");

pub mod blocks;
pub mod dtype;
pub mod error;
pub mod format;
pub mod kernels;
pub mod ops;
pub mod process;
pub mod selection;
pub mod store;

pub use dtype::Dtype;
pub use error::{Error, Kind, Result};
pub use process::Task;
pub use selection::Rows;
