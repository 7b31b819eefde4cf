//! Where a store can be made, and putting one in the place of another.

use std::path::PathBuf;

use actstore_core::store;
use pyo3::prelude::*;

use crate::enter::enter_briefly;

/// What there is where a store could be: `free`, `zarr`, `interrupted`, `rootless` or `other`.
#[pyfunction]
pub fn place(py: Python<'_>, path: PathBuf) -> PyResult<&'static str> {
    enter_briefly(py, || store::Place::of(&path).map(store::Place::name))
}

/// An error unless the store at `path` may be replaced.
#[pyfunction]
pub fn check_replaceable(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    enter_briefly(py, || store::creation::check_replaceable(&path))
}

/// Puts the finished store `new` in the place of the store at `path`, which is removed.
#[pyfunction]
pub fn put_in_place(py: Python<'_>, new: PathBuf, path: PathBuf) -> PyResult<()> {
    enter_briefly(py, || store::creation::put_in_place(&new, &path))
}

/// Exchanges two folders.
#[pyfunction]
pub fn exchange(py: Python<'_>, new: PathBuf, path: PathBuf) -> PyResult<()> {
    enter_briefly(py, || store::exchange(&new, &path))
}
