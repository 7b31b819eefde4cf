//! Arrays, and the buffers that NumPy lends.
#![allow(unsafe_code)]

use actstore_core::store;
use actstore_core::{Dtype, Error, Rows, Task};
use numpy::{IntoPyArray, PyArrayDescrMethods, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::enter::{Threads, enter, enter_briefly, raise};
use crate::source::{RowsArgument, apart};

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
        if let Some(list) = rows.memory()? {
            apart(py, &bytes(out)?.as_ptr_range(), &list)?;
        }
        self.read_rows(py, rows.rows()?, layers.as_deref(), out, threads)
    }

    /// Reads the rows that an index means, among those from `start` to `stop`, of one layer into `[n, dim]`; false,
    /// and nothing is read, when one is out of range. In one call, for training loops do little else.
    #[pyo3(signature = (key, start, stop, layer, out))]
    fn gather(
        &self,
        py: Python<'_>,
        key: PyReadonlyArray1<'_, i64>,
        start: i64,
        stop: i64,
        layer: usize,
        out: &Bound<'_, PyUntypedArray>,
    ) -> PyResult<bool> {
        let Some(mut rows) = counted(&key, stop - start) else { return Ok(false) };
        rows.iter_mut().for_each(|row| *row += start);
        self.read_rows(py, Rows::List(&rows), Some(&[layer]), out, Threads(0))?;
        Ok(true)
    }
}

impl Array {
    fn read_rows(
        &self,
        py: Python<'_>,
        rows: Rows<'_>,
        layers: Option<&[usize]>,
        out: &Bound<'_, PyUntypedArray>,
        threads: Threads,
    ) -> PyResult<()> {
        let dtype = dtype_of(out)?;
        let bytes = bytes_mut(out)?;
        let task = Task::new(threads.0);
        let brief = bytes.len() < BRIEF;
        let work = || self.0.read(rows, layers, bytes, dtype, &task);
        if brief { enter_briefly(py, work) } else { enter(py, &task, None, work) }
    }
}

/// Positions among `n` that an index means: negative ones count from the end. None when one is out of range.
fn counted(key: &PyReadonlyArray1<'_, i64>, n: i64) -> Option<Vec<i64>> {
    let key = key.as_array();
    let inside = key.iter().all(|at| (-n..n).contains(at));
    inside.then(|| key.iter().map(|at| if *at < 0 { at + n } else { *at }).collect())
}

/// Positions among `n` that an index means: a half-open range if they are one, else a new array. Negative ones
/// count from the end. None when one is out of range.
#[pyfunction]
pub fn positions<'py>(key: PyReadonlyArray1<'py, i64>, n: i64) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = key.py();
    let Some(found) = counted(&key, n) else { return Ok(None) };
    let first = found.first().copied().unwrap_or(0);
    if found.iter().enumerate().all(|(i, at)| *at == first + i as i64) {
        return Ok(Some((first, first + found.len() as i64).into_pyobject(py)?.into_any()));
    }
    Ok(Some(found.into_pyarray(py).into_any()))
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
    // Asking for names takes longer than reading a few rows.
    let float = match dtype.kind() {
        b'f' if dtype.is_native_byteorder() == Some(true) => match dtype.itemsize() {
            2 => Some(Dtype::Float16),
            4 => Some(Dtype::Float32),
            8 => Some(Dtype::Float64),
            _ => None,
        },
        _ => None,
    };
    if let Some(float) = float {
        return Ok(float);
    }
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
    // SAFETY: `as_array_ptr` points at a live array object, of which one field is read.
    let flags = unsafe { (*array.as_array_ptr()).fields.flags };
    if flags & numpy::npyffi::NPY_ARRAY_WRITEABLE == 0 {
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
