//! Huffman codes as zstd stores them: lengths from counts, and the tree's description (RFC 8878, 4.2.1).

use crate::kernels::huffman::{ENCODED_BITS, MAX_BITS};

/// Lengths of a complete code for `counts` of at most [`ENCODED_BITS`] bits; None with fewer than two symbols.
pub fn lengths(counts: &[u32; 256]) -> Option<[u8; 256]> {
    let mut order: Vec<usize> = (0..256).filter(|i| counts[*i] > 0).collect();
    if order.len() < 2 {
        return None;
    }
    order.sort_by_key(|i| (counts[*i], *i));
    let mut depth = tree_depths(&order.iter().map(|i| u64::from(counts[*i])).collect::<Vec<_>>());

    // Cut at the limit, then mend Kraft's sum: lengthen the rarest codes until it fits, and spend
    // what is left over on the most frequent, so that the code is complete again.
    let unit = |bits: u32| 1u32 << (ENCODED_BITS - bits);
    for bits in &mut depth {
        *bits = (*bits).min(ENCODED_BITS);
    }
    let mut sum: u32 = depth.iter().map(|bits| unit(*bits)).sum();
    while sum > unit(0) {
        let longest =
            (0..depth.len()).filter(|i| depth[*i] < ENCODED_BITS).max_by_key(|i| (depth[*i], usize::MAX - i))?;
        depth[longest] += 1;
        sum -= unit(depth[longest]);
    }
    while sum < unit(0) {
        let spare = unit(0) - sum;
        let best = (0..depth.len()).rev().find(|i| unit(depth[*i]) <= spare)?;
        sum += unit(depth[best]);
        depth[best] -= 1;
    }
    let mut lengths = [0u8; 256];
    for (symbol, bits) in order.iter().zip(depth) {
        lengths[*symbol] = bits as u8;
    }
    Some(lengths)
}

/// Depths of Huffman's tree over counts in ascending order, by two queues.
fn tree_depths(counts: &[u64]) -> Vec<u32> {
    let n = counts.len();
    let mut weight = counts.to_vec();
    let mut parent = vec![0usize; 2 * n - 1];
    let (mut leaf, mut node) = (0, n);
    for made in n..2 * n - 1 {
        let mut total = 0;
        for _ in 0..2 {
            let take_leaf = leaf < n && (node >= made || weight[leaf] <= weight[node]);
            let taken = if take_leaf { &mut leaf } else { &mut node };
            total += weight[*taken];
            parent[*taken] = made;
            *taken += 1;
        }
        weight.push(total);
    }
    let mut depth = vec![0u32; 2 * n - 1];
    for i in (0..2 * n - 2).rev() {
        depth[i] = depth[parent[i]] + 1;
    }
    depth.truncate(n);
    depth
}

/// Appends the tree's description; false when the weights cannot be described (then use no Huffman code).
#[must_use]
pub fn write_tree(lengths: &[u8; 256], out: &mut Vec<u8>) -> bool {
    let longest = u32::from(*lengths.iter().max().unwrap_or(&0));
    let last = lengths.iter().rposition(|l| *l > 0).unwrap_or(0);
    // The last symbol's weight is implied.
    let weights: Vec<u8> =
        lengths[..last].iter().map(|l| if *l == 0 { 0 } else { (longest + 1 - u32::from(*l)) as u8 }).collect();
    if let Some(compressed) = fse::compress(&weights).filter(|c| c.len() < 128 && c.len() < weights.len().div_ceil(2)) {
        out.push(compressed.len() as u8);
        out.extend_from_slice(&compressed);
        return true;
    }
    if weights.is_empty() || weights.len() > 128 {
        return false;
    }
    out.push(127 + weights.len() as u8);
    for pair in weights.chunks(2) {
        out.push(pair[0] << 4 | pair.get(1).copied().unwrap_or(0));
    }
    true
}

/// Reads a tree's description: the lengths and the bytes it took; None on damage.
pub fn read_tree(bytes: &[u8]) -> Option<([u8; 256], usize)> {
    let header = usize::from(*bytes.first()?);
    let (mut weights, used) = if header < 128 {
        (fse::decompress(bytes.get(1..=header)?)?, 1 + header)
    } else {
        let n = header - 127;
        let packed = bytes.get(1..1 + n.div_ceil(2))?;
        let weights = (0..n).map(|i| packed[i / 2] >> (4 * (1 - i % 2)) & 15).collect();
        (weights, 1 + n.div_ceil(2))
    };
    let sum: u32 = weights.iter().map(|w| if *w > 0 { 1u32 << (w - 1) } else { 0 }).sum();
    let longest = 32 - sum.leading_zeros();
    if sum == 0 || longest > MAX_BITS || weights.len() > 255 {
        return None;
    }
    let rest = (1u32 << longest) - sum;
    if !rest.is_power_of_two() {
        return None;
    }
    weights.push(rest.trailing_zeros() as u8 + 1);
    let mut lengths = [0u8; 256];
    for (length, weight) in lengths.iter_mut().zip(weights) {
        if weight > 0 {
            *length = (longest + 1 - u32::from(weight)) as u8;
        }
    }
    Some((lengths, used))
}

