//! JPEG to pixels, with the bits that libjpeg gives: the specification of `ImageDecoder` asks for its upsampling.
//!
//! Spec: ITU-T T.81, Huffman-coded sequential and progressive images of 8 bits; JFIF and Adobe's marker for colours.
//! Deviation from T.81, which leaves the precision open: the inverse transform rounds its cosines to 13 bits and the
//! result of its first pass to 2 bits, like libjpeg's accurate integer transform.
//! Errors: no such image; damaged markers or tables. Entropy-coded data that ends early is read as zeros.

use super::entropy::{Bits, Huffman, Scan};
use crate::error::{Result, anyhow, bail, ensure};

/// Pixels in rows of `[R, G, B]`.
pub(super) struct Rgb {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<u8>,
}

/// A colour component.
pub(super) struct Component {
    id: u8,
    /// Sampling factors.
    pub(super) h: usize,
    pub(super) v: usize,
    /// Which quantization table.
    table: usize,
    /// Samples that belong to the image.
    width: usize,
    height: usize,
    /// Blocks in a row, and rows of blocks, filled up to whole units of all components.
    pub(super) row: usize,
    rows: usize,
    /// 64 coefficients for each block, in natural order.
    pub(super) coefficients: Vec<i16>,
    /// The last value of coefficient 0.
    pub(super) last_dc: i32,
}

impl Component {
    /// Blocks that belong to the image, across and down.
    pub(super) fn blocks(&self) -> (usize, usize) {
        (self.width.div_ceil(8), self.height.div_ceil(8))
    }
}

/// Natural position of the n-th coefficient in the file.
pub(super) const ZIGZAG: [usize; 64] = zigzag();

const fn zigzag() -> [usize; 64] {
    let mut order = [0; 64];
    let (mut n, mut diagonal) = (0, 0usize);
    while diagonal < 15 {
        let mut i = 0;
        while i <= diagonal {
            // Odd diagonals run down, even ones up.
            let (x, y) = if diagonal % 2 == 1 { (diagonal - i, i) } else { (i, diagonal - i) };
            if x < 8 && y < 8 {
                order[n] = y * 8 + x;
                n += 1;
            }
            i += 1;
        }
        diagonal += 1;
    }
    order
}

/// Bytes of the file that are not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or_else(|| anyhow!("the file ends early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn short(&mut self) -> Result<usize> {
        let b = self.take(2)?;
        Ok(usize::from(b[0]) << 8 | usize::from(b[1]))
    }

    /// The next marker; what lies before it is skipped, as are the fill bytes 255.
    fn marker(&mut self) -> Result<u8> {
        loop {
            if self.byte()? == 0xff {
                let mut code = self.byte()?;
                while code == 0xff {
                    code = self.byte()?;
                }
                if code != 0 {
                    return Ok(code);
                }
            }
        }
    }
}

/// What the markers have said so far.
#[derive(Default)]
struct Decoder {
    quantization: [Option<[u16; 64]>; 4],
    /// Tables for coefficient 0 and for the others.
    huffman: [[Option<Huffman>; 4]; 2],
    restart: usize,
    width: usize,
    height: usize,
    progressive: bool,
    components: Vec<Component>,
    jfif: bool,
    /// The colour transform of Adobe's marker.
    adobe: Option<u8>,
}

/// Decodes an image.
///
/// # Errors
/// See the module documentation.
pub(super) fn decode(bytes: &[u8]) -> Result<Rgb> {
    let mut reader = Reader(bytes);
    ensure!(reader.take(2)? == b"\xff\xd8", "JPEG: the start of the image is missing");
    let mut d = Decoder::default();
    let mut n_scans = 0;
    loop {
        // An image whose end is missing is as good as its scans.
        let marker = match reader.marker() {
            Err(_) if n_scans > 0 => break,
            m => m?,
        };
        match marker {
            0xd9 => break,
            0x01 | 0xd0..=0xd8 => {}
            _ => {
                let n =
                    reader.short()?.checked_sub(2).ok_or_else(|| anyhow!("JPEG: a segment of less than 2 bytes"))?;
                let mut segment = Reader(reader.take(n)?);
                match marker {
                    0xda => {
                        let scan = d.scan(&mut segment)?;
                        reader.0 = d.read_scan(&scan, reader.0)?;
                        n_scans += 1;
                    }
                    _ => d.segment(marker, &mut segment)?,
                }
            }
        }
    }
    ensure!(n_scans > 0, "JPEG: there is no scan");
    d.pixels()
}

