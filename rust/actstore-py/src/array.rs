//! Arrays, and the buffers that NumPy lends.
#![allow(unsafe_code)]

use actstore_core::store;
use actstore_core::{Dtype, Error, Task};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::enter::{Threads, enter, enter_briefly, raise};
use crate::source::RowsArgument;

/// Reads of fewer bytes are over before anybody presses Ctrl-C.
const BRIEF: usize = 1 << 20;

#[pyclass(frozen, module = "actstore._native")]
pub struct Array(pub store::Array);

#[pymethods]
impl Array {
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyTuple>> {
        pyo3::types::PyTuple::new(py, self.0.shape())
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.meta().dtype.name()
    }

    #[getter]
    fn codec(&self) -> &'static str {
        self.0.meta().chain.name()
    }

    #[getter]
    fn chunk_rows(&self) -> usize {
        self.0.meta().chunk[0]
    }

    #[getter]
    fn attributes(&self) -> String {
        self.0.meta().attributes.to_string()
    }

    #[pyo3(signature = (rows, layers, out, threads=Threads(0)))]
    fn read(
        &self,
        py: Python<'_>,
        rows: RowsArgument<'_>,
        layers: Option<Vec<usize>>,
        out: &Bound<'_, PyUntypedArray>,
        threads: Threads,
    ) -> PyResult<()> {
        let dtype = dtype_of(out)?;
        let bytes = bytes_mut(out)?;
        let rows = rows.rows()?;
        let task = Task::new(threads.0);
        let brief = bytes.len() < BRIEF;
        let work = || self.0.read(rows, layers.as_deref(), bytes, dtype, &task);
        if brief { enter_briefly(py, work) } else { enter(py, &task, None, work) }
    }
}

/// The rows of several arrays as one.
#[pyfunction]
pub fn concat(py: Python<'_>, arrays: Vec<PyRef<'_, Array>>) -> PyResult<Array> {
    let arrays: Vec<&store::Array> = arrays.iter().map(|a| &a.0).collect();
    store::Array::concat(&arrays).map(Array).map_err(|error| raise(py, &error))
}

/// The element type of a NumPy array, ml_dtypes' among them.
pub fn dtype_of(array: &Bound<'_, PyUntypedArray>) -> PyResult<Dtype> {
    let dtype = array.dtype();
    let name: String = dtype.getattr("name")?.extract()?;
    let native: bool = dtype.getattr("isnative")?.extract()?;
    if !native {
        return Err(raise(array.py(), &Error::invalid(format!("{name} in the other byte order: convert it first"))));
    }
    Dtype::parse(&name).map_err(|error| raise(array.py(), &Error::invalid(error.message)))
}

/// The bytes of a C-contiguous array.
pub fn bytes<'a>(array: &'a Bound<'_, PyUntypedArray>) -> PyResult<&'a [u8]> {
    let (data, length) = place(array)?;
    // SAFETY: `place` checked that the array is C-contiguous, so `length` bytes from its start are its
    // own. NumPy keeps them alive while `array` is; like NumPy's own routines without the GIL, this
    // relies on no other thread writing to the array meanwhile.
    Ok(unsafe { std::slice::from_raw_parts(data, length) })
}

/// The bytes of a C-contiguous array that may be written to.
#[allow(clippy::mut_from_ref)]
pub fn bytes_mut<'a>(array: &'a Bound<'_, PyUntypedArray>) -> PyResult<&'a mut [u8]> {
    let writeable: bool = array.getattr("flags")?.getattr("writeable")?.extract()?;
    if !writeable {
        return Err(raise(array.py(), &Error::invalid("the output array is read-only")));
    }
    let (data, length) = place(array)?;
    // SAFETY: as in `bytes`, and it is writeable; each call makes one slice of the one output it has.
    Ok(unsafe { std::slice::from_raw_parts_mut(data, length) })
}

fn place(array: &Bound<'_, PyUntypedArray>) -> PyResult<(*mut u8, usize)> {
    if !array.is_c_contiguous() {
        return Err(raise(array.py(), &Error::invalid("the array is not C-contiguous")));
    }
    let length = array.len() * array.dtype().itemsize();
    if length == 0 {
        return Ok((std::ptr::NonNull::dangling().as_ptr(), 0));
    }
    // SAFETY: `as_array_ptr` points at a live array object, of which one field is read.
    let data = unsafe { (*array.as_array_ptr()).fields.data.cast::<u8>() };
    Ok((data, length))
}
