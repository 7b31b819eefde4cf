//! One pass for several reducers, ours and those written in Python.

use std::ops::Range;

use actstore_core::ops::covariance::{self, Covariance, Groups};
use actstore_core::ops::pool::{self, Output};
use actstore_core::ops::{self, Examples, Gatherer, Histogram, Reducer, State, Summarize, take_state};
use actstore_core::{Dtype, Error, Task};
use numpy::{PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{bytes, bytes_mut, dtype_of};
use crate::called::Called;
use crate::enter::{Threads, enter, raise, standard};
use crate::source::{ArrayArgument, RowsArgument, apart, with_source};
use crate::states;

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
    let asked = reducers.iter().map(|(kind, what)| Asked::new(py, kind, what));
    let asked: Vec<Asked<'_>> = asked.collect::<PyResult<_>>()?;
    check_apart(py, &array, &rows, &asked)?;
    with_source(py, &array, &rows, layers.as_deref(), |source| {
        let row = |position: usize| source.row(position);
        let made = asked.iter().map(|asked| asked.make(py, source.shape(), &row));
        let made: Vec<Made<'_>> = made.collect::<PyResult<_>>()?;
        let all: Vec<&dyn Reducer> = made.iter().filter_map(Made::reducer).collect();
        let gatherers: Vec<&dyn Gatherer> = made.iter().filter_map(Made::gatherer).collect();
        let task = Task::new(threads.0);
        let states = enter(py, &task, progress, || {
            if gatherers.is_empty() {
                ops::scan(source, &all, &task)
            } else {
                ops::gather(source, &all, &gatherers, &task)
            }
        });
        for reducer in &made {
            reducer.raised()?;
        }
        let mut states = states?.into_iter();
        made.into_iter().map(|made| made.export(py, &mut states)).collect()
    })
}

/// A reducer as Python asks for it, and the arrays it gives.
enum Asked<'py> {
    Python(Bound<'py, PyDict>),
    Summary,
    Histogram,
    Pool { kind: pool::Kind, offset: Vec<usize>, out: Bound<'py, PyUntypedArray> },
    Moments(AskedMoments<'py>),
}

/// Moments as Python asks for them.
struct AskedMoments<'py> {
    kind: covariance::Kind,
    labels: Option<PyReadonlyArray1<'py, u32>>,
    groups: usize,
    layers: Vec<i64>,
    numbers: Option<PyReadonlyArray1<'py, i64>>,
}

impl<'py> AskedMoments<'py> {
    fn new(py: Python<'py>, what: &Bound<'py, PyDict>) -> PyResult<Self> {
        let part = |name: &str| what.as_any().get_item(name);
        let kind: String = part("kind")?.extract()?;
        let kind = match kind.as_str() {
            "diagonal" => covariance::Kind::Diagonal,
            "float64" => covariance::Kind::Full64,
            "float32" => covariance::Kind::Full32,
            _ => return Err(raise(py, &Error::invalid(format!("no moments of kind '{kind}'")))),
        };
        Ok(AskedMoments {
            kind,
            labels: part("labels")?.extract()?,
            groups: part("groups")?.extract()?,
            layers: part("layers")?.extract()?,
            numbers: part("numbers")?.extract()?,
        })
    }

    fn make<'a>(
        &'a self,
        py: Python<'_>,
        shape: [usize; 3],
        row: &'a (dyn Fn(usize) -> usize + Sync),
    ) -> PyResult<Covariance<'a>> {
        let labels = self.labels.as_ref().map(|labels| labels.as_slice()).transpose()?;
        let rows = self.numbers.as_ref().map(|numbers| numbers.as_slice()).transpose()?;
        let groups = labels.map(|labels| Groups { labels, n: self.groups });
        let names = covariance::Names { layers: &self.layers, rows };
        Covariance::new(self.kind, groups, names, shape, row).map_err(|error| raise(py, &error))
    }
}

impl<'py> Asked<'py> {
    fn new(py: Python<'py>, kind: &str, what: &Bound<'py, PyDict>) -> PyResult<Self> {
        match kind {
            "python" => Ok(Asked::Python(what.clone())),
            "summary" => Ok(Asked::Summary),
            "histogram" => Ok(Asked::Histogram),
            "moments" => Ok(Asked::Moments(AskedMoments::new(py, what)?)),
            "pool" => {
                let part = |name: &str| what.as_any().get_item(name);
                let kind: String = part("kind")?.extract()?;
                Ok(Asked::Pool {
                    kind: pool::Kind::parse(&kind).map_err(|error| raise(py, &error))?,
                    offset: offsets(&part("offset")?)?,
                    out: part("out")?.cast_into::<PyUntypedArray>()?,
                })
            }
            _ => {
                let known = "python, summary, histogram, pool, moments";
                Err(raise(py, &Error::invalid(format!("no reducer '{kind}': there are {known}"))))
            }
        }
    }

