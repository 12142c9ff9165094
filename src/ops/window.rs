//! Sliding windows over spatial dimensions: what convolutions and pools share.
//!
//! Spec: `Conv`, `MaxPool`: output extents, `auto_pad`, `ceil_mode`.

use crate::error::{Result, bail, ensure};
use crate::ir::{Attrs, Dim, sym};

/// Padding as the attributes give it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Padding {
    /// In front of and behind each dimension.
    Explicit(Vec<usize>, Vec<usize>),
    /// So that the output has `ceil(input / stride)` elements; the odd one goes behind.
    SameUpper,
    /// The same, and the odd one goes in front.
    SameLower,
    /// None.
    Valid,
}

/// A window that slides over spatial dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    /// Taps in each dimension.
    pub(super) kernel: Vec<usize>,
    /// Steps.
    pub(super) stride: Vec<usize>,
    /// Distances of taps.
    pub(super) dilation: Vec<usize>,
    padding: Padding,
    ceil: bool,
}

/// What a window makes of one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Elements of the output.
    pub(super) output: usize,
    /// Padding in front.
    pub(super) begin: usize,
    /// Padding behind.
    pub(super) end: usize,
}

/// The attribute `name` as sizes, one for each of `rank` dimensions, or `default` for each.
pub(super) fn sizes(attrs: &Attrs, name: &str, rank: usize, default: usize, least: usize) -> Result<Vec<usize>> {
    let Some(v) = attrs.ints(name) else { return Ok(vec![default; rank]) };
    ensure!(v.len() == rank, "attribute \"{name}\" has {} values, expected {rank}", v.len());
    v.iter()
        .map(|&x| match usize::try_from(x) {
            Ok(n) if n >= least && n < 1 << 31 => Ok(n),
            _ => bail!("attribute \"{name}\" has the value {x}, expected at least {least}"),
        })
        .collect()
}

/// The attribute `kernel_shape`.
///
/// # Errors
/// It is missing.
pub(super) fn kernel_shape(attrs: &Attrs) -> Result<Vec<usize>> {
    match attrs.ints("kernel_shape") {
        Some(v) => sizes(attrs, "kernel_shape", v.len(), 1, 1),
        None => bail!("attribute \"kernel_shape\" is missing"),
    }
}

impl Window {
    /// The window of a node with the attributes `strides`, `dilations`, `pads`, `auto_pad` and `ceil_mode`.
    ///
    /// Deviation: `pads` next to an `auto_pad` is ignored, as ONNX Runtime does; the specification forbids it.
    ///
    /// # Errors
    /// An attribute has another number of values than `kernel`, or a value out of range.
    pub(super) fn new(attrs: &Attrs, kernel: Vec<usize>) -> Result<Self> {
        let rank = kernel.len();
        let padding = match attrs.str("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" | "" => {
                let v = sizes(attrs, "pads", 2 * rank, 0, 0)?;
                Padding::Explicit(v[..rank].to_vec(), v[rank..].to_vec())
            }
            "SAME_UPPER" => Padding::SameUpper,
            "SAME_LOWER" => Padding::SameLower,
            "VALID" => Padding::Valid,
            other => bail!("attribute \"auto_pad\" is \"{other}\", expected NOTSET, SAME_UPPER, SAME_LOWER or VALID"),
        };
        Ok(Window {
            stride: sizes(attrs, "strides", rank, 1, 1)?,
            dilation: sizes(attrs, "dilations", rank, 1, 1)?,
            kernel,
            padding,
            ceil: attrs.int("ceil_mode").unwrap_or(0) != 0,
        })
    }

    /// What dimension `d` of size `input` becomes.
    ///
    /// # Errors
    /// The window does not fit into the padded input.
    pub(super) fn span(&self, d: usize, input: usize) -> Result<Span> {
        let (stride, reach) = (self.stride[d], (self.kernel[d] - 1).saturating_mul(self.dilation[d]).saturating_add(1));
        let (begin, end) = match &self.padding {
            Padding::Explicit(begin, end) => (begin[d], end[d]),
            Padding::Valid => (0, 0),
            same => {
                let output = input.div_ceil(stride);
                let total = (output.saturating_sub(1) * stride + reach).saturating_sub(input);
                let half = total / 2;
                let begin = if *same == Padding::SameLower { total - half } else { half };
                return Ok(Span { output, begin, end: total - begin });
            }
        };
        let padded = input + begin + end;
        ensure!(
            padded >= reach,
            "the window of {reach} elements does not fit into spatial dimension {d} of {input} elements with padding {begin} and {end}"
        );
        let steps = padded - reach;
        let mut output = if self.ceil { steps.div_ceil(stride) } else { steps / stride } + 1;
        // A last window that would start in the padding behind the input does not count.
        if self.ceil && (output - 1) * stride >= input + begin {
            output -= 1;
        }
        Ok(Span { output, begin, end })
    }

