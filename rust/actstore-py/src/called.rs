//! A reducer written in Python. Its code runs under the GIL, the decoding beside it does not.

use std::sync::Mutex;

use actstore_core::ops::{Block, Reducer, State, state_of, take_state};
use actstore_core::{Error, Kind};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::enter::standard;

pub struct Called {
    new: Py<PyAny>,
    update: Py<PyAny>,
    merge: Py<PyAny>,
    dim: usize,
    /// The first exception that its code raised.
    raised: Mutex<Option<PyErr>>,
}

impl Called {
    /// By its three functions.
    pub fn new(what: &Bound<'_, PyDict>, dim: usize) -> PyResult<Self> {
        let part = |name: &str| Ok::<_, PyErr>(what.as_any().get_item(name)?.unbind());
        let (new, update, merge) = (part("new")?, part("update")?, part("merge")?);
        Ok(Called { new, update, merge, dim, raised: Mutex::new(None) })
    }

    /// What its code raised meanwhile.
    pub fn raised(&self) -> PyResult<()> {
        self.raised.lock().ok().and_then(|mut raised| raised.take()).map_or(Ok(()), Err)
    }

    fn call<T>(&self, work: impl FnOnce(Python<'_>) -> PyResult<T>) -> actstore_core::Result<T> {
        // Its code may have this thread flush denormals, which is not to last.
        standard(|| Python::attach(work)).map_err(|error| {
            if let Ok(mut raised) = self.raised.lock() {
                raised.get_or_insert(error);
            }
            Error::new(Kind::Interrupted, "a reducer raised")
        })
    }
}

impl Reducer for Called {
    fn new_state(&self) -> actstore_core::Result<State> {
        self.call(|py| Ok(Box::new(self.new.call0(py)?) as State))
    }

    fn update(&self, state: &mut State, block: &Block<'_>) -> actstore_core::Result<()> {
        self.call(|py| {
            let positions = (0..block.positions.len()).map(|i| block.positions.get(i) as i64);
            let positions = PyArray1::from_iter(py, positions);
            let values = PyArray1::from_slice(py, block.values).reshape([block.positions.len(), self.dim])?;
            let state = state_of::<Py<PyAny>>(state);
            let returned = self.update.call1(py, (state.bind(py), block.layer, positions, values))?;
            if !returned.is_none(py) {
                *state = returned;
            }
            Ok(())
        })
    }

    fn merge(&self, state: &mut State, after: State) -> actstore_core::Result<()> {
        self.call(|py| {
            let state = state_of::<Py<PyAny>>(state);
            *state = self.merge.call1(py, (state.bind(py), take_state::<Py<PyAny>>(after)))?;
            Ok(())
        })
    }

    fn wants_groups(&self) -> bool {
        true
    }
}
