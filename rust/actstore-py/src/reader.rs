//! Reading a store.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use actstore_core::store::{self, Verify};
use actstore_core::{Error, Kind, Task};
use pyo3::prelude::*;

use crate::array::Array;
use crate::enter::{Threads, enter, enter_briefly, raise};

#[pyclass(frozen, module = "actstore._native")]
pub struct Reader(store::Reader);

#[pymethods]
impl Reader {
    #[new]
    #[pyo3(signature = (path, verify="first"))]
    fn new(py: Python<'_>, path: PathBuf, verify: &str) -> PyResult<Self> {
        enter_briefly(py, || store::Reader::open(&path, Verify::parse(verify)?)).map(Reader)
    }

    #[getter]
    fn path(&self) -> OsString {
        self.0.path().as_os_str().to_os_string()
    }

    #[getter]
    fn record(&self) -> Option<u64> {
        self.0.record()
    }

    #[getter]
    fn attributes(&self) -> String {
        self.0.attributes().to_string()
    }

    #[getter]
    fn state(&self) -> String {
        self.0.state().to_string()
    }

    #[getter]
    fn groups(&self) -> BTreeMap<&str, String> {
        self.0.groups().iter().map(|(name, attributes)| (name.as_str(), attributes.to_string())).collect()
    }

    #[getter]
    fn arrays(&self) -> Vec<String> {
        self.0.arrays()
    }

    fn array(&self, py: Python<'_>, name: &str) -> PyResult<Array> {
        self.0.array(name).map(Array).map_err(|error| raise(py, &error))
    }

    fn refresh(&self, py: Python<'_>) -> PyResult<Self> {
        enter_briefly(py, || self.0.refresh()).map(Reader)
    }

    fn usage(&self, py: Python<'_>) -> PyResult<String> {
        enter(py, &Task::default(), None, || self.0.usage().map(|usage| json(&usage)))
    }

    #[pyo3(signature = (strict=false, threads=Threads(0), progress=None))]
    fn verify(
        &self,
        py: Python<'_>,
        strict: bool,
        threads: Threads,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<String> {
        let task = Task::new(threads.0);
        enter(py, &task, progress, || self.0.verify(strict, &task).map(|report| json(&report)))
    }

    fn close(&self) {
        self.0.close();
    }
}

/// Plain data as JSON.
pub fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data")
}

/// Parses JSON that Python gave.
pub fn parse<T: serde::de::DeserializeOwned>(py: Python<'_>, what: &str, text: &str) -> PyResult<T> {
    serde_json::from_str(text).map_err(|error| raise(py, &Error::new(Kind::InvalidInput, format!("{what}: {error}"))))
}
