//! The two loops of Huffman coding as zstd lays it out (RFC 8878, 4.2): each stream is written from
//! its last symbol to its first, little-endian, closed by a 1 bit, and so is read from its end.
//!
//! A block holds four streams; the decoder keeps all four in flight because one symbol has to wait
//! for the one before it: seven cycles or so that three other streams can use. Its table yields up
//! to two symbols a look-up, which is most of the gain over libzstd on exponent planes.
#![allow(unsafe_code)]

/// Longest code of a literal, by the standard.
pub const MAX_BITS: u32 = 11;
const TABLE: usize = 1 << MAX_BITS;
/// Symbols of one look-up, look-ups of one round.
const RUN: u32 = 4;
const LOOKUPS: usize = 5;

/// Code and length of each symbol: `code | length << 16`; 0 for a symbol that does not occur.
pub type Codes = [u32; 256];

/// What the next 11 bits mean.
pub struct DecodeTable {
    /// As many symbols as the bits hold, at most four: `symbols | bits << 32 | count << 40`.
    runs: Box<[u64; TABLE]>,
    /// `symbol | bits << 8`: the first alone, for the ends of streams.
    singles: Box<[u16; TABLE]>,
}

impl Default for DecodeTable {
    fn default() -> Self {
        DecodeTable { runs: Box::new([0; TABLE]), singles: Box::new([0; TABLE]) }
    }
}

impl DecodeTable {
    /// Fills the table from the lengths of a complete code; false when it is not one.
    #[must_use]
    pub fn fill(&mut self, lengths: &[u8; 256]) -> bool {
        // Longest codes come first, symbols in order within a length.
        let mut at = 0;
        for bits in (1..=MAX_BITS).rev() {
            let span = 1usize << (MAX_BITS - bits);
            for (symbol, _) in lengths.iter().enumerate().filter(|(_, len)| u32::from(**len) == bits) {
                if at + span > TABLE {
                    return false;
                }
                self.singles[at..at + span].fill(symbol as u16 | (bits as u16) << 8);
                at += span;
            }
        }
        if at != TABLE || lengths.iter().any(|len| u32::from(*len) > MAX_BITS) {
            return false;
        }
        for (index, run) in self.runs.iter_mut().enumerate() {
            let (mut symbols, mut bits, mut count) = (0u64, 0u32, 0u32);
            while count < RUN {
                let next = self.singles[(index << bits) & (TABLE - 1)];
                let length = u32::from(next >> 8);
                if bits + length > MAX_BITS {
                    break;
                }
                symbols |= u64::from(next & 255) << (8 * count);
                bits += length;
                count += 1;
            }
            *run = symbols | u64::from(bits) << 32 | u64::from(count) << 40;
        }
        true
    }

    /// Decodes the four streams of a block, which fill the four parts of `out`; false on damage.
    #[must_use]
    pub fn decode4(&self, streams: [&[u8]; 4], out: [&mut [u8]; 4]) -> bool {
        let [o0, o1, o2, o3] = out;
        let mut cursors =
            [Cursor::new(streams[0]), Cursor::new(streams[1]), Cursor::new(streams[2]), Cursor::new(streams[3])];
        let done = if cursors.iter().all(Option::is_some) {
            let mut fast = cursors.map(Option::unwrap);
            let done = self.decode_fast(&mut fast, [&mut *o0, &mut *o1, &mut *o2, &mut *o3]);
            cursors = fast.map(Some);
            done
        } else {
            [0; 4]
        };
        let outs = [o0, o1, o2, o3];
        for (k, out) in outs.into_iter().enumerate() {
            let consumed = cursors[k].as_ref().map_or(0, Cursor::consumed_bits);
            if !self.decode_rest(streams[k], consumed, &mut out[done[k]..]) {
                return false;
            }
        }
        true
    }

    /// Decodes one stream into all of `out`; false on damage.
    #[must_use]
    pub fn decode1(&self, stream: &[u8], out: &mut [u8]) -> bool {
        self.decode_rest(stream, 0, out)
    }

