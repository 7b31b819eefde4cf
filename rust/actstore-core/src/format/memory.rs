//! Memory whose size a file names. The file may lie, and it may be right where there is less memory: asking
//! for it ends in an error, where an ordinary `Vec` would end the process.

use std::fmt::Display;

use crate::error::{Error, Result};

/// Makes room for `more` elements in a list; `what` they are goes into the error.
pub fn reserve<T>(list: &mut Vec<T>, more: usize, what: impl Display) -> Result<()> {
    list.try_reserve_exact(more).map_err(|_| refused(more.saturating_mul(size_of::<T>()), what))
}

/// The first `n` bytes of a buffer that is used again and again. One that is too small is made anew; its
/// content is nobody's.
pub fn room(buffer: &mut Vec<u8>, n: usize, what: impl Display) -> Result<&mut [u8]> {
    if buffer.len() < n {
        if buffer.capacity() < n {
            // Freed first, so that both are never there at once.
            *buffer = Vec::new();
            reserve(buffer, n, what)?;
        }
        buffer.resize(n, 0);
    }
    Ok(&mut buffer[..n])
}

/// So many zeros.
pub fn zeros(n: usize, what: impl Display) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reserve(&mut bytes, n, what)?;
    bytes.resize(n, 0);
    Ok(bytes)
}

/// What a file asks for may be in order: then it is this machine that does not read it.
fn refused(bytes: usize, what: impl Display) -> Error {
    Error::unsupported(format!("no memory for {what}: {bytes} bytes were asked for"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn what_no_machine_has_is_an_error() {
        for n in [isize::MAX as usize, usize::MAX, 1 << 60] {
            let mut buffer = vec![7; 3];
            assert_eq!(room(&mut buffer, n, "a test").unwrap_err().kind, Kind::Unsupported);
            assert_eq!(zeros(n, "a test").unwrap_err().kind, Kind::Unsupported);
            assert_eq!(reserve(&mut vec![0u64; 1], n, "a test").unwrap_err().kind, Kind::Unsupported);
        }
    }

    #[test]
    fn a_buffer_grows_and_never_shrinks() {
        let mut buffer = Vec::new();
        assert_eq!(room(&mut buffer, 10, "a test").unwrap().len(), 10);
        assert_eq!(room(&mut buffer, 3, "a test").unwrap().len(), 3);
        assert_eq!(buffer.len(), 10);
    }
}