    fn make<'a>(
        &'a self,
        py: Python<'_>,
        [rows, layers, dim]: [usize; 3],
        row: &'a (dyn Fn(usize) -> usize + Sync),
    ) -> PyResult<Made<'a>> {
        let wrong = |error: Error| raise(py, &error);
        Ok(match self {
            Asked::Python(what) => Made::Python(Called::new(what, dim)?),
            Asked::Summary => Made::Summary(Summarize { layers, dim }),
            Asked::Histogram => Made::Histogram(Histogram { layers }),
            Asked::Moments(asked) => Made::Moments(Box::new(asked.make(py, [rows, layers, dim], row)?), [layers, dim]),
            Asked::Pool { kind, offset, out } => {
                let examples = Examples::new(offset.clone(), rows).map_err(wrong)?;
                let shape = [examples.len(), layers, dim];
                if out.shape() != shape {
                    let message = format!("pooling needs an output of {shape:?}, not {:?}", out.shape());
                    return Err(wrong(Error::shape(message)));
                }
                let dtype: Dtype = dtype_of(out)?;
                let out = Output::new(bytes_mut(out)?, dtype, shape).map_err(wrong)?;
                Made::Pool(pool::pool(*kind, examples, out))
            }
        })
    }
}

/// Where each example begins, and the end of the last.
pub fn offsets(offset: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    let wrong = |message: String| raise(offset.py(), &Error::invalid(message));
    let array: PyReadonlyArray1<'_, i64> =
        offset.extract().map_err(|_| wrong("offset is an array of int64 with one axis".into()))?;
    let all = array.as_array().iter().map(|first| usize::try_from(*first)).collect::<Result<_, _>>();
    all.map_err(|_| wrong("offset has a negative entry".into()))
}

/// An output that shares memory with another, or with what is read, would be written to while it is read.
fn check_apart(
    py: Python<'_>,
    array: &ArrayArgument<'_>,
    rows: &RowsArgument<'_>,
    asked: &[Asked<'_>],
) -> PyResult<()> {
    let mut taken: Vec<Range<*const u8>> = Vec::new();
    taken.extend(rows.memory()?);
    if let ArrayArgument::Memory(array) = array {
        taken.push(bytes(array)?.as_ptr_range());
    }
    for asked in asked {
        if let Asked::Pool { out, .. } = asked {
            let own = bytes(out)?.as_ptr_range();
            taken.iter().try_for_each(|other| apart(py, &own, other))?;
            taken.push(own);
        }
    }
    Ok(())
}

/// A reducer, and how its state becomes Python's.
enum Made<'a> {
    Python(Called),
    Summary(Summarize),
    Histogram(Histogram),
    Pool(Box<dyn Reducer + 'a>),
    Moments(Box<Covariance<'a>>, [usize; 2]),
}

impl Made<'_> {
    fn reducer(&self) -> Option<&dyn Reducer> {
        match self {
            Made::Python(reducer) => Some(reducer),
            Made::Summary(reducer) => Some(reducer),
            Made::Histogram(reducer) => Some(reducer),
            Made::Pool(reducer) => Some(&**reducer),
            Made::Moments(..) => None,
        }
    }

    fn gatherer(&self) -> Option<&dyn Gatherer> {
        match self {
            Made::Moments(gatherer, _) => Some(&**gatherer),
            _ => None,
        }
    }

    /// What Python code raised meanwhile.
    fn raised(&self) -> PyResult<()> {
        match self {
            Made::Python(reducer) => reducer.raised(),
            _ => Ok(()),
        }
    }

    /// What it gives; reducers take their state, the next one.
    fn export(self, py: Python<'_>, states: &mut impl Iterator<Item = State>) -> PyResult<Py<PyAny>> {
        let mut state = || states.next().expect("a state for each reducer");
        match self {
            Made::Python(_) => Ok(take_state::<Py<PyAny>>(state())),
            Made::Summary(reducer) => {
                let layers = standard(|| reducer.layers(state()));
                Ok(states::summary(py, layers, reducer.dim)?.into_any().unbind())
            }
            Made::Histogram(reducer) => Ok(states::histogram(py, &reducer.counts(state()))?.into_any().unbind()),
            Made::Pool(_) => {
                state();
                Ok(py.None())
            }
            Made::Moments(gatherer, shape) => {
                Ok(states::moments(py, standard(|| gatherer.into_sums()), shape)?.into_any().unbind())
            }
        }
    }
}