    /// As far as every stream has input and room to spare; how much of each output was filled.
    fn decode_fast(&self, cursors: &mut [Cursor; 4], out: [&mut [u8]; 4]) -> [usize; 4] {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("bmi2") {
            // SAFETY: the instructions it is compiled with are there.
            return unsafe { self.decode_fast_bmi2(cursors, out) };
        }
        self.decode_fast_body(cursors, out)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "bmi1,bmi2,lzcnt")]
    fn decode_fast_bmi2(&self, cursors: &mut [Cursor; 4], out: [&mut [u8]; 4]) -> [usize; 4] {
        self.decode_fast_body(cursors, out)
    }

    #[inline(always)]
    fn decode_fast_body(&self, cursors: &mut [Cursor; 4], out: [&mut [u8]; 4]) -> [usize; 4] {
        let table: *const u64 = self.runs.as_ptr();
        let lengths = [out[0].len(), out[1].len(), out[2].len(), out[3].len()];
        let starts = out.map(<[u8]>::as_mut_ptr);
        let [mut o0, mut o1, mut o2, mut o3] = starts;
        let mut at = [cursors[0].at, cursors[1].at, cursors[2].at, cursors[3].at];
        let base = [
            cursors[0].stream.as_ptr(),
            cursors[1].stream.as_ptr(),
            cursors[2].stream.as_ptr(),
            cursors[3].stream.as_ptr(),
        ];
        let [mut b0, mut b1, mut b2, mut b3] = [cursors[0].bits, cursors[1].bits, cursors[2].bits, cursors[3].bits];
        let done = |o: [*mut u8; 4]| {
            let mut done = [0usize; 4];
            for k in 0..4 {
                done[k] = o[k] as usize - starts[k] as usize;
            }
            done
        };
        macro_rules! lookup {
            ($bits:ident, $out:ident) => {
                // SAFETY: the index has 11 bits, as the table; a round advances by at most 20 bytes, each
                // write is within them, and no more rounds are made than every output has room for.
                unsafe {
                    let entry = *table.add(($bits >> (64 - MAX_BITS)) as usize);
                    $out.cast::<u32>().write_unaligned((entry as u32).to_le());
                    $bits <<= (entry >> 32) & 63;
                    $out = $out.add((entry >> 40) as usize);
                }
            };
        }
        macro_rules! reload {
            ($bits:ident, $k:literal) => {
                // The sentinel's place tells how many bits went: at most 5 * 11 + 7.
                let used = $bits.trailing_zeros();
                at[$k] -= (used >> 3) as usize;
                // SAFETY: at most 7 bytes go a round, and there are no more rounds than `at` has sevens;
                // `at + 8` starts as the stream's length and only falls.
                let word = unsafe { base[$k].add(at[$k]).cast::<u64>().read_unaligned() };
                $bits = (u64::from_le(word) | 1) << (used & 7);
            };
        }
        loop {
            let filled = done([o0, o1, o2, o3]);
            let rounds =
                (0..4).map(|k| (at[k] / 7).min((lengths[k] - filled[k]) / (LOOKUPS * RUN as usize))).min().unwrap_or(0);
            if rounds == 0 {
                for (k, bits) in [b0, b1, b2, b3].into_iter().enumerate() {
                    cursors[k].bits = bits;
                    cursors[k].at = at[k];
                }
                return filled;
            }
            for _ in 0..rounds {
                lookup!(b0, o0);
                lookup!(b1, o1);
                lookup!(b2, o2);
                lookup!(b3, o3);
                lookup!(b0, o0);
                lookup!(b1, o1);
                lookup!(b2, o2);
                lookup!(b3, o3);
                lookup!(b0, o0);
                lookup!(b1, o1);
                lookup!(b2, o2);
                lookup!(b3, o3);
                lookup!(b0, o0);
                lookup!(b1, o1);
                lookup!(b2, o2);
                lookup!(b3, o3);
                lookup!(b0, o0);
                lookup!(b1, o1);
                lookup!(b2, o2);
                lookup!(b3, o3);
                reload!(b0, 0);
                reload!(b1, 1);
                reload!(b2, 2);
                reload!(b3, 3);
            }
        }
    }

    /// Symbol by symbol and checked, from `consumed` bits before the stream's end; all must be used.
    fn decode_rest(&self, stream: &[u8], consumed: usize, out: &mut [u8]) -> bool {
        let Some(total) = payload_bits(stream) else {
            return false;
        };
        let Some(mut left) = total.checked_sub(consumed) else {
            return false;
        };
        for slot in out {
            let entry = self.singles[peek(stream, left)];
            let bits = usize::from(entry >> 8);
            if bits > left {
                return false;
            }
            left -= bits;
            *slot = entry as u8;
        }
        left == 0
    }
}