impl Decoder {
    fn segment(&mut self, marker: u8, s: &mut Reader<'_>) -> Result<()> {
        match marker {
            0xc4 => self.huffman_tables(s),
            0xc0..=0xc2 => self.frame(marker == 0xc2, s),
            0xc3 | 0xc5..=0xcf => bail!("JPEG: the coding process {:#x} is not supported", marker),
            0xdb => self.quantization_tables(s),
            0xdd => {
                self.restart = s.short()?;
                Ok(())
            }
            0xe0 => {
                self.jfif |= s.0.starts_with(b"JFIF\0");
                Ok(())
            }
            0xee if s.0.starts_with(b"Adobe") => {
                self.adobe = s.0.get(11).copied();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn quantization_tables(&mut self, s: &mut Reader<'_>) -> Result<()> {
        while !s.0.is_empty() {
            let head = s.byte()?;
            let table = self.quantization.get_mut(usize::from(head & 15));
            let table = table.ok_or_else(|| anyhow!("JPEG: quantization table {}", head & 15))?;
            let mut values = [0; 64];
            for at in ZIGZAG {
                values[at] = if head >> 4 == 0 { u16::from(s.byte()?) } else { s.short()? as u16 };
            }
            *table = Some(values);
        }
        Ok(())
    }

    fn huffman_tables(&mut self, s: &mut Reader<'_>) -> Result<()> {
        while !s.0.is_empty() {
            let head = s.byte()?;
            let (class, id) = (usize::from(head >> 4), usize::from(head & 15));
            ensure!(class < 2 && id < 4, "JPEG: Huffman table {head:#x}");
            let counts = s.take(16)?;
            let n = counts.iter().map(|&c| usize::from(c)).sum();
            self.huffman[class][id] = Some(Huffman::new(counts, s.take(n)?));
        }
        Ok(())
    }

    fn frame(&mut self, progressive: bool, s: &mut Reader<'_>) -> Result<()> {
        ensure!(self.components.is_empty(), "JPEG: there are two frames");
        ensure!(s.byte()? == 8, "JPEG: samples of other than 8 bits are not supported");
        (self.height, self.width, self.progressive) = (s.short()?, s.short()?, progressive);
        let n = usize::from(s.byte()?);
        ensure!(matches!(n, 1 | 3 | 4), "JPEG: {n} components");
        ensure!(self.width > 0 && self.height > 0, "JPEG: {} x {} pixels", self.width, self.height);
        ensure!(self.width * self.height < 1 << 28, "JPEG: {} x {} pixels are too many", self.width, self.height);
        let mut heads = Vec::new();
        for _ in 0..n {
            let (id, sampling, table) = (s.byte()?, s.byte()?, usize::from(s.byte()?));
            let (h, v) = (usize::from(sampling >> 4), usize::from(sampling & 15));
            ensure!((1..=4).contains(&h) && (1..=4).contains(&v) && table < 4, "JPEG: component {id}");
            heads.push((id, h, v, table));
        }
        let (h_max, v_max) = (largest(heads.iter().map(|h| h.1)), largest(heads.iter().map(|h| h.2)));
        let (across, down) = (self.width.div_ceil(8 * h_max), self.height.div_ceil(8 * v_max));
        for (id, h, v, table) in heads {
            let (row, rows) = (across * h, down * v);
            self.components.push(Component {
                id,
                h,
                v,
                table,
                width: (self.width * h).div_ceil(h_max),
                height: (self.height * v).div_ceil(v_max),
                row,
                rows,
                coefficients: vec![0; row * rows * 64],
                last_dc: 0,
            });
        }
        Ok(())
    }

    fn scan(&self, s: &mut Reader<'_>) -> Result<Scan> {
        let n = usize::from(s.byte()?);
        ensure!((1..=4).contains(&n), "JPEG: a scan of {n} components");
        let mut members: Vec<(usize, usize, usize)> = Vec::new();
        for _ in 0..n {
            let (id, tables) = (s.byte()?, s.byte()?);
            let at = self.components.iter().position(|c| c.id == id);
            let at = at.ok_or_else(|| anyhow!("JPEG: a scan of component {id}, which is not there"))?;
            ensure!(members.iter().all(|m| m.0 != at), "JPEG: a scan has component {id} twice");
            members.push((at, usize::from(tables >> 4 & 3), usize::from(tables & 3)));
        }
        let (first, last, bits) = (usize::from(s.byte()?), usize::from(s.byte()?), s.byte()?);
        let (high, low) = (bits >> 4, bits & 15);
        if !self.progressive {
            return Ok(Scan { members, first: 0, last: 63, high: 0, low: 0, progressive: false });
        }
        ensure!(
            first <= last && last < 64 && (first > 0 || last == 0) && (first == 0 || n == 1) && low < 14,
            "JPEG: a scan of coefficients {first} to {last}"
        );
        Ok(Scan { members, first, last, high, low, progressive: true })
    }

    /// Reads the entropy-coded data of a scan, and gives what follows.
    fn read_scan<'a>(&mut self, scan: &Scan, data: &'a [u8]) -> Result<&'a [u8]> {
        let mut bits = Bits::new(data);
        let (across, down) = match scan.members.as_slice() {
            [(one, ..)] => self.components[*one].blocks(),
            _ => {
                let c = &self.components[0];
                (c.row / c.h, c.rows / c.v)
            }
        };
        let mut run = 0;
        for unit in 0..across * down {
            if self.restart > 0 && unit > 0 && unit % self.restart == 0 {
                bits.restart();
                run = 0;
                self.components.iter_mut().for_each(|c| c.last_dc = 0);
            }
            let (y, x) = (unit / across, unit % across);
            for &(at, dc, ac) in &scan.members {
                let c = &mut self.components[at];
                let tables = (self.huffman[0][dc].as_ref(), self.huffman[1][ac].as_ref());
                if scan.members.len() == 1 {
                    scan.block(&mut bits, c, y * c.row + x, tables, &mut run)?;
                    continue;
                }
                for i in 0..c.h * c.v {
                    let block = (y * c.v + i / c.h) * c.row + x * c.h + i % c.h;
                    scan.block(&mut bits, c, block, tables, &mut run)?;
                }
            }
        }
        self.components.iter_mut().for_each(|c| c.last_dc = 0);
        Ok(bits.rest())
    }

    fn pixels(&self) -> Result<Rgb> {
        let (w, h) = (self.width, self.height);
        let (h_max, v_max) =
            (largest(self.components.iter().map(|c| c.h)), largest(self.components.iter().map(|c| c.v)));
        let planes: Vec<Vec<u8>> = self
            .components
            .iter()
            .map(|c| {
                let table = self.quantization[c.table].as_ref();
                let table = table.ok_or_else(|| anyhow!("JPEG: quantization table {} is missing", c.table))?;
                upsampled(c, &samples(c, table), h_max, v_max, w, h)
            })
            .collect::<Result<_>>()?;
        let ids: Vec<u8> = self.components.iter().map(|c| c.id).collect();
        let is_rgb = match self.adobe {
            Some(transform) => transform == 0,
            None => !self.jfif && ids.starts_with(b"RGB"),
        };
        let mut pixels = Vec::with_capacity(w * h * 3);
        for i in 0..w * h {
            let p = match planes.as_slice() {
                [gray] => [gray[i]; 3],
                [a, b, c, ..] if is_rgb => [a[i], b[i], c[i]],
                [y, cb, cr, ..] => rgb(y[i], cb[i], cr[i]),
                _ => bail!("JPEG: {} components", planes.len()),
            };
            pixels.extend(match planes.get(3) {
                // Adobe stores the inks inverted, so that 255 is paper.
                Some(k) => p.map(|x| {
                    let light = if is_rgb { x } else { 255 - x };
                    (u32::from(light) * u32::from(k[i]) / 255) as u8
                }),
                None => p,
            });
        }
        Ok(Rgb { width: w, height: h, pixels })
    }
}

fn largest(v: impl Iterator<Item = usize>) -> usize {
    v.max().unwrap_or(1)
}

/// ITU-R BT.601 with 16 bits after the point.
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let half = 1 << 15;
    let r = y + ((91881 * cr + half) >> 16);
    let g = y + ((-22554 * cb - 46802 * cr + half) >> 16);
    let b = y + ((116_130 * cb + half) >> 16);
    [r, g, b].map(|x| x.clamp(0, 255) as u8)
}