/// Finite state entropy, as far as the weights of a Huffman tree need it (RFC 8878, 4.1 and 4.2.1.2).
mod fse {
    const LOG: u32 = 6;
    const SIZE: usize = 1 << LOG;

    /// Where each symbol's states lie in the table.
    fn spread(counts: &[i32], log: u32) -> Option<Vec<u8>> {
        let size = 1usize << log;
        let mut table = vec![0u8; size];
        let mut high = size;
        for (symbol, _) in counts.iter().enumerate().filter(|(_, c)| **c == -1) {
            high = high.checked_sub(1)?;
            table[high] = symbol as u8;
        }
        let (mask, step) = (size - 1, (size >> 1) + (size >> 3) + 3);
        let mut at = 0;
        for (symbol, count) in counts.iter().enumerate() {
            for _ in 0..(*count).max(0) {
                table[at] = symbol as u8;
                at = (at + step) & mask;
                while at >= high {
                    at = (at + step) & mask;
                    if high == 0 {
                        return None;
                    }
                }
            }
        }
        (at == 0).then_some(table)
    }

    /// Counts scaled to the table's size, none of those that occur below 1.
    fn normalize(weights: &[u8]) -> Option<Vec<i32>> {
        let symbols = usize::from(*weights.iter().max()?) + 1;
        let mut counts = vec![0i64; symbols];
        for w in weights {
            counts[usize::from(*w)] += 1;
        }
        if counts.iter().filter(|c| **c > 0).count() < 2 {
            return None;
        }
        let mut scaled: Vec<i32> = counts
            .iter()
            .map(|c| if *c == 0 { 0 } else { ((c * SIZE as i64 / weights.len() as i64) as i32).max(1) })
            .collect();
        let largest = (0..symbols).max_by_key(|i| scaled[*i])?;
        scaled[largest] += SIZE as i32 - scaled.iter().sum::<i32>();
        (scaled[largest] > 0).then_some(scaled)
    }

    pub fn compress(weights: &[u8]) -> Option<Vec<u8>> {
        if weights.len() < 2 {
            return None;
        }
        let counts = normalize(weights)?;
        let table = spread(&counts, LOG)?;

        let mut out = Bits::default();
        write_counts(&counts, &mut out);
        out.align();

        // Each symbol's next states in order, and how to reach them (as in FSE_buildCTable).
        let mut first = vec![0usize; counts.len() + 1];
        for (i, c) in counts.iter().enumerate() {
            first[i + 1] = first[i] + *c as usize;
        }
        let mut states = [0u32; SIZE];
        let mut next = first.clone();
        for (i, symbol) in table.iter().enumerate() {
            states[next[usize::from(*symbol)]] = (SIZE + i) as u32;
            next[usize::from(*symbol)] += 1;
        }
        let step = |symbol: u8, state: u32, out: Option<&mut Bits>| {
            let count = counts[usize::from(symbol)] as u32;
            // The bits to drop so that what remains counts the symbol's own states: count..2*count.
            let mut bits = 0;
            while state >> bits >= 2 * count {
                bits += 1;
            }
            if let Some(out) = out {
                out.add(state & ((1 << bits) - 1), bits);
            }
            states[first[usize::from(symbol)] + ((state >> bits) - count) as usize]
        };
        // Written backward, two states in turn; the reader starts with the first.
        let mut rest = weights.to_vec();
        let mut state = [0u32; 2];
        let start = |symbol: u8| states[first[usize::from(symbol)]];
        let mut turn = (rest.len() - 1) % 2;
        for _ in 0..2 {
            state[turn] = start(rest.pop()?);
            turn ^= 1;
        }
        while let Some(symbol) = rest.pop() {
            state[turn] = step(symbol, state[turn], Some(&mut out));
            turn ^= 1;
        }
        out.add(state[1] & (SIZE as u32 - 1), LOG);
        out.add(state[0] & (SIZE as u32 - 1), LOG);
        out.add(1, 1);
        out.align();
        Some(out.bytes)
    }

    fn write_counts(counts: &[i32], out: &mut Bits) {
        out.add(LOG - 5, 4);
        let mut remaining = SIZE as i32 + 1;
        let mut threshold = SIZE as i32;
        let mut bits = LOG + 1;
        let mut symbol = 0;
        while symbol < counts.len() && remaining > 1 {
            let count = counts[symbol];
            symbol += 1;
            let max = 2 * threshold - 1 - remaining;
            remaining -= count.abs();
            let mut value = count + 1;
            if value >= threshold {
                value += max;
            }
            out.add(value as u32, bits - u32::from(value < max));
            while remaining < threshold && threshold > 1 {
                bits -= 1;
                threshold >>= 1;
            }
            if count == 0 {
                // A zero is followed by how many more there are, three at a time.
                let mut zeros = counts[symbol..].iter().take_while(|c| **c == 0).count();
                symbol += zeros;
                while zeros >= 3 {
                    out.add(3, 2);
                    zeros -= 3;
                }
                out.add(zeros as u32, 2);
            }
        }
    }