/// The next 11 of `left` unread bits, zeros after the last.
fn peek(stream: &[u8], left: usize) -> usize {
    let low = left.saturating_sub(MAX_BITS as usize);
    let mut word = 0usize;
    for (i, byte) in stream[low / 8..].iter().take(3).enumerate() {
        word |= usize::from(*byte) << (8 * i);
    }
    let bits = (word >> (low % 8)) & ((1 << (left - low)) - 1);
    bits << (MAX_BITS as usize - (left - low))
}

/// Bits before the closing 1, None without one.
fn payload_bits(stream: &[u8]) -> Option<usize> {
    match stream.last() {
        None | Some(0) => None,
        Some(last) => Some(stream.len() * 8 - 1 - last.leading_zeros() as usize),
    }
}

/// A place in a stream: the unread bits of the eight bytes at `at`, from the top, above a sentinel 1.
struct Cursor<'a> {
    stream: &'a [u8],
    at: usize,
    bits: u64,
}

impl<'a> Cursor<'a> {
    fn new(stream: &'a [u8]) -> Option<Self> {
        let at = stream.len().checked_sub(8)?;
        let word = u64::from_le_bytes(stream[at..].try_into().ok()?);
        let closing = stream[at + 7].leading_zeros() + 1;
        (closing <= 8).then(|| Cursor { stream, at, bits: (word | 1) << closing })
    }

    /// Bits read so far, not counting the closing one and what is above it.
    fn consumed_bits(&self) -> usize {
        let closing = self.stream[self.stream.len() - 1].leading_zeros() as usize + 1;
        (self.stream.len() - 8 - self.at) * 8 + self.bits.trailing_zeros() as usize - closing
    }
}

/// Appends `symbols` as one stream.
pub fn encode1(codes: &Codes, symbols: &[u8], out: &mut Vec<u8>) {
    out.reserve(symbols.len() * MAX_BITS as usize / 8 + 16);
    let start = out.len();
    let spare = out.spare_capacity_mut();
    let base = spare.as_mut_ptr().cast::<u8>();
    let mut written = 0usize;
    let mut acc = 0u64;
    let mut filled = 0u32;
    let mut flush = |acc: &mut u64, filled: &mut u32| {
        // SAFETY: every flush advances by the whole bytes of what was added, at most MAX_BITS bits a
        // symbol, so `written + 8` stays within the 16 bytes reserved beyond that bound.
        unsafe { base.add(written).cast::<u64>().write_unaligned(acc.to_le()) };
        written += (*filled >> 3) as usize;
        *acc >>= *filled & !7;
        *filled &= 7;
    };
    let mut add = |entries: [u32; 5]| {
        // Joined in pairs so that the additions do not all wait for one another.
        let join = |(a, m): (u64, u32), (b, n): (u64, u32)| (a | b << m, m + n);
        let part = |e: u32| (u64::from(e & 0xffff), e >> 16);
        let [a, b, c, d, e] = entries.map(part);
        let (word, bits) = join(join(join(a, b), join(c, d)), e);
        acc |= word << filled;
        filled += bits;
        flush(&mut acc, &mut filled);
    };
    let mut groups = symbols.rchunks_exact(5);
    for group in &mut groups {
        let code = |i: usize| codes[group[i] as usize];
        add([code(4), code(3), code(2), code(1), code(0)]);
    }
    let mut rest = [0u32; 5];
    for (slot, symbol) in rest.iter_mut().zip(groups.remainder().iter().rev()) {
        *slot = codes[*symbol as usize];
    }
    add(rest);
    // The closing bit; `filled` is at most 7 here.
    add([1 | 1 << 16, 0, 0, 0, 0]);
    let last = usize::from(filled > 0);
    // SAFETY: `written` bytes were written from the start of the spare capacity, and the last flush
    // also wrote the partial byte after them.
    unsafe { out.set_len(start + written + last) };
}

/// How often each byte occurs.
pub fn histogram(bytes: &[u8]) -> [u32; 256] {
    // Four tables: runs of one symbol would otherwise wait for their own counter.
    let mut counts = [[0u32; 256]; 4];
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        for (i, byte) in word.iter().enumerate() {
            counts[i & 3][*byte as usize] += 1;
        }
    }
    for byte in words.remainder() {
        counts[0][*byte as usize] += 1;
    }
    let mut total = [0u32; 256];
    for (i, slot) in total.iter_mut().enumerate() {
        *slot = counts.iter().map(|table| table[i]).sum();
    }
    total
}
