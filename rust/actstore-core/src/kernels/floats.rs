//! How the processor treats floats.
#![allow(unsafe_code)]

/// Sets this thread's float unit to what IEEE 754 says: rounding to nearest, denormals kept. A thread
/// begins with the mode of the one that made it, and some programs flush denormals to zero there.
pub fn keep_denormals() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads four bytes of the stack, and sets the mode that the compiler assumes.
    unsafe {
        let standard: u32 = 0x1f80;
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const standard, options(nostack, readonly));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: sets the mode that the compiler assumes.
    unsafe {
        std::arch::asm!("msr fpcr, {}", in(reg) 0u64, options(nomem, nostack));
    }
}
