//! Work in parallel, results in order: chunks are encoded by all threads while whichever of them finds
//! the next ones ready writes them. No thread waits for another's turn, and few results wait.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use rayon::ThreadPool;

use crate::error::{Error, Kind, Result};

/// Results that may wait for one before them, for each thread.
const WAITING: usize = 8;

struct State<'a> {
    ready: BTreeMap<usize, Vec<u8>>,
    next: usize,
    /// None while a thread writes.
    consume: Option<&'a mut Consume<'a>>,
    failed: Option<Error>,
}

/// Buffers to be filled again and again: fresh ones would be paged in anew each time.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().expect("no panic while held").pop().unwrap_or_default()
    }

    fn give(&self, buffer: Vec<u8>) {
        self.0.lock().expect("no panic while held").push(buffer);
    }
}

/// Ends the work when its thread panics. The pool passes a panic on once all threads have ended, and the
/// others would wait for this one's result.
struct Alarm<'a, 'b> {
    state: &'a Mutex<State<'b>>,
    moved: &'a Condvar,
}

impl Drop for Alarm<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.failed.get_or_insert_with(|| Error::new(Kind::Interrupted, "another thread panicked"));
            self.moved.notify_all();
        }
    }
}

type Consume<'a> = dyn FnMut(usize, &[u8]) -> Result<()> + Send + 'a;

/// Runs `produce` for `0..n` on all threads of the pool, into cleared buffers, and `consume` on the
/// results in order. The first error ends it.
pub fn ordered<'a>(
    pool: &ThreadPool,
    buffers: &Buffers,
    n: usize,
    produce: impl Fn(usize, &mut Vec<u8>) -> Result<()> + Sync,
    consume: &'a mut Consume<'a>,
) -> Result<()> {
    let state = Mutex::new(State { ready: BTreeMap::new(), next: 0, consume: Some(consume), failed: None });
    let moved = Condvar::new();
    let dealt = AtomicUsize::new(0);
    let limit = WAITING * pool.current_num_threads();
    let lock = || state.lock().expect("no panic while held");
    let work = || {
        let _alarm = Alarm { state: &state, moved: &moved };
        loop {
            let i = dealt.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                return;
            }
            {
                let mut state = lock();
                while state.failed.is_none() && i >= state.next + limit {
                    state = moved.wait(state).expect("no panic while held");
                }
                if state.failed.is_some() {
                    return;
                }
            }
            let mut buffer = buffers.take();
            buffer.clear();
            let produced = produce(i, &mut buffer);
            let mut state = lock();
            if let Err(error) = produced {
                state.failed.get_or_insert(error);
                moved.notify_all();
                return;
            }
            state.ready.insert(i, buffer);
            while let Some(consume) = state.consume.take() {
                let next = state.next;
                let Some(buffer) = state.ready.remove(&next).filter(|_| state.failed.is_none()) else {
                    state.consume = Some(consume);
                    break;
                };
                drop(state);
                let consumed = consume(next, &buffer);
                buffers.give(buffer);
                state = lock();
                state.consume = Some(consume);
                state.next += 1;
                if let Err(error) = consumed {
                    state.failed.get_or_insert(error);
                }
                moved.notify_all();
            }
        }
    };
    pool.scope(|scope| {
        for _ in 0..pool.current_num_threads().min(n) {
            scope.spawn(|_| work());
        }
    });
    match state.into_inner().expect("no panic while held").failed {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_errors_end_it() {
        let buffers = Buffers::default();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        for n in [0, 1, 7, 500] {
            let mut seen = Vec::new();
            let produce = |i: usize, out: &mut Vec<u8>| {
                out.extend_from_slice(&(i as u64).to_le_bytes());
                Ok(())
            };
            ordered(&pool, &buffers, n, produce, &mut |i, bytes| {
                assert_eq!(bytes, (i as u64).to_le_bytes());
                seen.push(i);
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }
        let stop = |i: usize| if i == 100 { Err(Error::invalid("stop")) } else { Ok(()) };
        let mut count = 0;
        assert!(
            ordered(&pool, &buffers, 1000, |i, _| stop(i), &mut |_, _| {
                count += 1;
                Ok(())
            })
            .is_err()
        );
        assert!(count <= 100);
        assert!(ordered(&pool, &buffers, 1000, |_, _| Ok(()), &mut |i, _| stop(i)).is_err());
    }

    /// In a thread of its own, which the test gives up after a while: without an end, it would wait for ever.
    fn ends_with_a_panic(work: impl FnOnce(&ThreadPool) -> Result<()> + Send + 'static) {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&pool)));
            let _ = tell.send(ended.is_err());
        });
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(60)), Ok(true));
    }

    #[test]
    fn a_panic_of_one_thread_leaves_none_waiting() {
        ends_with_a_panic(|pool| {
            let produce = |i: usize, _: &mut Vec<u8>| if i == 5 { panic!("produce") } else { Ok(()) };
            ordered(pool, &Buffers::default(), 1000, produce, &mut |_, _| Ok(()))
        });
        ends_with_a_panic(|pool| {
            let mut consume = |i: usize, _: &[u8]| if i == 5 { panic!("consume") } else { Ok(()) };
            ordered(pool, &Buffers::default(), 1000, |_, _| Ok(()), &mut consume)
        });
    }
}
