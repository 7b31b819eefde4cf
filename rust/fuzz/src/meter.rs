//! How much memory a target asks for: an allocator that counts.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator, counted.
pub struct Meter;

#[global_allocator]
static METER: Meter = Meter;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn add(size: usize) {
    PEAK.fetch_max(LIVE.fetch_add(size, Relaxed) + size, Relaxed);
    LARGEST.fetch_max(size, Relaxed);
}

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let made = unsafe { System.alloc(layout) };
        if !made.is_null() {
            add(layout.size());
        }
        made
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let made = unsafe { System.alloc_zeroed(layout) };
        if !made.is_null() {
            add(layout.size());
        }
        made
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) };
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is passed on.
        let made = unsafe { System.realloc(at, layout, size) };
        if !made.is_null() {
            LIVE.fetch_sub(layout.size(), Relaxed);
            add(size);
        }
        made
    }
}

/// Runs `work`; panics if it ever had more than `allowed` bytes at once beyond those there were, or asked
/// for more in one piece. With `FUZZ_METER` set, tells when a run came nearer to that than all before it.
pub fn within<T>(name: &str, allowed: usize, work: impl FnOnce() -> T) -> T {
    static NEAREST: AtomicUsize = AtomicUsize::new(0);
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    LARGEST.store(0, Relaxed);
    let out = work();
    let (peak, largest) = (PEAK.load(Relaxed).saturating_sub(before), LARGEST.load(Relaxed));
    let part = peak.max(largest) * 1000 / allowed;
    if part > NEAREST.fetch_max(part, Relaxed) && std::env::var_os("FUZZ_METER").is_some() {
        eprintln!("{name}: {peak} bytes at once, {largest} in one piece, {allowed} allowed");
    }
    assert!(peak.max(largest) <= allowed, "{name}: {peak} bytes at once, {largest} in one piece, {allowed} allowed");
    out
}
