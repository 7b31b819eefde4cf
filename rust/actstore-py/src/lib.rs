//! `actstore._native`: the core as Python sees it. It converts, enters, and maps errors; nothing else.

// pyo3 hands arguments over by value.
#![allow(clippy::needless_pass_by_value)]

use pyo3::prelude::*;

mod about;
mod array;
mod called;
mod compact;
mod creation;
mod cross;
mod enter;
mod limits;
mod reader;
mod repair;
mod scan;
mod search;
mod source;
mod states;
mod writer;

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<array::Array>()?;
    m.add_class::<reader::Reader>()?;
    m.add_class::<writer::Writer>()?;
    m.add_function(wrap_pyfunction!(array::concat, m)?)?;
    m.add_function(wrap_pyfunction!(array::positions, m)?)?;
    m.add_function(wrap_pyfunction!(compact::compact, m)?)?;
    m.add_function(wrap_pyfunction!(repair::repair, m)?)?;
    m.add_function(wrap_pyfunction!(creation::place, m)?)?;
    m.add_function(wrap_pyfunction!(creation::check_replaceable, m)?)?;
    m.add_function(wrap_pyfunction!(creation::put_in_place, m)?)?;
    m.add_function(wrap_pyfunction!(creation::exchange, m)?)?;
    m.add_function(wrap_pyfunction!(limits::machine_limits, m)?)?;
    m.add_function(wrap_pyfunction!(scan::scan, m)?)?;
    m.add_function(wrap_pyfunction!(states::merge_states, m)?)?;
    m.add_function(wrap_pyfunction!(search::search, m)?)?;
    m.add_function(wrap_pyfunction!(search::maxsim, m)?)?;
    m.add_function(wrap_pyfunction!(search::mapped_norms, m)?)?;
    m.add_function(wrap_pyfunction!(cross::cross_moments, m)?)?;
    m.add_function(wrap_pyfunction!(about::build_info, m)?)?;
    m.add_function(wrap_pyfunction!(about::error_kinds, m)?)?;
    about::watch_forks(m)
}
