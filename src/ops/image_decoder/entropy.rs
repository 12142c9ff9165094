//! The entropy-coded data of a JPEG image: Huffman codes and the coefficients of a scan (ITU-T T.81, annexes F and G).

use super::jpeg::{Component, ZIGZAG};
use crate::error::{Result, anyhow};

/// Bits of a scan. Behind its end, which a marker or the end of the file is, there are zeros.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    buffer: u32,
    n: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Bits { data, at: 0, buffer: 0, n: 0 }
    }

    fn bit(&mut self) -> u32 {
        if self.n == 0 {
            self.buffer = match self.data.get(self.at..) {
                Some([0xff, 0, ..]) => {
                    self.at += 2;
                    0xff
                }
                Some([b, ..]) if *b != 0xff => {
                    self.at += 1;
                    u32::from(*b)
                }
                _ => 0,
            };
            self.n = 8;
        }
        self.n -= 1;
        self.buffer >> self.n & 1
    }

    fn bits(&mut self, n: u32) -> i32 {
        (0..n).fold(0, |v, _| v << 1 | self.bit() as i32)
    }

    /// A number of `n` bits whose first bit tells the sign.
    fn signed(&mut self, n: u32) -> i32 {
        let v = self.bits(n);
        if n > 0 && v < 1 << (n - 1) { v - (1 << n) + 1 } else { v }
    }

    /// Goes on behind the next restart marker; stays where it is when another marker comes first.
    pub(super) fn restart(&mut self) {
        self.n = 0;
        let rest = &self.data[self.at.min(self.data.len())..];
        if let Some(i) = rest.windows(2).position(|w| w[0] == 0xff && !matches!(w[1], 0 | 0xff))
            && matches!(rest[i + 1], 0xd0..=0xd7)
        {
            self.at += i + 2;
        }
    }

    /// What follows the bytes that were read.
    pub(super) fn rest(self) -> &'a [u8] {
        &self.data[self.at.min(self.data.len())..]
    }
}

/// A Huffman code.
pub(super) struct Huffman {
    /// For each length from 1 on: the number of codes.
    counts: [u16; 16],
    /// In order of the codes.
    values: Vec<u8>,
}

impl Huffman {
    pub(super) fn new(counts: &[u8], values: &[u8]) -> Self {
        Huffman { counts: std::array::from_fn(|i| u16::from(counts[i])), values: values.to_vec() }
    }

    fn read(&self, bits: &mut Bits<'_>) -> Result<u8> {
        // Codes of a length are consecutive, and follow those of the length before.
        let (mut code, mut first, mut index) = (0, 0, 0);
        for &n in &self.counts {
            code |= bits.bit();
            let n = u32::from(n);
            if code < first + n {
                let i = index + (code - first);
                return self.values.get(i as usize).copied().ok_or_else(|| anyhow!("JPEG: a damaged Huffman table"));
            }
            index += n;
            first = (first + n) << 1;
            code <<= 1;
        }
        Err(anyhow!("JPEG: a code that the Huffman table does not have"))
    }
}

/// What a scan holds.
pub(super) struct Scan {
    /// Component, and tables for coefficient 0 and for the others.
    pub(super) members: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    pub(super) first: usize,
    pub(super) last: usize,
    /// Lowest bit of the scans before, or 0 when this is the first; lowest bit of this one.
    pub(super) high: u8,
    pub(super) low: u8,
    pub(super) progressive: bool,
}

/// Tables for coefficient 0 and for the others.
type Tables<'a> = (Option<&'a Huffman>, Option<&'a Huffman>);

impl Scan {
    /// Reads a block's part of the scan. `run` counts the blocks that follow without coefficients.
    pub(super) fn block(
        &self,
        bits: &mut Bits<'_>,
        c: &mut Component,
        n: usize,
        t: Tables<'_>,
        run: &mut u32,
    ) -> Result<()> {
        let ac = || t.1.ok_or_else(|| anyhow!("JPEG: a Huffman table is missing"));
        let mut first = self.first;
        if first == 0 {
            if self.high == 0 {
                let dc = t.0.ok_or_else(|| anyhow!("JPEG: a Huffman table is missing"))?;
                let size = u32::from(dc.read(bits)?).min(16);
                c.last_dc = c.last_dc.wrapping_add(bits.signed(size));
                c.coefficients[n * 64] = c.last_dc.wrapping_shl(self.low.into()) as i16;
            } else if bits.bit() == 1 {
                c.coefficients[n * 64] |= 1 << self.low;
            }
            first = 1;
        }
        if self.last == 0 {
            return Ok(());
        }
        let block = &mut c.coefficients[n * 64..][..64];
        if self.high == 0 {
            self.first_bits(bits, block, first, ac()?, run)
        } else {
            self.next_bit(bits, block, first, ac()?, run)
        }
    }

    fn first_bits(
        &self,
        bits: &mut Bits<'_>,
        block: &mut [i16],
        first: usize,
        ac: &Huffman,
        run: &mut u32,
    ) -> Result<()> {
        if *run > 0 {
            *run -= 1;
            return Ok(());
        }
        let mut k = first;
        while k <= self.last {
            let symbol = ac.read(bits)?;
            let (zeros, size) = (symbol >> 4, u32::from(symbol & 15));
            if size > 0 {
                k += usize::from(zeros);
                let value = bits.signed(size) << self.low;
                if k <= self.last {
                    block[ZIGZAG[k]] = value as i16;
                }
                k += 1;
            } else if zeros == 15 {
                k += 16;
            } else {
                if self.progressive {
                    *run = end_run(bits, zeros) - 1;
                }
                break;
            }
        }
        Ok(())
    }

    /// One more bit of coefficients of which the upper bits are known: those that are not 0 get a bit each, on the way
    /// to the places where new ones appear.
    fn next_bit(
        &self,
        bits: &mut Bits<'_>,
        block: &mut [i16],
        first: usize,
        ac: &Huffman,
        run: &mut u32,
    ) -> Result<()> {
        let one = 1i16 << self.low;
        let refine = |bits: &mut Bits<'_>, x: &mut i16| {
            if bits.bit() == 1 && *x & one == 0 {
                *x = x.wrapping_add(if *x > 0 { one } else { -one });
            }
        };
        let mut k = first;
        while *run == 0 && k <= self.last {
            let symbol = ac.read(bits)?;
            let (mut zeros, size) = (symbol >> 4, symbol & 15);
            if size == 0 && zeros < 15 {
                *run = end_run(bits, zeros);
                break;
            }
            let new = match size {
                0 => 0,
                _ if bits.bit() == 1 => one,
                _ => -one,
            };
            while k <= self.last {
                let x = &mut block[ZIGZAG[k]];
                k += 1;
                if *x != 0 {
                    refine(bits, x);
                } else if zeros == 0 {
                    *x = new;
                    break;
                } else {
                    zeros -= 1;
                }
            }
        }
        if *run > 0 {
            for x in (k..=self.last).map(|k| ZIGZAG[k]) {
                if block[x] != 0 {
                    refine(bits, &mut block[x]);
                }
            }
            *run -= 1;
        }
        Ok(())
    }
}

/// How many blocks, this one included, have no further coefficients.
fn end_run(bits: &mut Bits<'_>, n: u8) -> u32 {
    (1 << n) + bits.bits(n.into()) as u32
}
