//! Exact top-k, late interaction, and the norms of mapped rows.

use actstore_core::blocks::Blocks;
use actstore_core::ops::fold::{self, Fold, Maps};
use actstore_core::ops::{self, Ask, Combine, Examples, Found, Metric, Queries};
use actstore_core::{Error, Task};
use numpy::{
    IntoPyArray, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::enter::{Threads, enter, raise};
use crate::scan::offsets;
use crate::source::{ArrayArgument, RowsArgument, with_source};

type Hits<'py> = (Bound<'py, PyArray2<f32>>, Bound<'py, PyArray2<i64>>, Bound<'py, PyArray2<i64>>, u64);

/// How rows are scored, as Python says it.
struct Scoring<'py> {
    metric: Metric,
    combine: Combine,
    weights: Option<PyReadonlyArray1<'py, f64>>,
    distances: bool,
    min_score: Option<f32>,
    skip_nan: bool,
    numbers: Option<PyReadonlyArray1<'py, i64>>,
    map: Option<Map<'py>>,
}

/// A map of the rows: means `[L, D]`, weights `[L, R, D]`, and norms `[n, L]`.
type Map<'py> = (PyReadonlyArray2<'py, f64>, PyReadonlyArray3<'py, f64>, PyReadonlyArray2<'py, f64>);

impl<'py> Scoring<'py> {
    fn new(what: &Bound<'py, PyDict>) -> PyResult<Self> {
        let py = what.py();
        let part = |name: &str| what.as_any().get_item(name);
        let (metric, combine): (String, String) = (part("metric")?.extract()?, part("combine")?.extract()?);
        Ok(Scoring {
            metric: Metric::parse(&metric).map_err(|error| raise(py, &error))?,
            combine: Combine::parse(&combine).map_err(|error| raise(py, &error))?,
            weights: part("weights")?.extract()?,
            distances: part("distances")?.extract()?,
            min_score: part("min_score")?.extract()?,
            skip_nan: part("skip_nan")?.extract()?,
            numbers: part("numbers")?.extract()?,
            map: part("map")?.extract()?,
        })
    }

    fn ask(&self, k: usize) -> PyResult<Ask<'_>> {
        let names = self.numbers.as_ref().map(|numbers| numbers.as_slice()).transpose()?;
        Ok(Ask { k, min_score: self.min_score, skip_nan: self.skip_nan, names })
    }

    fn queries<'a>(
        &'a self,
        py: Python<'_>,
        vectors: &'a PyReadonlyArray3<'py, f32>,
        source: [usize; 3],
    ) -> PyResult<Queries<'a>> {
        let wrong = |error: Error| raise(py, &error);
        let &[n, across, dim] = vectors.shape() else { unreachable!("three axes") };
        let weights = self.weights.as_ref().map(|weights| weights.as_slice()).transpose()?;
        let shape = [n, across, dim];
        let queries = Queries::new(vectors.as_slice()?, shape, source, self.metric, self.combine, weights);
        let mut queries = queries.map_err(wrong)?;
        if self.distances {
            queries = queries.as_distances();
        }
        if let Some((mean, map, norms)) = &self.map {
            let maps = maps(py, mean, map, source)?;
            queries = queries.folded(Fold { maps, norms: norms.as_slice()? }, source[0]).map_err(wrong)?;
        }
        Ok(queries)
    }
}

fn maps<'a>(
    py: Python<'_>,
    mean: &'a PyReadonlyArray2<'_, f64>,
    map: &'a PyReadonlyArray3<'_, f64>,
    [_, layers, dim]: [usize; 3],
) -> PyResult<Maps<'a>> {
    let rank = map.shape()[1];
    Maps::new(mean.as_slice()?, map.as_slice()?, rank, layers, dim).map_err(|error| raise(py, &error))
}

