//! Freeing holes.

use std::path::PathBuf;

use actstore_core::{Task, store};
use pyo3::prelude::*;

use crate::enter::{Threads, enter};
use crate::reader::json;

/// Compacts the store at `path`; JSON of what it did.
#[pyfunction]
#[pyo3(signature = (path, threads=Threads(0), progress=None))]
pub fn compact(
    py: Python<'_>,
    path: PathBuf,
    threads: Threads,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<String> {
    let task = Task::new(threads.0);
    enter(py, &task, progress, || store::compact(&path, &task).map(|done| json(&done)))
}
