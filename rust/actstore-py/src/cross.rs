//! Cross-moments of two arrays.

use actstore_core::ops::covariance::Names;
use actstore_core::ops::cross::{Cross, cross};
use actstore_core::{Error, Task};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArray4, PyArrayMethods, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::enter::{Threads, enter};
use crate::source::{ArrayArgument, RowsArgument, with_source};

type Found<'py> = (Bound<'py, PyArray2<f64>>, Bound<'py, PyArray2<f64>>, Bound<'py, PyArray4<f64>>);
/// An array, its rows and its layers; what layers and rows are called.
type Side<'py> =
    (ArrayArgument<'py>, RowsArgument<'py>, Option<Vec<usize>>, Vec<i64>, Option<PyReadonlyArray1<'py, i64>>);

/// Means of both, and the sums of products of deviations of each pair of layers.
#[pyfunction]
#[pyo3(signature = (x, y, kind, threads=Threads(0), progress=None))]
pub fn cross_moments<'py>(
    py: Python<'py>,
    x: Side<'py>,
    y: Side<'py>,
    kind: &str,
    threads: Threads,
    progress: Option<&Bound<'py, PyAny>>,
) -> PyResult<Found<'py>> {
    let task = Task::new(threads.0);
    with_source(py, &x.0, &x.1, x.2.as_deref(), |of_x| {
        with_source(py, &y.0, &y.1, y.2.as_deref(), |of_y| {
            let rows =
                |side: &Side<'py>| side.4.as_ref().map(|numbers| numbers.as_slice().map(<[i64]>::to_vec)).transpose();
            let (x_rows, y_rows) = (rows(&x)?, rows(&y)?);
            let names =
                [Names { layers: &x.3, rows: x_rows.as_deref() }, Names { layers: &y.3, rows: y_rows.as_deref() }];
            let Cross { mean_x, mean_y, second } = enter(py, &task, progress, || match kind {
                "float64" => cross::<f64>([of_x, of_y], names, &task),
                "float32" => cross::<f32>([of_x, of_y], names, &task),
                _ => Err(Error::invalid(format!("no cross-moments of kind '{kind}'"))),
            })?;
            let ([_, x_layers, x_dim], [_, y_layers, y_dim]) = (of_x.shape(), of_y.shape());
            let flat = |values: Vec<f64>| -> Bound<'py, PyArray1<f64>> { values.into_pyarray(py) };
            Ok((
                flat(mean_x).reshape([x_layers, x_dim])?,
                flat(mean_y).reshape([y_layers, y_dim])?,
                flat(second).reshape([x_layers, y_layers, x_dim, y_dim])?,
            ))
        })
    })
}
