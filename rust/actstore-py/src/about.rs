//! What this build is, and what it tells the interpreter.

use std::collections::BTreeMap;

use actstore_core::{Kind, format::record, kernels, store::lock};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The version, the format and the instruction set in use.
#[pyfunction]
pub fn build_info() -> BTreeMap<&'static str, String> {
    let available: Vec<&str> = kernels::available().iter().map(|k| k.name).collect();
    BTreeMap::from([
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        ("format", record::FORMAT.to_string()),
        ("instruction_set", kernels::instruction_set().to_string()),
        ("instruction_sets", available.join(" ")),
    ])
}

/// Each kind of error and the class it is raised as.
#[pyfunction]
pub fn error_kinds() -> BTreeMap<&'static str, &'static str> {
    Kind::ALL.iter().map(|(_, name, class)| (*name, *class)).collect()
}

#[pyfunction]
fn release_inherited_locks() {
    lock::release_inherited();
}

/// Forked children let go of their parent's locks.
pub fn watch_forks(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let os = m.py().import("os")?;
    if let Ok(register) = os.getattr("register_at_fork") {
        let keywords = PyDict::new(m.py());
        keywords.set_item("after_in_child", wrap_pyfunction!(release_inherited_locks, m)?)?;
        register.call((), Some(&keywords))?;
    }
    Ok(())
}
