//! States of our reducers as dicts of NumPy arrays, which Python keeps, pickles and merges.

use actstore_core::Error;
use actstore_core::ops::covariance::Sums;
use actstore_core::ops::histogram::Counts;
use actstore_core::ops::moments::{Column, Moments};
use actstore_core::ops::summary::Layer;
use numpy::ndarray::{Array1, Array2, Array3};
use numpy::{IntoPyArray, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::enter::{raise, standard};

/// Adds a state to another of the same kind.
#[pyfunction]
pub fn merge_states<'py>(
    py: Python<'py>,
    kind: &str,
    a: &Bound<'py, PyDict>,
    b: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyDict>> {
    match kind {
        "summary" => {
            let ([mut a, b], dim) = alike(py, [read_summary(a)?, read_summary(b)?])?;
            standard(|| a.iter_mut().zip(b).for_each(|(a, b)| a.merge(b)));
            summary(py, a, dim)
        }
        "histogram" => {
            let ([mut a, b], _) = alike(py, [read_histogram(a)?, read_histogram(b)?])?;
            a.iter_mut().flatten().zip(b.iter().flatten()).for_each(|(a, b)| *a = a.saturating_add(*b));
            histogram(py, &a)
        }
        _ => Err(raise(py, &Error::invalid(format!("no states of '{kind}' to merge: there are summary, histogram")))),
    }
}

/// Two states that have the same layers and dim.
fn alike<T>(py: Python<'_>, [(a, a_dim), (b, b_dim)]: [(Vec<T>, usize); 2]) -> PyResult<([Vec<T>; 2], usize)> {
    if a.len() != b.len() || a_dim != b_dim {
        let shapes = format!("[{}, {a_dim}] and [{}, {b_dim}]", a.len(), b.len());
        return Err(raise(py, &Error::shape(format!("states of layers and dims {shapes} do not merge"))));
    }
    Ok(([a, b], a_dim))
}

/// The summaries of layers, as a dict.
pub fn summary(py: Python<'_>, layers: Vec<Layer>, dim: usize) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    let counts = |of: fn(&Layer) -> u64| layers.iter().map(of).collect::<Array1<u64>>();
    out.set_item("n", counts(|layer| layer.rows).mapv(|n| n as i64).into_pyarray(py))?;
    out.set_item("n_nan", counts(|layer| layer.nans).into_pyarray(py))?;
    out.set_item("n_inf", counts(|layer| layer.infinities).into_pyarray(py))?;
    out.set_item("n_zero", counts(|layer| layer.extremes.zeros).into_pyarray(py))?;
    // Without values the least is infinite and above the largest.
    let range = |of: fn(&Layer) -> f32| {
        let any = |layer: &Layer| layer.extremes.min <= layer.extremes.max;
        let value = |layer: &Layer| if any(layer) { f64::from(of(layer)) } else { f64::NAN };
        layers.iter().map(value).collect::<Array1<f64>>()
    };
    out.set_item("min", range(|layer| layer.extremes.min).into_pyarray(py))?;
    out.set_item("max", range(|layer| layer.extremes.max).into_pyarray(py))?;
    let n = layers.len();
    let columns: Vec<Column> = layers.into_iter().flat_map(|mut layer| layer.moments.columns()).collect();
    out.set_item("missing", Array2::from_shape_fn([n, dim], |(l, d)| columns[l * dim + d].missing).into_pyarray(py))?;
    out.set_item("mean", Array2::from_shape_fn([n, dim], |(l, d)| columns[l * dim + d].mean).into_pyarray(py))?;
    out.set_item("m2", Array2::from_shape_fn([n, dim], |(l, d)| columns[l * dim + d].m2).into_pyarray(py))?;
    Ok(out)
}

/// The counts of layers, as a dict.
pub fn histogram<'py>(py: Python<'py>, counts: &[Counts]) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    let counts = Array3::from_shape_fn([counts.len(), 2, 256], |(layer, sign, e)| counts[layer][256 * sign + e]);
    out.set_item("counts", counts.into_pyarray(py))?;
    Ok(out)
}

