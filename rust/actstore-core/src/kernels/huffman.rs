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

/// Longest code that is written: five of them fit a word, and longer ones would save next to nothing.
pub const ENCODED_BITS: u32 = 10;

/// Each symbol's code, in the topmost bits, and its length in the lowest byte: at most [`ENCODED_BITS`],
/// which is what the encoder's room is reckoned by.
pub struct Codes([u64; 256]);

impl Codes {
    /// The codes of some lengths; None unless they are a complete code of at most [`ENCODED_BITS`] bits.
    pub fn new(lengths: &[u8; 256]) -> Option<Self> {
        if lengths.iter().any(|length| u32::from(*length) > ENCODED_BITS) {
            return None;
        }
        let mut codes = [0u64; 256];
        let mut next = 0u64;
        // In units of the longest code, longest first: a code of `bits` is its place over its span.
        for bits in (1..=ENCODED_BITS).rev() {
            let span = 1u64 << (ENCODED_BITS - bits);
            for symbol in (0..256).filter(|symbol| u32::from(lengths[*symbol]) == bits) {
                codes[symbol] = (next / span) << (64 - bits) | u64::from(bits);
                next += span;
            }
        }
        (next == 1 << ENCODED_BITS).then_some(Codes(codes))
    }
}

/// What the next 11 bits mean.
pub struct DecodeTable {
    /// As many symbols as the bits hold, at most four: `bits | count << 8 | symbols << 32`. The bits are
    /// lowest, for the next look-up waits for a shift by them and a shift takes its count from there.
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
            *run = u64::from(bits) | u64::from(count) << 8 | symbols << 32;
        }
        true
    }

    /// Decodes the four lanes of a block; false on damage.
    #[must_use]
    pub fn decode(&self, lanes: &mut [Lane<'_>; 4]) -> bool {
        self.decode_fast(lanes);
        lanes.iter_mut().all(|lane| self.decode_rest(lane))
    }

    /// As far as every lane has input and room to spare.
    fn decode_fast(&self, lanes: &mut [Lane<'_>; 4]) {
        #[cfg(target_arch = "x86_64")]
        if has_bmi() {
            // SAFETY: the instructions it is compiled with are there.
            return unsafe { self.decode_fast_bmi(lanes) };
        }
        self.decode_fast_body(lanes);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "bmi1,bmi2")]
    fn decode_fast_bmi(&self, lanes: &mut [Lane<'_>; 4]) {
        self.decode_fast_body(lanes);
    }

    #[inline(always)]
    fn decode_fast_body(&self, lanes: &mut [Lane<'_>; 4]) {
        let table: *const u64 = self.runs.as_ptr();
        loop {
            let rounds = lanes.iter().map(Lane::rounds).min().unwrap_or(0);
            if rounds == 0 {
                return;
            }
            let mut bits = [0u64; 4];
            let mut from = [std::ptr::null::<u8>(); 4];
            let mut to = [std::ptr::null_mut::<u8>(); 4];
            for (k, lane) in lanes.iter_mut().enumerate() {
                bits[k] = lane.bits;
                // Of the whole stream, for it goes down from here.
                from[k] = lane.stream.as_ptr().wrapping_add(lane.at);
                to[k] = lane.out[lane.done..].as_mut_ptr();
            }
            let (from_start, to_start) = (from, to);
            for _ in 0..rounds {
                for _ in 0..LOOKUPS {
                    for k in 0..4 {
                        // SAFETY: the index has 11 bits, as the table; a round advances by at most 20
                        // bytes, writes within them, and every output has room for all rounds.
                        unsafe {
                            let entry = *table.add((bits[k] >> (64 - MAX_BITS)) as usize);
                            bits[k] <<= entry & 63;
                            to[k].cast::<u32>().write_unaligned((entry >> 32) as u32);
                            to[k] = to[k].add((entry >> 8) as u8 as usize);
                        }
                    }
                }
                for k in 0..4 {
                    // The sentinel's place tells how many bits went: at most 5 * 11 + 7.
                    let used = bits[k].trailing_zeros();
                    // SAFETY: at most 7 bytes go a round, and every lane has sevens for all rounds before
                    // its start; the eight bytes began as the stream's last.
                    let word = unsafe {
                        from[k] = from[k].sub((used >> 3) as usize);
                        from[k].cast::<u64>().read_unaligned()
                    };
                    bits[k] = (word | 1) << (used & 7);
                }
            }
            for (k, lane) in lanes.iter_mut().enumerate() {
                lane.bits = bits[k];
                lane.at -= from_start[k] as usize - from[k] as usize;
                lane.done += to[k] as usize - to_start[k] as usize;
            }
        }
    }

    /// Symbol by symbol and checked, what is left of a lane; all of its input must be used.
    fn decode_rest(&self, lane: &mut Lane<'_>) -> bool {
        let Some(mut left) = lane.unread_bits() else {
            return false;
        };
        for slot in &mut lane.out[lane.done..] {
            let entry = self.singles[peek(lane.stream, left)];
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

#[cfg(target_arch = "x86_64")]
fn has_bmi() -> bool {
    std::arch::is_x86_feature_detected!("bmi1") && std::arch::is_x86_feature_detected!("bmi2")
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

/// A stream and the bytes it decodes to.
pub struct Lane<'a> {
    stream: &'a [u8],
    out: &'a mut [u8],
    /// Bytes of `out` that are there.
    done: usize,
    /// The unread bits of the eight bytes at `at`, from the top, above a sentinel 1.
    bits: u64,
    at: usize,
}

impl<'a> Lane<'a> {
    /// A lane at its start.
    pub fn new(stream: &'a [u8], out: &'a mut [u8]) -> Self {
        let mut lane = Lane { stream, out, done: 0, bits: 1, at: 0 };
        if let Some(last) = stream.last_chunk::<8>()
            && last[7] != 0
        {
            lane.at = stream.len() - 8;
            lane.bits = (u64::from_le_bytes(*last) | 1) << (last[7].leading_zeros() + 1);
        }
        lane
    }

    /// Rounds for which it has input and room.
    fn rounds(&self) -> usize {
        (self.at / 7).min((self.out.len() - self.done) / (LOOKUPS * RUN as usize))
    }

    /// Bits not read yet, without the closing 1; None without one.
    fn unread_bits(&self) -> Option<usize> {
        let last = self.stream.last().filter(|last| **last != 0)?;
        Some(match self.done {
            0 => self.stream.len() * 8 - 1 - last.leading_zeros() as usize,
            _ => (self.at + 8) * 8 - self.bits.trailing_zeros() as usize,
        })
    }
}

/// Appends two streams, one after the other; the bytes of each. They are written at the same time, for
/// a code has to wait for the one before it in its stream.
pub fn encode2(codes: &Codes, symbols: [&[u8]; 2], out: &mut Vec<u8>) -> [usize; 2] {
    let room = symbols.map(|s| s.len() * ENCODED_BITS as usize / 8 + 16);
    out.reserve(room[0] + room[1]);
    let start = out.len();
    let first = out.spare_capacity_mut().as_mut_ptr().cast::<u8>();
    // SAFETY: both rooms were reserved, one behind the other, with what `encode_into` asks for, as no code
    // is longer than `Codes::new` lets it be; what it says it wrote of each is moved together and is then
    // initialized.
    unsafe {
        let second = first.add(room[0]);
        let written = encode_best(codes, symbols, [first, second]);
        std::ptr::copy(second, first.add(written[0]), written[1]);
        out.set_len(start + written[0] + written[1]);
        written
    }
}

/// Chooses the instructions.
///
/// # Safety
/// As for `encode_into`.
unsafe fn encode_best(codes: &Codes, symbols: [&[u8]; 2], room: [*mut u8; 2]) -> [usize; 2] {
    #[cfg(target_arch = "x86_64")]
    if has_bmi() {
        // SAFETY: the caller's promise is passed on, and the instructions are there.
        return unsafe { encode_into_bmi2(codes, symbols, room) };
    }
    // SAFETY: the caller's promise is passed on.
    unsafe { encode_into(codes, symbols, room) }
}

/// # Safety
/// As for `encode_into`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2")]
unsafe fn encode_into_bmi2(codes: &Codes, symbols: [&[u8]; 2], room: [*mut u8; 2]) -> [usize; 2] {
    // SAFETY: the caller's promise is passed on.
    unsafe { encode_into(codes, symbols, room) }
}

/// Writes two streams from their last symbols to their first; the bytes of each.
///
/// # Safety
/// Each room has `ENCODED_BITS` bits for each of its symbols and 16 bytes more.
#[inline(always)]
unsafe fn encode_into(codes: &Codes, symbols: [&[u8]; 2], room: [*mut u8; 2]) -> [usize; 2] {
    // Codes come in at the top of a word, which moves down to make room: then an entry needs no
    // taking apart. Its low byte, the length, is the shift, adds up to the bits filled, and the dirt
    // it leaves at the bottom is never reached: five codes and 7 bits left over are 57.
    struct Stream {
        word: u64,
        filled: u64,
        at: *mut u8,
    }
    let codes = &codes.0;
    macro_rules! put {
        ($stream:ident, $symbol:expr) => {
            let entry = codes[usize::from($symbol)];
            $stream.word = ($stream.word >> (entry & 63)) | entry;
            $stream.filled = $stream.filled.wrapping_add(entry);
        };
    }
    macro_rules! flush {
        ($stream:ident) => {
            let filled = $stream.filled & 255;
            let bits = $stream.word >> ((64 - filled) & 63);
            // SAFETY: `at` has advanced by whole bytes of codes, none longer than ENCODED_BITS; the room has
            // 16 bytes beyond them all.
            unsafe {
                $stream.at.cast::<u64>().write_unaligned(bits);
                $stream.at = $stream.at.add((filled >> 3) as usize);
            }
            $stream.filled = filled & 7;
        };
    }
    let [a, b] = symbols;
    let n = a.len().min(b.len()) / 5 * 5;
    let (rest_a, main_a) = a.split_at(a.len() - n);
    let (rest_b, main_b) = b.split_at(b.len() - n);
    let mut s = Stream { word: 0, filled: 0, at: room[0] };
    let mut t = Stream { word: 0, filled: 0, at: room[1] };
    for (x, y) in main_a.rchunks_exact(5).zip(main_b.rchunks_exact(5)) {
        put!(s, x[4]);
        put!(t, y[4]);
        put!(s, x[3]);
        put!(t, y[3]);
        put!(s, x[2]);
        put!(t, y[2]);
        put!(s, x[1]);
        put!(t, y[1]);
        put!(s, x[0]);
        put!(t, y[0]);
        flush!(s);
        flush!(t);
    }
    for symbol in rest_a.iter().rev() {
        put!(s, *symbol);
        flush!(s);
    }
    for symbol in rest_b.iter().rev() {
        put!(t, *symbol);
        flush!(t);
    }
    let mut written = [0; 2];
    for (k, mut stream) in [s, t].into_iter().enumerate() {
        // The closing bit.
        let entry = 1 << 63 | 1;
        stream.word = (stream.word >> 1) | entry;
        stream.filled = stream.filled.wrapping_add(entry);
        flush!(stream);
        written[k] = stream.at as usize - room[k] as usize + usize::from(stream.filled > 0);
    }
    written
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths of a code: a ladder down to `longest`, its last rung twice.
    fn ladder(longest: u8) -> [u8; 256] {
        let mut lengths = [0; 256];
        for (i, length) in lengths.iter_mut().take(usize::from(longest) + 1).enumerate() {
            *length = (i as u8 + 1).min(longest);
        }
        lengths
    }

    #[test]
    fn codes_are_complete_and_short_or_there_are_none() {
        for longest in 1..=ENCODED_BITS as u8 {
            assert!(Codes::new(&ladder(longest)).is_some(), "{longest}");
        }
        for longest in [ENCODED_BITS as u8 + 1, MAX_BITS as u8, 63, 64] {
            assert!(Codes::new(&ladder(longest)).is_none(), "{longest}");
        }
        assert!(Codes::new(&[255; 256]).is_none());
        assert!(Codes::new(&[0; 256]).is_none());
        let mut lengths = ladder(4);
        lengths[200] = 4;
        assert!(Codes::new(&lengths).is_none(), "more than a complete code");
        lengths[200] = ENCODED_BITS as u8 + 1;
        assert!(Codes::new(&lengths).is_none(), "a complete code, and a symbol beside it");
        lengths = ladder(4);
        lengths[0] = 0;
        assert!(Codes::new(&lengths).is_none(), "less than a complete code");
    }

    /// The longest codes alone fill the room to what it was reckoned by, whatever the buffer held before.
    #[test]
    fn the_longest_codes_stay_in_their_room() {
        let lengths = ladder(ENCODED_BITS as u8);
        let codes = Codes::new(&lengths).unwrap();
        let mut table = DecodeTable::default();
        assert!(table.fill(&lengths));
        // Miri takes a minute for what takes a millisecond.
        let lengths = if cfg!(miri) { (0..60).step_by(7) } else { (0..1000).step_by(1) };
        for n in lengths {
            let symbols = vec![ENCODED_BITS as u8; n];
            let mut out = Vec::new();
            let sizes = encode2(&codes, [&symbols, &symbols], &mut out);
            assert_eq!(sizes, [(n * ENCODED_BITS as usize + 1).div_ceil(8); 2]);
            assert_eq!(out.len(), sizes[0] + sizes[1]);
            let mut back = vec![0; 4 * n];
            let (a, b) = out.split_at(sizes[0]);
            let mut parts = back.chunks_mut(n.max(1));
            let mut lanes = [a, b, a, b].map(|stream| Lane::new(stream, parts.next().unwrap_or_default()));
            assert!(table.decode(&mut lanes), "{n}");
            assert!(back.iter().all(|symbol| *symbol == ENCODED_BITS as u8));
        }
    }
}
