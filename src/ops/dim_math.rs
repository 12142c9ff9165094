//! Arithmetic on dimensions that may be symbols, for the elements of shapes: `2*N + 1`.
//!
//! Sums of integer multiples of names are kept in one normal form, so that equal sizes have equal spellings; what is
//! no such sum (a quotient that does not divide evenly, a product of two names) becomes unknown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::ir::Dim;

/// A sum of integer multiples of names, plus a constant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Linear {
    terms: BTreeMap<String, i64>,
    constant: i64,
}

impl Linear {
    fn parse(dim: &Dim) -> Option<Self> {
        let mut sum = Linear::default();
        match dim {
            Dim::Known(n) => sum.constant = i64::try_from(*n).ok()?,
            Dim::Unknown => return None,
            Dim::Symbol(s) => {
                let mut sign = 1;
                let mut expect_term = true;
                for word in s.split_whitespace() {
                    match word {
                        "+" | "-" if !expect_term => {
                            sign = if word == "+" { 1 } else { -1 };
                            expect_term = true;
                        }
                        _ if expect_term => {
                            sum.add_term(word, sign)?;
                            expect_term = false;
                        }
                        // A name of its own with blanks in it.
                        _ => return Some(Linear { terms: [(s.to_string(), 1)].into(), constant: 0 }),
                    }
                }
            }
        }
        Some(sum)
    }

    fn add_term(&mut self, word: &str, sign: i64) -> Option<()> {
        if let Ok(n) = word.parse::<i64>() {
            self.constant = self.constant.checked_add(n.checked_mul(sign)?)?;
            return Some(());
        }
        let (factor, name) = match word.split_once('*') {
            Some((n, name)) if n.parse::<i64>().is_ok() => (n.parse().ok()?, name),
            _ => match word.strip_prefix('-') {
                Some(name) => (-1, name),
                None => (1, word),
            },
        };
        let of = self.terms.entry(name.to_owned()).or_insert(0);
        *of = of.checked_add(sign.checked_mul(factor)?)?;
        Some(())
    }

    fn combine(mut self, other: &Linear, factor: i64) -> Option<Self> {
        self.constant = self.constant.checked_add(other.constant.checked_mul(factor)?)?;
        for (name, n) in &other.terms {
            let of = self.terms.entry(name.clone()).or_insert(0);
            *of = of.checked_add(n.checked_mul(factor)?)?;
        }
        Some(self)
    }

    fn dim(mut self) -> Dim {
        self.terms.retain(|_, n| *n != 0);
        if self.terms.is_empty() {
            return usize::try_from(self.constant).map_or(Dim::Unknown, Dim::Known);
        }
        let mut s = String::new();
        for (name, n) in &self.terms {
            let sign = match (s.is_empty(), *n < 0) {
                (true, false) => "",
                (true, true) => "-",
                (false, false) => " + ",
                (false, true) => " - ",
            };
            let _ = match n.unsigned_abs() {
                1 => write!(s, "{sign}{name}"),
                m => write!(s, "{sign}{m}*{name}"),
            };
        }
        if self.constant != 0 {
            let sign = if self.constant < 0 { '-' } else { '+' };
            let _ = write!(s, " {sign} {}", self.constant.unsigned_abs());
        }
        Dim::Symbol(s.into())
    }
}

/// The sum.
pub(crate) fn add(a: &Dim, b: &Dim) -> Dim {
    combine(a, b, 1)
}

/// The difference; unknown when it is negative.
pub(crate) fn sub(a: &Dim, b: &Dim) -> Dim {
    combine(a, b, -1)
}

fn combine(a: &Dim, b: &Dim, factor: i64) -> Dim {
    let both = || Linear::parse(a)?.combine(&Linear::parse(b)?, factor);
    both().map_or(Dim::Unknown, Linear::dim)
}

/// The product, when one of the two is a number.
pub(crate) fn mul(a: &Dim, b: &Dim) -> Dim {
    let product = || {
        let (a, b) = (Linear::parse(a)?, Linear::parse(b)?);
        let (n, sum) = match (a.terms.is_empty(), b.terms.is_empty()) {
            (true, _) => (a.constant, b),
            (_, true) => (b.constant, a),
            _ => return None,
        };
        Linear::default().combine(&sum, n)
    };
    product().map_or(Dim::Unknown, Linear::dim)
}

/// The quotient of numbers, rounded down, or of a sum that a number divides evenly.
pub(crate) fn div(a: &Dim, b: &Dim) -> Dim {
    match (a, b) {
        (_, Dim::Known(0)) => Dim::Unknown,
        (Dim::Known(a), Dim::Known(b)) => Dim::Known(a / b),
        (a, Dim::Known(b)) => {
            let Some(mut sum) = Linear::parse(a) else { return Dim::Unknown };
            let Ok(b) = i64::try_from(*b) else { return Dim::Unknown };
            if sum.constant % b != 0 || sum.terms.values().any(|n| n % b != 0) {
                return Dim::Unknown;
            }
            sum.constant /= b;
            sum.terms.values_mut().for_each(|n| *n /= b);
            sum.dim()
        }
        (Dim::Symbol(a), Dim::Symbol(b)) if a == b => Dim::Known(1),
        _ => Dim::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_have_one_spelling() {
        let (n, m) = (Dim::Symbol("N".into()), Dim::Symbol("M".into()));
        let k = Dim::Known;
        let two_n = mul(&k(2), &n);
        assert_eq!(two_n.to_string(), "2*N");
        let sum = add(&add(&two_n, &k(1)), &m);
        assert_eq!(sum.to_string(), "M + 2*N + 1");
        assert_eq!(add(&add(&m, &k(1)), &two_n), sum);
        assert_eq!(sub(&sum, &m).to_string(), "2*N + 1");
        assert_eq!(sub(&n, &n), k(0));
        assert_eq!(div(&two_n, &k(2)), n);
        assert_eq!(div(&sum, &k(2)), Dim::Unknown);
        assert_eq!(div(&k(7), &k(2)), k(3));
        assert_eq!(sub(&k(1), &k(2)), Dim::Unknown);
        assert_eq!(mul(&n, &m), Dim::Unknown);
        assert_eq!(sub(&k(3), &n).to_string(), "-N + 3");
        assert_eq!(add(&sub(&k(3), &n), &n), k(3));
    }
}