/// Half the cosines of the odd coefficients 1, 3, 5, 7 with 13 bits, rounded where libjpeg's factors are.
const ODD: [[i64; 4]; 4] =
    [[11363, 9633, 6437, 2260], [9633, -2259, -11362, -6436], [6437, -11362, 2261, 9633], [2260, -6436, 9633, -11363]];

/// One pass of the inverse transform, with 13 more bits in the result.
fn transform(x: [i64; 8]) -> [i64; 8] {
    let (sum, difference) = ((x[0] + x[4]) << 13, (x[0] - x[4]) << 13);
    let (outer, inner) = (10703 * x[2] + 4433 * x[6], 4433 * x[2] - 10704 * x[6]);
    let even = [sum + outer, difference + inner, difference - inner, sum - outer];
    std::array::from_fn(|i| {
        let k = if i < 4 { i } else { 7 - i };
        let odd: i64 = ODD[k].iter().zip([x[1], x[3], x[5], x[7]]).map(|(c, x)| c * x).sum();
        if i < 4 { even[k] + odd } else { even[k] - odd }
    })
}

/// The samples of a component, in rows of `row * 8`.
fn samples(c: &Component, table: &[u16; 64]) -> Vec<u8> {
    let stride = c.row * 8;
    let mut out = vec![0; stride * c.rows * 8];
    for (n, block) in c.coefficients.chunks_exact(64).enumerate() {
        let (y0, x0) = (n / c.row * 8, n % c.row * 8);
        let mut columns = [[0; 8]; 8];
        for (x, column) in columns.iter_mut().enumerate() {
            let v = std::array::from_fn(|y| i64::from(block[y * 8 + x]) * i64::from(table[y * 8 + x]));
            *column = transform(v).map(|s| (s + (1 << 10)) >> 11);
        }
        for y in 0..8 {
            let row = transform(std::array::from_fn(|x| columns[x][y]));
            for (x, s) in row.into_iter().enumerate() {
                out[(y0 + y) * stride + x0 + x] = (((s + (1 << 17)) >> 18) + 128).clamp(0, 255) as u8;
            }
        }
    }
    out
}

