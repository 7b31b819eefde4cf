//! Writing anew what a store lost.

use std::path::PathBuf;

use actstore_core::store;
use pyo3::prelude::*;

use crate::enter::enter_briefly;

/// Writes anew what the store at `path` lost and its records still know; the files that were written.
#[pyfunction]
pub fn repair(py: Python<'_>, path: PathBuf) -> PyResult<Vec<String>> {
    enter_briefly(py, || store::repair(&path))
}
