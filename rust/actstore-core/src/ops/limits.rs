//! What the machine can do: how fast memory is read, and how fast its float32 units multiply and add.

use std::time::Instant;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::kernels;
use crate::process::{Task, pool};

/// Bytes that all threads read together at most, and one of them: several times any cache's share.
const ALL_BYTES: usize = 512 << 20;
const BYTES: usize = 128 << 20;
/// Rounds of the measurements; the best counts, as a limit should.
const ROUNDS: usize = 5;

/// The limits of some threads together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes read from memory in a second.
    pub read_bytes_per_second: f64,
    /// Float32 multiplications and additions in a second.
    pub f32_flops_per_second: f64,
}

/// Measures them, in about half a second.
pub fn limits(task: &Task) -> Result<Limits> {
    let pool = pool(task.threads)?;
    let threads = pool.current_num_threads();
    let scores = &kernels().scores;
    let per_second = |work: &(dyn Fn(usize) -> f64 + Sync)| -> Result<f64> {
        let mut best = 0f64;
        for _ in 0..ROUNDS {
            task.check()?;
            let start = Instant::now();
            let done: f64 = pool.install(|| (0..threads).into_par_iter().with_max_len(1).map(work).sum());
            best = best.max(done / start.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    let each = BYTES.min(ALL_BYTES / threads) / 4 / 4096 * 4096;
    let mut floats: Vec<f32> = Vec::new();
    floats
        .try_reserve_exact(threads * each)
        .map_err(|error| Error::invalid(format!("no memory to measure with {threads} threads: {error}")))?;
    floats.resize(threads * each, 1.0);
    let read_bytes_per_second = per_second(&|i| {
        let mine = &floats[i * each..(i + 1) * each];
        let mut sums = vec![0.0; mine.len() / 4096];
        (scores.squares)(mine, 4096, &mut sums);
        std::hint::black_box(&sums);
        size_of_val(mine) as f64
    })?;
    let f32_flops_per_second = per_second(&|_| (scores.work)(1 << 20))?;
    Ok(Limits { read_bytes_per_second, f32_flops_per_second })
}
