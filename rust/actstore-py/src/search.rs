//! Exact top-k.

use actstore_core::ops::{self, Ask, Combine, Metric, Queries};
use actstore_core::{Error, Task};
use numpy::{PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray3, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::enter::{Threads, enter, raise};
use crate::source::{ArrayArgument, RowsArgument, with_source};

type Found<'py> = (Bound<'py, PyArray2<f32>>, Bound<'py, PyArray2<i64>>, Bound<'py, PyArray2<i64>>, u64);

/// The best rows for each query: scores, rows, deciding layers, and how many scores were computed exactly.
#[pyfunction]
#[pyo3(signature = (array, rows, layers, queries, k, metric, combine, weights, min_score, skip_nan, numbers=None,
                    threads=Threads(0), progress=None))]
#[allow(clippy::too_many_arguments)]
pub fn search<'py>(
    py: Python<'py>,
    array: ArrayArgument<'py>,
    rows: RowsArgument<'py>,
    layers: Option<Vec<usize>>,
    queries: PyReadonlyArray3<'py, f32>,
    k: usize,
    metric: &str,
    combine: &str,
    weights: Option<PyReadonlyArray1<'py, f64>>,
    min_score: Option<f32>,
    skip_nan: bool,
    numbers: Option<PyReadonlyArray1<'py, i64>>,
    threads: Threads,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Found<'py>> {
    let wrong = |error: Error| raise(py, &error);
    let &[n, across, dim] = queries.shape() else { unreachable!("three axes") };
    let weights = weights.as_ref().map(|weights| weights.as_slice()).transpose()?;
    let names = numbers.as_ref().map(|numbers| numbers.as_slice()).transpose()?;
    if k == 0 {
        return Err(wrong(Error::invalid("k=0: give at least 1")));
    }
    if let Some(names) = names
        && names.len() != array.rows(py)?
    {
        return Err(wrong(Error::shape(format!("{} numbers for {} rows", names.len(), array.rows(py)?))));
    }
    let task = Task::new(threads.0);
    let found = with_source(py, &array, &rows, layers.as_deref(), |source| {
        let (metric, combine) = (Metric::parse(metric).map_err(wrong)?, Combine::parse(combine).map_err(wrong)?);
        let values = queries.as_slice()?;
        let queries =
            Queries::new(values, [n, across, dim], source.shape(), metric, combine, weights).map_err(wrong)?;
        let ask = Ask { k, min_score, skip_nan, names };
        enter(py, &task, progress, || ops::search(source, &queries, &ask, &task))
    })?;
    let (scores, rows, layers) =
        (PyArray2::zeros(py, [n, k], false), PyArray2::zeros(py, [n, k], false), PyArray2::zeros(py, [n, k], false));
    {
        let (mut scores, mut rows, mut layers) = (scores.readwrite(), rows.readwrite(), layers.readwrite());
        let (scores, rows, layers) = (scores.as_slice_mut()?, rows.as_slice_mut()?, layers.as_slice_mut()?);
        for (j, hits) in found.hits.iter().enumerate() {
            for i in 0..k {
                let hit = hits.get(i);
                scores[j * k + i] = hit.map_or(f32::NEG_INFINITY, |hit| hit.score);
                rows[j * k + i] = hit.map_or(-1, |hit| hit.row);
                layers[j * k + i] = hit.map_or(-1, |hit| i64::from(hit.layer));
            }
        }
    }
    Ok((scores, rows, layers, found.rescored))
}
