//! What the machine can do.

use std::collections::BTreeMap;

use actstore_core::{Task, ops};
use pyo3::prelude::*;

use crate::enter::{Threads, enter};

/// Bytes read and float32 operations done in a second, measured now.
#[pyfunction]
#[pyo3(signature = (threads=Threads(0)))]
pub fn machine_limits(py: Python<'_>, threads: Threads) -> PyResult<BTreeMap<&'static str, f64>> {
    let task = Task::new(threads.0);
    let found = enter(py, &task, None, || ops::limits(&task))?;
    Ok(BTreeMap::from([
        ("read_bytes_per_second", found.read_bytes_per_second),
        ("f32_flops_per_second", found.f32_flops_per_second),
    ]))
}
