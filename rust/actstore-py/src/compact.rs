//! Freeing holes.

use std::path::Path;

use actstore_core::{Task, store};
use pyo3::prelude::*;

use crate::enter::enter;
use crate::reader::json;

/// Compacts the store at `path`; JSON of what it did.
#[pyfunction]
#[pyo3(signature = (path, threads=0, progress=None))]
pub fn compact(py: Python<'_>, path: &str, threads: usize, progress: Option<&Bound<'_, PyAny>>) -> PyResult<String> {
    let task = Task::new(threads);
    enter(py, &task, progress, || store::compact(Path::new(path), &task).map(|done| json(&done)))
}