/// The best rows for each query: scores, rows, deciding layers, and how many scores were computed exactly.
#[pyfunction]
#[pyo3(signature = (array, rows, layers, queries, k, scoring, threads=Threads(0), progress=None))]
#[allow(clippy::too_many_arguments)]
pub fn search<'py>(
    py: Python<'py>,
    array: ArrayArgument<'py>,
    rows: RowsArgument<'py>,
    layers: Option<Vec<usize>>,
    queries: PyReadonlyArray3<'py, f32>,
    k: usize,
    scoring: &Bound<'py, PyDict>,
    threads: Threads,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Hits<'py>> {
    let scoring = Scoring::new(scoring)?;
    let ask = scoring.ask(positive(py, k)?)?;
    if let Some(names) = ask.names
        && names.len() != array.rows(py)?
    {
        let message = format!("{} numbers for {} rows", names.len(), array.rows(py)?);
        return Err(raise(py, &Error::shape(message)));
    }
    let task = Task::new(threads.0);
    let found = with_source(py, &array, &rows, layers.as_deref(), |source| {
        let queries = scoring.queries(py, &queries, source.shape())?;
        enter(py, &task, progress, || ops::search(source, &queries, &ask, &task))
    })?;
    hits(py, &found, queries.shape()[0], k)
}

/// The best examples for each query, by MaxSim: scores, examples, no layers, and how many scores were
/// computed exactly.
#[pyfunction]
#[pyo3(signature = (array, rows, layers, offset, vectors, bounds, k, scoring, threads=Threads(0), progress=None))]
#[allow(clippy::too_many_arguments)]
pub fn maxsim<'py>(
    py: Python<'py>,
    array: ArrayArgument<'py>,
    rows: RowsArgument<'py>,
    layers: Option<Vec<usize>>,
    offset: &Bound<'py, PyAny>,
    vectors: PyReadonlyArray3<'py, f32>,
    bounds: &Bound<'py, PyAny>,
    k: usize,
    scoring: &Bound<'py, PyDict>,
    threads: Threads,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Hits<'py>> {
    let scoring = Scoring::new(scoring)?;
    let ask = scoring.ask(positive(py, k)?)?;
    let (offset, bounds) = (offsets(offset)?, offsets(bounds)?);
    let task = Task::new(threads.0);
    let found = with_source(py, &array, &rows, layers.as_deref(), |source| {
        let examples = Examples::new(offset, source.shape()[0]).map_err(|error| raise(py, &error))?;
        if let Some(names) = ask.names
            && names.len() != examples.len()
        {
            let message = format!("{} numbers for {} examples", names.len(), examples.len());
            return Err(raise(py, &Error::shape(message)));
        }
        let queries = scoring.queries(py, &vectors, source.shape())?;
        enter(py, &task, progress, || ops::maxsim(source, &examples, &queries, &bounds, &ask, &task))
    })?;
    hits(py, &found, bounds.len() - 1, k)
}

/// The norm of what each row is mapped to, `[n, L]`.
#[pyfunction]
#[pyo3(signature = (array, rows, layers, mean, map, threads=Threads(0), progress=None))]
#[allow(clippy::too_many_arguments)]
pub fn mapped_norms<'py>(
    py: Python<'py>,
    array: ArrayArgument<'py>,
    rows: RowsArgument<'py>,
    layers: Option<Vec<usize>>,
    mean: PyReadonlyArray2<'py, f64>,
    map: PyReadonlyArray3<'py, f64>,
    threads: Threads,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let task = Task::new(threads.0);
    with_source(py, &array, &rows, layers.as_deref(), |source: &dyn Blocks| {
        let [n, n_layers, _] = source.shape();
        let maps = maps(py, &mean, &map, source.shape())?;
        let norms = enter(py, &task, progress, || fold::norms(source, &maps, &task))?;
        norms.into_pyarray(py).reshape([n, n_layers])
    })
}

fn positive(py: Python<'_>, k: usize) -> PyResult<usize> {
    if k == 0 { Err(raise(py, &Error::invalid("k=0: give at least 1"))) } else { Ok(k) }
}

fn hits<'py>(py: Python<'py>, found: &Found, n: usize, k: usize) -> PyResult<Hits<'py>> {
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
