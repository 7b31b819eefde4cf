//! One pass for several reducers, ours and those written in Python.

use actstore_core::ops::{self, Block, Reducer, State, state_of, take_state};
use actstore_core::{Error, Kind, Task};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::enter::{Threads, enter, raise};
use crate::source::{ArrayArgument, RowsArgument, with_source};

/// Runs rows of layers through reducers, each given as its kind and what it needs; their states.
#[pyfunction]
#[pyo3(signature = (array, rows, layers, reducers, threads=Threads(0), progress=None))]
#[allow(clippy::too_many_arguments)]
pub fn scan(
    py: Python<'_>,
    array: ArrayArgument<'_>,
    rows: RowsArgument<'_>,
    layers: Option<Vec<usize>>,
    reducers: Vec<(String, Bound<'_, PyDict>)>,
    threads: Threads,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Vec<Py<PyAny>>> {
    with_source(py, &array, &rows, layers.as_deref(), |source| {
        let made = reducers.iter().map(|(kind, what)| Made::new(py, kind, what, source.shape()));
        let made: Vec<Made> = made.collect::<PyResult<_>>()?;
        let all: Vec<&dyn Reducer> = made.iter().map(Made::reducer).collect();
        let task = Task::new(threads.0);
        let states = enter(py, &task, progress, || ops::scan(source, &all, &task));
        for reducer in &made {
            reducer.raised(py)?;
        }
        made.iter().zip(states?).map(|(reducer, state)| reducer.export(py, state)).collect()
    })
}

/// A reducer, and how its state becomes Python's.
enum Made {
    Python(Called),
}

impl Made {
    fn new(py: Python<'_>, kind: &str, what: &Bound<'_, PyDict>, shape: [usize; 3]) -> PyResult<Self> {
        let part = |name: &str| what.as_any().get_item(name);
        match kind {
            "python" => Ok(Made::Python(Called {
                new: part("new")?.unbind(),
                update: part("update")?.unbind(),
                merge: part("merge")?.unbind(),
                dim: shape[2],
                raised: std::sync::Mutex::new(None),
            })),
            _ => Err(raise(py, &Error::invalid(format!("no reducer '{kind}'")))),
        }
    }

    fn reducer(&self) -> &dyn Reducer {
        match self {
            Made::Python(reducer) => reducer,
        }
    }

    /// What Python code raised meanwhile.
    fn raised(&self, _py: Python<'_>) -> PyResult<()> {
        match self {
            Made::Python(reducer) => {
                reducer.raised.lock().ok().and_then(|mut raised| raised.take()).map_or(Ok(()), Err)
            }
        }
    }

    fn export(&self, _py: Python<'_>, state: State) -> PyResult<Py<PyAny>> {
        match self {
            Made::Python(_) => Ok(take_state::<Py<PyAny>>(state)),
        }
    }
}

/// A reducer written in Python. Its code runs under the GIL, the decoding beside it does not.
struct Called {
    new: Py<PyAny>,
    update: Py<PyAny>,
    merge: Py<PyAny>,
    dim: usize,
    /// The first exception that its code raised.
    raised: std::sync::Mutex<Option<PyErr>>,
}

impl Called {
    fn call<T>(&self, work: impl FnOnce(Python<'_>) -> PyResult<T>) -> actstore_core::Result<T> {
        Python::attach(work).map_err(|error| {
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
