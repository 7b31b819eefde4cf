//! Threads, and what a process keeps that its forked children must not use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Kind, Result};
use crate::kernels;

/// A value of this process alone. A forked child makes its own and never touches the parent's, whose
/// threads are gone and whose locks may be held for ever.
#[derive(Debug)]
pub struct PerProcess<T> {
    value: OnceLock<(u32, T)>,
    /// The child's, its child's, and so on.
    next: OnceLock<Box<PerProcess<T>>>,
}

impl<T> PerProcess<T> {
    /// Nothing yet.
    pub const fn new() -> Self {
        PerProcess { value: OnceLock::new(), next: OnceLock::new() }
    }

    /// The value of this process, made on first use.
    pub fn get(&self, make: impl Fn() -> T) -> &T {
        let pid = std::process::id();
        let mut slot = self;
        loop {
            let (owner, value) = slot.value.get_or_init(|| (pid, make()));
            if *owner == pid {
                return value;
            }
            slot = slot.next.get_or_init(|| Box::new(PerProcess::new()));
        }
    }
}

impl<T> Default for PerProcess<T> {
    fn default() -> Self {
        PerProcess::new()
    }
}

/// The pool of `threads` threads (0: one a core). Private, so that a fork or another library's pool
/// does not stop it.
pub fn pool(threads: usize) -> Result<Arc<ThreadPool>> {
    static POOLS: PerProcess<Mutex<HashMap<usize, Arc<ThreadPool>>>> = PerProcess::new();
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n if n > 1024 => return Err(Error::invalid(format!("threads={n}: at most 1024"))),
        n => n,
    };
    let mut pools = POOLS.get(Mutex::default).lock().expect("no panic while held");
    if let Some(pool) = pools.get(&threads) {
        return Ok(Arc::clone(pool));
    }
    let built = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("actstore-{i}"))
        .start_handler(|_| kernels::keep_denormals())
        .build();
    let pool =
        Arc::new(built.map_err(|error| Error::new(Kind::Io, format!("cannot start {threads} threads: {error}")))?);
    pools.insert(threads, Arc::clone(&pool));
    Ok(pool)
}

/// Whether this thread is one of a pool's. It must not wait for what another thread does in the pool.
pub fn in_pool() -> bool {
    rayon::current_thread_index().is_some()
}

/// One call's threads, its wish to stop, and how far it has come.
#[derive(Clone, Default)]
pub struct Task {
    /// Threads to use; 0 for one a core.
    pub threads: usize,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    total: Arc<AtomicU64>,
}

impl Task {
    /// A call that uses `threads`.
    pub fn new(threads: usize) -> Self {
        Task { threads, ..Task::default() }
    }

    /// Asks the call to end soon, with [`Kind::Interrupted`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// To be called between blocks of work: an error when the call should end.
    pub fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Interrupted, "interrupted"));
        }
        Ok(())
    }

    /// Says how much there is to do.
    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Counts work as done.
    pub fn advance(&self, n: u64) {
        self.done.fetch_add(n, Ordering::Relaxed);
    }

    /// What is done, and what there is to do in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}
