//! Choices made of a fuzzer's bytes: zeros when they are used up, so that every input is one.

/// What is left of an input.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// A byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number at which things tend to break, or one a little off it.
    pub fn number(&mut self) -> u64 {
        let kind = self.byte();
        match kind % 8 {
            0 => u64::from(self.byte()),
            1 => u64::from(self.word()),
            2 => (1 << (self.byte() % 64)) - 1,
            3 => 1 << (self.byte() % 64),
            4 => u64::MAX - u64::from(self.byte()),
            5 => (1u64 << 63) - u64::from(self.byte()),
            6 => u64::from(self.word()) << 16 | u64::from(self.word()),
            _ => (0..8).fold(0, |n, _| n << 8 | u64::from(self.byte())),
        }
    }
}
