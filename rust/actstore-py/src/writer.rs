//! Writing a store.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use actstore_core::format::zarr::ArraySpec;
use actstore_core::store;
use actstore_core::{Error, Kind, Task, process};
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use serde_json::Value;

use crate::array::{bytes, dtype_of};
use crate::enter::{Threads, enter, enter_briefly, raise};
use crate::reader::parse;

#[pyclass(frozen, module = "actstore._native")]
pub struct Writer {
    path: PathBuf,
    open: Mutex<Option<store::Writer>>,
}

type Rows<'py> = BTreeMap<String, Bound<'py, PyUntypedArray>>;

#[pymethods]
impl Writer {
    #[staticmethod]
    #[pyo3(signature = (path, attributes, arrays, state, overwrite, threads=Threads(0)))]
    fn create(
        py: Python<'_>,
        path: PathBuf,
        attributes: &str,
        arrays: &str,
        state: &str,
        overwrite: &str,
        threads: Threads,
    ) -> PyResult<Self> {
        let attributes: Value = parse(py, "attributes", attributes)?;
        let arrays: Vec<ArraySpec> = parse(py, "arrays", arrays)?;
        let state: Value = parse(py, "state", state)?;
        let made = enter_briefly(py, || {
            let overwrite = store::Overwrite::parse(overwrite)?;
            store::Writer::create(&path, attributes, &arrays, state, overwrite, threads.0)
        })?;
        Ok(Writer { path, open: Mutex::new(Some(made)) })
    }

    #[staticmethod]
    #[pyo3(signature = (path, threads=Threads(0)))]
    fn append_to(py: Python<'_>, path: PathBuf, threads: Threads) -> PyResult<Self> {
        let opened = enter_briefly(py, || store::Writer::append_to(&path, threads.0))?;
        Ok(Writer { path, open: Mutex::new(Some(opened)) })
    }

    #[getter]
    fn path(&self) -> OsString {
        self.path.clone().into_os_string()
    }

    #[getter]
    fn attributes(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |writer| Ok(writer.attributes().to_string()))
    }

    fn set_attributes(&self, py: Python<'_>, attributes: &str) -> PyResult<()> {
        let attributes: Value = parse(py, "attributes", attributes)?;
        self.with(py, |writer| writer.set_attributes(attributes).map_err(|error| raise(py, &error)))
    }

    #[getter]
    fn state(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |writer| Ok(writer.state().to_string()))
    }

    #[getter]
    fn arrays<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, pyo3::types::PyDict>> {
        let all = pyo3::types::PyDict::new(py);
        self.with(py, |writer| {
            for (name, shape, dtype) in writer.arrays() {
                all.set_item(name, (pyo3::types::PyTuple::new(py, shape)?, dtype))?;
            }
            Ok(())
        })?;
        Ok(all)
    }

    fn add_arrays(&self, py: Python<'_>, arrays: &str) -> PyResult<()> {
        let arrays: Vec<ArraySpec> = parse(py, "arrays", arrays)?;
        self.with(py, |writer| writer.add_arrays(&arrays).map_err(|error| raise(py, &error)))
    }

    fn add_groups(&self, py: Python<'_>, groups: &str) -> PyResult<()> {
        let groups: BTreeMap<String, Value> = parse(py, "groups", groups)?;
        self.with(py, |writer| writer.add_groups(&groups).map_err(|error| raise(py, &error)))
    }

    fn append(&self, py: Python<'_>, rows: Rows<'_>) -> PyResult<bool> {
        self.with(py, |writer| {
            let known: BTreeMap<String, (Vec<usize>, &str)> =
                writer.arrays().map(|(name, shape, dtype)| (name.to_string(), (shape, dtype))).collect();
            let mut parts = Vec::new();
            for (name, array) in &rows {
                if let Some((shape, dtype)) = known.get(name) {
                    let found = dtype_of(array)?.name();
                    if found != *dtype {
                        return Err(raise(py, &Error::invalid(format!("'{name}' is {dtype}, the rows are {found}"))));
                    }
                    if array.shape().get(1..) != Some(&shape[1..]) {
                        let message =
                            format!("'{name}' has rows of {:?}, the array given is {:?}", &shape[1..], array.shape());
                        return Err(raise(py, &Error::shape(message)));
                    }
                }
                parts.push((name.as_str(), bytes(array)?));
            }
            let task = Task::default();
            enter(py, &task, None, || writer.append(&parts, &task))
        })
    }

    fn read(
        &self,
        py: Python<'_>,
        name: &str,
        start: usize,
        stop: usize,
        out: &Bound<'_, PyUntypedArray>,
    ) -> PyResult<()> {
        let out = crate::array::bytes_mut(out)?;
        self.with(py, |writer| enter_briefly(py, || writer.read(name, start, stop, out)))
    }

    #[pyo3(signature = (state, threads=Threads(0)))]
    fn commit(&self, py: Python<'_>, state: &str, threads: Threads) -> PyResult<u64> {
        let state: Value = parse(py, "state", state)?;
        let task = Task::new(threads.0);
        self.with(py, |writer| enter(py, &task, None, || writer.commit(state, &task)))
    }

    fn close(&self, py: Python<'_>) {
        let writer = py.detach(|| self.lock().take());
        drop(writer);
    }
}

impl Writer {
    fn lock(&self) -> MutexGuard<'_, Option<store::Writer>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the open writer, for one thread at a time. A thread that waits releases the GIL.
    fn with<T>(&self, py: Python<'_>, work: impl FnOnce(&mut store::Writer) -> PyResult<T>) -> PyResult<T> {
        let mut open = loop {
            if let Ok(open) = self.open.try_lock() {
                break open;
            }
            if self.open.is_poisoned() {
                break self.lock();
            }
            if process::in_pool() {
                // A reducer written in Python runs here: the thread that has the writer may wait for this pool.
                let message = format!("another thread uses the writer of {}", self.path.display());
                return Err(raise(py, &Error::new(Kind::Locked, message)));
            }
            py.detach(|| std::thread::sleep(std::time::Duration::from_millis(1)));
            py.check_signals()?;
        };
        match open.as_mut() {
            Some(writer) => work(writer),
            None => {
                Err(raise(py, &Error::new(Kind::Closed, format!("the writer of {} is closed", self.path.display()))))
            }
        }
    }
}