    pub fn decompress(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut reader = Forward { bytes, at: 0 };
        let log = reader.take(4)? + 5;
        if log > LOG {
            return None;
        }
        let mut counts: Vec<i32> = Vec::new();
        let mut remaining = (1i32 << log) + 1;
        let mut threshold = 1i32 << log;
        let mut bits = log + 1;
        while remaining > 1 {
            if counts.len() > 16 {
                return None;
            }
            let max = 2 * threshold - 1 - remaining;
            let low = reader.peek(bits - 1) as i32;
            let value = if low < max {
                reader.take(bits - 1)?;
                low
            } else {
                let full = reader.take(bits)? as i32;
                if full >= threshold { full - max } else { full }
            };
            let count = value - 1;
            remaining -= count.abs();
            counts.push(count);
            while remaining < threshold && threshold > 1 {
                bits -= 1;
                threshold >>= 1;
            }
            if count == 0 {
                loop {
                    let zeros = reader.take(2)?;
                    counts.extend((0..zeros).map(|_| 0));
                    if zeros < 3 {
                        break;
                    }
                    if counts.len() > 256 {
                        return None;
                    }
                }
            }
        }
        if remaining != 1 {
            return None;
        }
        let table = spread(&counts, log)?;
        let size = 1u32 << log;
        let mut next: Vec<u32> = counts.iter().map(|c| c.unsigned_abs()).collect();
        let rows: Vec<(u8, u32, u32)> = table
            .iter()
            .map(|symbol| {
                let state = next[usize::from(*symbol)];
                next[usize::from(*symbol)] += 1;
                let bits = log - (31 - state.leading_zeros());
                (*symbol, bits, (state << bits) - size)
            })
            .collect();

        let stream = bytes.get(reader.at.div_ceil(8)..)?;
        let closing = stream.last().filter(|b| **b > 0)?.leading_zeros() as usize + 1;
        let mut back = Backward { bytes: stream, left: (stream.len() * 8 - closing) as i64 };
        let mut state = [back.take(log), back.take(log)];
        if back.left < 0 {
            return None;
        }
        let mut weights = Vec::new();
        loop {
            for turn in 0..2 {
                let (symbol, bits, base) = rows[state[turn] as usize];
                weights.push(symbol);
                if weights.len() > 255 {
                    return None;
                }
                if i64::from(bits) > back.left {
                    weights.push(rows[state[turn ^ 1] as usize].0);
                    return (weights.len() <= 255).then_some(weights);
                }
                state[turn] = base + back.take(bits);
            }
        }
    }

    #[derive(Default)]
    struct Bits {
        bytes: Vec<u8>,
        acc: u64,
        filled: u32,
    }

    impl Bits {
        fn add(&mut self, value: u32, bits: u32) {
            self.acc |= u64::from(value) << self.filled;
            self.filled += bits;
            while self.filled >= 8 {
                self.bytes.push(self.acc as u8);
                self.acc >>= 8;
                self.filled -= 8;
            }
        }

        fn align(&mut self) {
            if self.filled > 0 {
                self.bytes.push(self.acc as u8);
                (self.acc, self.filled) = (0, 0);
            }
        }
    }

    struct Forward<'a> {
        bytes: &'a [u8],
        at: usize,
    }

    impl Forward<'_> {
        fn peek(&self, bits: u32) -> u32 {
            (0..bits as usize)
                .map(|i| {
                    let at = self.at + i;
                    let byte = self.bytes.get(at / 8).copied().unwrap_or(0);
                    u32::from(byte >> (at % 8) & 1) << i
                })
                .sum()
        }

        fn take(&mut self, bits: u32) -> Option<u32> {
            let value = self.peek(bits);
            self.at += bits as usize;
            (self.at <= self.bytes.len() * 8).then_some(value)
        }
    }

    struct Backward<'a> {
        bytes: &'a [u8],
        left: i64,
    }

    impl Backward<'_> {
        fn take(&mut self, bits: u32) -> u32 {
            let mut value = 0;
            for _ in 0..bits {
                self.left -= 1;
                let bit = usize::try_from(self.left).map_or(0, |at| self.bytes[at / 8] >> (at % 8) & 1);
                value = value << 1 | u32::from(bit);
            }
            value
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_read_back() {
        let mut seed = 7u64;
        let mut next = move || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as u32
        };
        for case in 0..2000 {
            let symbols = 2 + next() as usize % 255;
            let mut counts = [0u32; 256];
            for slot in &mut counts[..symbols] {
                *slot = match case % 4 {
                    0 => next() % 3,
                    1 => 1 << (next() % 20),
                    2 => next() % 1000,
                    _ => u32::from(next() % 10 == 0) * (next() % 100_000),
                };
            }
            let Some(lengths) = lengths(&counts) else { continue };
            let kraft: u32 = lengths.iter().filter(|l| **l > 0).map(|l| 1 << (ENCODED_BITS - u32::from(*l))).sum();
            assert_eq!(kraft, 1 << ENCODED_BITS);
            let mut out = Vec::new();
            if write_tree(&lengths, &mut out) {
                assert_eq!(read_tree(&out), Some((lengths, out.len())));
            }
        }
    }
}
