//! The one door into the core: it releases the GIL, watches for Ctrl-C, calls back with progress, and
//! turns errors into the classes of `actstore.errors`.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use actstore_core::kernels::StandardMode;
use actstore_core::{Error, Kind, Task, process};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// How often a waiting call looks at signals and tells of progress.
const LOOK: Duration = Duration::from_millis(50);

/// Runs work too short to be interrupted.
pub fn enter_briefly<T: Send>(py: Python<'_>, work: impl FnOnce() -> actstore_core::Result<T> + Send) -> PyResult<T> {
    py.detach(|| standard(work)).map_err(|error| raise(py, &error))
}

/// Runs arithmetic of ours on the caller's thread: with denormals, whatever the caller does with its own.
pub fn standard<T>(work: impl FnOnce() -> T) -> T {
    let _mode = StandardMode::set();
    work()
}

/// Runs work on the pool while this thread waits, with an ear for signals.
pub fn enter<T: Send>(
    py: Python<'_>,
    task: &Task,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce() -> actstore_core::Result<T> + Send,
) -> PyResult<T> {
    let pool = process::pool(task.threads).map_err(|error| raise(py, &error))?;
    if pool.current_thread_index().is_some() {
        // A reducer written in Python reads: the pool's own thread must not wait for the pool.
        return enter_briefly(py, work);
    }
    let progress = progress.map(|call| call.clone().unbind());
    let signal = Arc::new(Signal::default());
    let mut result = None;
    let mut raised = None;
    py.detach(|| {
        pool.in_place_scope(|scope| {
            // Rings when dropped, so that a panic does not leave the wait below waiting.
            let ring = Ring(Arc::clone(&signal));
            let result = &mut result;
            scope.spawn(move |_| {
                let _ring = ring;
                *result = Some(work());
            });
            while !signal.wait() {
                let looked = Python::attach(|py| {
                    py.check_signals()?;
                    report(py, task, progress.as_ref())
                });
                if let Err(error) = looked {
                    raised.get_or_insert(error);
                    task.stop();
                }
            }
        });
    });
    if let Some(error) = raised {
        return Err(error);
    }
    report(py, task, progress.as_ref())?;
    match result {
        Some(result) => result.map_err(|error| raise(py, &error)),
        None => Err(raise(py, &Error::new(Kind::Interrupted, "interrupted"))),
    }
}

/// A number of threads; 0 for all cores.
#[derive(Clone, Copy)]
pub struct Threads(pub usize);

impl<'py> FromPyObject<'_, 'py> for Threads {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let number: i64 = value.extract()?;
        let threads = usize::try_from(number).map_err(|_| {
            raise(value.py(), &Error::invalid(format!("threads={number}: give 0 for all cores, or more")))
        })?;
        Ok(Threads(threads))
    }
}

fn report(py: Python<'_>, task: &Task, progress: Option<&Py<PyAny>>) -> PyResult<()> {
    if let Some(call) = progress {
        call.call1(py, task.progress())?;
    }
    Ok(())
}

/// The exception for an error.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    if error.kind == Kind::Interrupted {
        return PyKeyboardInterrupt::new_err(());
    }
    let made = py.import("actstore.errors").and_then(|module| {
        let keywords = PyDict::new(py);
        keywords.set_item("kind", error.kind.name())?;
        module.getattr(error.kind.class())?.call((error.message.as_str(),), Some(&keywords))
    });
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

#[derive(Default)]
struct Signal {
    done: Mutex<bool>,
    rung: Condvar,
}

impl Signal {
    /// Waits a moment; whether the work has ended.
    fn wait(&self) -> bool {
        let done = self.done.lock().expect("no panic while held");
        *self.rung.wait_timeout_while(done, LOOK, |done| !*done).expect("no panic while held").0
    }
}

struct Ring(Arc<Signal>);

impl Drop for Ring {
    fn drop(&mut self) {
        if let Ok(mut done) = self.0.done.lock() {
            *done = true;
        }
        self.0.rung.notify_all();
    }
}
