//! How the processor treats floats.
#![allow(unsafe_code)]

/// While it lives, its thread computes as IEEE 754 says: rounding to nearest, denormals kept. Some programs flush
/// denormals to zero, and a thread begins with the mode of the one that made it; afterward the mode is what it
/// was.
pub struct StandardMode(Mode);

#[cfg(target_arch = "x86_64")]
type Mode = u32;
#[cfg(not(target_arch = "x86_64"))]
type Mode = u64;

#[cfg(target_arch = "x86_64")]
const STANDARD: Mode = 0x1f80;
#[cfg(not(target_arch = "x86_64"))]
const STANDARD: Mode = 0;

impl StandardMode {
    /// Of this thread.
    #[must_use]
    pub fn set() -> Self {
        let before = mode();
        if before != STANDARD {
            set_mode(STANDARD);
        }
        StandardMode(before)
    }
}

impl Drop for StandardMode {
    fn drop(&mut self) {
        // What was computed may have set flags as well, which are nobody's.
        if mode() != self.0 {
            set_mode(self.0);
        }
    }
}

/// Sets this thread's mode for good: for threads of our own.
pub fn keep_denormals() {
    set_mode(STANDARD);
}

#[cfg(target_arch = "x86_64")]
fn mode() -> Mode {
    let mut mode: Mode = 0;
    // SAFETY: writes the four bytes of the variable.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack)) };
    mode
}

#[cfg(target_arch = "x86_64")]
fn set_mode(mode: Mode) {
    // SAFETY: reads the four bytes of the variable; callers set the mode that the compiler assumes, or the one
    // that the thread had before.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack, readonly)) };
}

#[cfg(target_arch = "aarch64")]
fn mode() -> Mode {
    let mode: Mode;
    // SAFETY: reads a register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) mode, options(nomem, nostack)) };
    mode
}

#[cfg(target_arch = "aarch64")]
fn set_mode(mode: Mode) {
    // SAFETY: sets the mode that the compiler assumes, or the one that the thread had before.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) mode, options(nomem, nostack)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn mode() -> Mode {
    STANDARD
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn set_mode(_: Mode) {}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_standard_meanwhile_and_then_what_it_was() {
        const FLUSHES: Mode = 0x9fc0;
        let halved = |x: f32| std::hint::black_box(x) * std::hint::black_box(0.5);
        let denormal = f32::from_bits(2);
        let before = mode();
        set_mode(FLUSHES);
        let flushed = halved(denormal);
        let kept = {
            let _mode = StandardMode::set();
            halved(denormal)
        };
        let after = mode();
        set_mode(before);
        assert_eq!((flushed.to_bits(), kept.to_bits()), (0, 1));
        assert_eq!(after & !0x3f, FLUSHES & !0x3f);
    }
}