    /// What the spatial dimensions become.
    ///
    /// # Errors
    /// The rank differs from the window's, or a window does not fit.
    pub(super) fn spans(&self, input: &[usize]) -> Result<Vec<Span>> {
        ensure!(
            input.len() == self.kernel.len(),
            "input 0 (X) has {} spatial dimensions, expected {} as \"kernel_shape\" has",
            input.len(),
            self.kernel.len()
        );
        input.iter().enumerate().map(|(d, &n)| self.span(d, n)).collect()
    }

    /// What partly known spatial dimensions become.
    ///
    /// # Errors
    /// As [`Window::spans`].
    pub(super) fn dims(&self, input: &[Dim]) -> Result<Vec<Dim>> {
        ensure!(
            input.len() == self.kernel.len(),
            "input 0 (X) has {} spatial dimensions, expected {} as \"kernel_shape\" has",
            input.len(),
            self.kernel.len()
        );
        input.iter().enumerate().map(|(d, n)| self.dim(d, n)).collect()
    }

    fn dim(&self, d: usize, input: &Dim) -> Result<Dim> {
        if let Dim::Known(n) = input {
            return Ok(Dim::Known(self.span(d, *n)?.output));
        }
        let (stride, reach) = (self.stride[d], (self.kernel[d] - 1).saturating_mul(self.dilation[d]).saturating_add(1));
        // The numerator is the input and this; a division that rounds up adds the stride less one.
        let (extra, end) = match &self.padding {
            Padding::SameUpper | Padding::SameLower => (stride as i64 - 1, None),
            Padding::Valid => (stride as i64 - reach as i64, Some(0)),
            Padding::Explicit(begin, end) => {
                (begin[d] as i64 + end[d] as i64 + stride as i64 - reach as i64, Some(end[d]))
            }
        };
        let extra = match end {
            // Whether the last window starts in the padding and does not count depends on the size.
            Some(end) if self.ceil && stride > 1 && end + stride > reach => return Ok(Dim::Unknown),
            Some(_) if self.ceil => extra + stride as i64 - 1,
            _ => extra,
        };
        Ok(sym::floor_div(&sym::add(input, &sym::of_int(extra)), &Dim::Known(stride)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(stride: i64, pads: &[i64], ceil: bool, auto: &str) -> Window {
        let mut a = Attrs::default();
        a.set("strides", vec![stride].into());
        a.set("ceil_mode", i64::from(ceil).into());
        a.set("auto_pad", auto.into());
        if !pads.is_empty() {
            a.set("pads", pads.to_vec().into());
        }
        Window::new(&a, vec![3]).unwrap()
    }

    #[test]
    fn extents_follow_the_formulas_of_the_specification() {
        let span = |output, begin, end| Span { output, begin, end };
        assert_eq!(window(2, &[1, 1], false, "NOTSET").span(0, 7).unwrap(), span(4, 1, 1));
        assert_eq!(window(2, &[0, 0], false, "NOTSET").span(0, 6).unwrap(), span(2, 0, 0));
        assert_eq!(window(2, &[0, 0], true, "NOTSET").span(0, 6).unwrap(), span(3, 0, 0));
        assert_eq!(window(3, &[1, 1], true, "NOTSET").span(0, 2).unwrap(), span(1, 1, 1), "starts in the padding");
        assert_eq!(window(2, &[], false, "SAME_UPPER").span(0, 4).unwrap(), span(2, 0, 1));
        assert_eq!(window(2, &[], false, "SAME_LOWER").span(0, 4).unwrap(), span(2, 1, 0));
        assert_eq!(window(1, &[], false, "VALID").span(0, 4).unwrap(), span(2, 0, 0));
        assert!(window(1, &[], false, "VALID").span(0, 2).is_err());
    }

    #[test]
    fn sizes_with_names_stay_readable() {
        let w = Dim::Symbol("W".into());
        let text = |d: Dim| match d {
            Dim::Symbol(s) => s.to_string(),
            other => format!("{other:?}"),
        };
        let dim = |w: Window, n: &Dim| text(w.dims(std::slice::from_ref(n)).unwrap().remove(0));
        assert_eq!(dim(window(1, &[1, 1], false, "NOTSET"), &w), "W");
        assert_eq!(dim(window(2, &[1, 1], false, "NOTSET"), &w), "floor((W + 1)/2)");
        assert_eq!(dim(window(1, &[], false, "VALID"), &w), "W - 2");
        assert_eq!(dim(window(2, &[], false, "SAME_UPPER"), &w), "floor((W + 1)/2)");
        assert_eq!(dim(window(2, &[0, 0], true, "NOTSET"), &w), "floor(W/2)");
        assert_eq!(dim(window(2, &[1, 1], true, "NOTSET"), &w), "floor(W/2) + 1");
        assert_eq!(dim(window(3, &[1, 1], true, "NOTSET"), &w), "Unknown", "depends on the size");
        // Twice halved is a quarter.
        let half = window(2, &[1, 1], false, "NOTSET").dims(&[w]).unwrap().remove(0);
        assert_eq!(dim(window(2, &[1, 1], false, "NOTSET"), &half), "floor((W + 3)/4)");
    }
}