/// A component at the size of the image. Twice as many samples in a direction are interpolated, with alternating
/// rounding; other factors repeat samples.
fn upsampled(
    c: &Component,
    samples: &[u8],
    h_max: usize,
    v_max: usize,
    width: usize,
    height: usize,
) -> Result<Vec<u8>> {
    ensure!(h_max.is_multiple_of(c.h) && v_max.is_multiple_of(c.v), "JPEG: sampling factors that are no multiples");
    let (across, down) = (h_max / c.h, v_max / c.v);
    let stride = c.row * 8;
    let row = |y: usize| &samples[y.min(c.height - 1) * stride..][..c.width];
    let smooth = matches!((across, down), (2, 1 | 2)) && c.width > 2 || (across, down) == (1, 2);
    let mut out = Vec::with_capacity(width * height);
    for y in 0..height {
        let near = row(y / down);
        if !smooth {
            out.extend((0..width).map(|x| near[x / across]));
            continue;
        }
        // The other row that takes part: above for the first of two, below for the second.
        let far = if y % 2 == 0 { row((y / 2).saturating_sub(1)) } else { row(y / 2 + 1) };
        let sum = |x: usize| if down == 2 { 3 * u32::from(near[x]) + u32::from(far[x]) } else { u32::from(near[x]) };
        let shift = if down == 2 { 2 } else { 0 };
        out.extend((0..width).map(|x| {
            if across == 1 {
                let bias = if y % 2 == 0 { 1 } else { 2 };
                return ((sum(x) + bias) >> 2) as u8;
            }
            let at = x / 2;
            let (other, bias) = match (x % 2, down) {
                (0, 1) => (at.saturating_sub(1), 1),
                (0, _) => (at.saturating_sub(1), 8),
                (_, 1) => ((at + 1).min(c.width - 1), 2),
                _ => ((at + 1).min(c.width - 1), 7),
            };
            ((3 * sum(at) + sum(other) + bias) >> (2 + shift)) as u8
        }));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_block_transforms_to_itself() {
        let mut x = [0; 8];
        x[0] = 5;
        assert_eq!(transform(x), [5 << 13; 8]);
        assert_eq!(ZIGZAG[..6], [0, 1, 8, 16, 9, 2]);
        assert_eq!(ZIGZAG[63], 63);
    }

    #[test]
    fn colours() {
        assert_eq!(rgb(255, 128, 128), [255; 3]);
        assert_eq!(rgb(76, 85, 255), [254, 0, 0]);
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        for (bytes, why) in [
            (&b"\xff\xd8\xff\xd9"[..], "no scan"),
            (b"\xff\xd8\xff\xdb\x00\x03\x09", "quantization table 9"),
            (b"\xff\xd8\xff\xc9\x00\x02", "coding process"),
            (b"\xff\xd8\xff\xc4\x00\x01", "less than 2 bytes"),
            (b"\xff\xd8\xff\xc0", "ends early"),
        ] {
            let e = decode(bytes).err().expect("an error").to_string();
            assert!(e.contains(why), "{e}");
        }
    }
}