/// Moments of `[layers, dim]`, as a dict: `n [groups]`, `mean [layers, groups, dim]`, `second` as flat as it is.
pub fn moments(py: Python<'_>, sums: Sums, [layers, dim]: [usize; 2]) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    let groups = sums.n.len();
    out.set_item("n", sums.n.into_iter().map(|n| n as i64).collect::<Array1<i64>>().into_pyarray(py))?;
    out.set_item("mean", sums.mean.into_pyarray(py).reshape([layers, groups, dim])?)?;
    out.set_item("second", sums.second.into_pyarray(py))?;
    Ok(out)
}

fn read_summary(state: &Bound<'_, PyDict>) -> PyResult<(Vec<Layer>, usize)> {
    let py = state.py();
    let (missing, shape) = values::<u64>(state, "missing", None)?;
    let &[n_layers, dim] = &shape[..] else {
        return Err(raise(py, &Error::shape(format!("'missing' is [layers, dim], not {shape:?}"))));
    };
    let of_layers = |name| values::<u64>(state, name, Some(&[n_layers])).map(|(values, _)| values);
    let (nans, infinities, zeros) = (of_layers("n_nan")?, of_layers("n_inf")?, of_layers("n_zero")?);
    let rows = values::<i64>(state, "n", Some(&[n_layers]))?.0;
    let floats = |name: &str, shape: &[usize]| values::<f64>(state, name, Some(shape)).map(|(values, _)| values);
    let (min, max) = (floats("min", &shape[..1])?, floats("max", &shape[..1])?);
    let (mean, m2) = (floats("mean", &shape)?, floats("m2", &shape)?);
    let layer = |l: usize| {
        let columns: Vec<Column> =
            (l * dim..(l + 1) * dim).map(|i| Column { missing: missing[i], mean: mean[i], m2: m2[i] }).collect();
        let rows = u64::try_from(rows[l]).ok().filter(|rows| columns.iter().all(|c| c.missing <= *rows))?;
        let mut new = Layer::new(dim);
        new.moments = Moments::restore(rows, &columns);
        (new.rows, new.nans, new.infinities, new.extremes.zeros) = (rows, nans[l], infinities[l], zeros[l]);
        if !min[l].is_nan() {
            (new.extremes.min, new.extremes.max) = (min[l] as f32, max[l] as f32);
        }
        Some(new)
    };
    match (0..n_layers).map(layer).collect() {
        Some(layers) => Ok((layers, dim)),
        None => Err(raise(py, &Error::invalid("a state's 'n' is less than what is 'missing' of it"))),
    }
}

fn read_histogram(state: &Bound<'_, PyDict>) -> PyResult<(Vec<Counts>, usize)> {
    let (counts, shape) = values::<u64>(state, "counts", None)?;
    let &[_, 2, 256] = &shape[..] else {
        return Err(raise(state.py(), &Error::shape(format!("'counts' is [layers, 2, 256], not {shape:?}"))));
    };
    Ok((counts.as_chunks::<512>().0.to_vec(), 512))
}

/// An array of a state, in C order, and its shape.
fn values<T: numpy::Element + Copy>(
    state: &Bound<'_, PyDict>,
    name: &str,
    shape: Option<&[usize]>,
) -> PyResult<(Vec<T>, Vec<usize>)> {
    let py = state.py();
    let wrong = |error: Error| raise(py, &error);
    let Some(array) = state.get_item(name)? else {
        return Err(wrong(Error::invalid(format!("a state without '{name}'"))));
    };
    let found = array.cast::<PyUntypedArray>().map_err(|_| wrong(Error::invalid(format!("'{name}' is no array"))))?;
    if shape.is_some_and(|shape| shape != found.shape()) {
        return Err(wrong(Error::shape(format!("'{name}' is {:?}, not {:?}", shape.unwrap_or(&[]), found.shape()))));
    }
    let found: PyReadonlyArrayDyn<'_, T> = array.extract().map_err(|_| {
        let (dtype, needed) = (found.dtype(), numpy::dtype::<T>(py));
        wrong(Error::invalid(format!("'{name}' is of {dtype}, not {needed}")))
    })?;
    let found = found.as_array();
    Ok((found.iter().copied().collect(), found.shape().to_vec()))
}
