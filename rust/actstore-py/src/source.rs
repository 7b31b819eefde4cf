//! What analyses run over: a selection of a stored array, or of one in memory.

use std::ops::Range;

use actstore_core::blocks::{Blocks, Dense};
use actstore_core::store::Selection;
use actstore_core::{Error, Rows};
use numpy::{PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::array::{Array, bytes, dtype_of};
use crate::enter::raise;

/// An array: stored, or in memory.
#[derive(FromPyObject)]
pub enum ArrayArgument<'py> {
    Stored(Bound<'py, Array>),
    Memory(Bound<'py, PyUntypedArray>),
}

impl ArrayArgument<'_> {
    /// How many rows it has.
    pub fn rows(&self, py: Python<'_>) -> PyResult<usize> {
        let rows = match self {
            ArrayArgument::Stored(array) => array.get().0.shape().first().copied(),
            ArrayArgument::Memory(array) => array.shape().first().copied(),
        };
        rows.ok_or_else(|| raise(py, &Error::shape("an array without axes")))
    }
}

/// Rows: a range, or a list.
#[derive(FromPyObject)]
pub enum RowsArgument<'py> {
    List(PyReadonlyArray1<'py, i64>),
    Range((usize, usize)),
}

impl RowsArgument<'_> {
    /// As the core has them.
    pub fn rows(&self) -> PyResult<Rows<'_>> {
        Ok(match self {
            RowsArgument::Range((start, stop)) => Rows::Range(*start, *stop),
            RowsArgument::List(list) => Rows::List(list.as_slice()?),
        })
    }

    /// The memory of a list.
    pub fn memory(&self) -> PyResult<Option<Range<*const u8>>> {
        Ok(match self {
            RowsArgument::Range(_) => None,
            RowsArgument::List(list) => {
                let Range { start, end } = list.as_slice()?.as_ptr_range();
                Some(start.cast()..end.cast())
            }
        })
    }
}

/// An error when an output shares memory with what is read meanwhile.
pub fn apart(py: Python<'_>, out: &Range<*const u8>, other: &Range<*const u8>) -> PyResult<()> {
    if out.start < other.end && other.start < out.end {
        return Err(raise(py, &Error::invalid("an output shares memory with another array of the call")));
    }
    Ok(())
}

/// Opens a selection and runs `work` over it.
pub fn with_source<T>(
    py: Python<'_>,
    array: &ArrayArgument<'_>,
    rows: &RowsArgument<'_>,
    layers: Option<&[usize]>,
    work: impl FnOnce(&dyn Blocks) -> PyResult<T>,
) -> PyResult<T> {
    let rows = rows.rows()?;
    match array {
        ArrayArgument::Stored(array) => {
            let selection = Selection::new(&array.get().0, rows, layers).map_err(|error| raise(py, &error))?;
            work(&selection)
        }
        ArrayArgument::Memory(array) => {
            let &[n, n_layers, dim] = array.shape() else {
                let message = format!("an array of three axes is computed on, not {:?}", array.shape());
                return Err(raise(py, &Error::shape(message)));
            };
            let dense = Dense::new(bytes(array)?, dtype_of(array)?, [n, n_layers, dim], rows, layers);
            work(&dense.map_err(|error| raise(py, &error))?)
        }
    }
}
