//! Cross-moments of two arrays.

use actstore_core::ops::cross::{Cross, cross};
use actstore_core::{Error, Task};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArray4, PyArrayMethods};
use pyo3::prelude::*;

use crate::enter::{Threads, enter};
use crate::source::{ArrayArgument, RowsArgument, with_source};

type Found<'py> = (Bound<'py, PyArray2<f64>>, Bound<'py, PyArray2<f64>>, Bound<'py, PyArray4<f64>>);
/// An array, its rows and its layers.
type Side<'py> = (ArrayArgument<'py>, RowsArgument<'py>, Option<Vec<usize>>);

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
            let Cross { mean_x, mean_y, second } = enter(py, &task, progress, || match kind {
                "float64" => cross::<f64>(of_x, of_y, &task),
                "float32" => cross::<f32>(of_x, of_y, &task),
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
