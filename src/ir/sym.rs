//! Arithmetic on dimensions: sums of products of names with integer coefficients, and floor divisions.
//!
//! A [`Dim::Symbol`] is text, as ONNX's `dim_param` is. Operations parse it into a canonical form, compute, and print
//! again: `N`, `2*N + 1`, `floor((H - 1)/2) + 1`. Equal expressions print equally, so comparing the text is sound (two
//! texts that differ may still be equal). Text that is no expression counts as one name. A negative constant, which is
//! no size but occurs in shapes that a model computes (the `-1` of `Reshape`), is the symbol `-1`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::Dim;

/// Longer texts are not worth reading: the result is [`Dim::Unknown`].
const MAX_TERMS: usize = 12;
const MAX_DEPTH: usize = 12;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    Name(String),
    /// Floor of the quotient.
    Floor(Sum, Sum),
}

/// Coefficients by product of atoms (sorted); the empty product is the constant term. No coefficient is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Sum(BTreeMap<Vec<Atom>, i64>);

impl Sum {
    fn constant(n: i64) -> Self {
        Sum(if n == 0 { BTreeMap::new() } else { BTreeMap::from([(Vec::new(), n)]) })
    }

    fn atom(a: Atom) -> Self {
        Sum(BTreeMap::from([(vec![a], 1)]))
    }

    fn as_constant(&self) -> Option<i64> {
        match self.0.len() {
            0 => Some(0),
            1 => self.0.get(&Vec::new()).copied(),
            _ => None,
        }
    }

    fn add_term(&mut self, product: Vec<Atom>, n: i64) -> Option<()> {
        let c = self.0.get(&product).copied().unwrap_or(0).checked_add(n)?;
        if c == 0 {
            self.0.remove(&product);
        } else {
            self.0.insert(product, c);
        }
        (self.0.len() <= MAX_TERMS).then_some(())
    }

    /// `self + n * other`.
    fn plus(mut self, other: &Sum, n: i64) -> Option<Self> {
        for (p, &c) in &other.0 {
            self.add_term(p.clone(), c.checked_mul(n)?)?;
        }
        Some(self)
    }

    fn times(&self, other: &Sum) -> Option<Self> {
        let mut out = Sum::default();
        for (p, &c) in &self.0 {
            for (q, &d) in &other.0 {
                let mut product = [p.as_slice(), q.as_slice()].concat();
                if product.len() > MAX_TERMS {
                    return None;
                }
                product.sort();
                out.add_term(product, c.checked_mul(d)?)?;
            }
        }
        Some(out)
    }

    /// The floor of `self / other`.
    fn over(&self, other: &Sum) -> Option<Self> {
        if self == other {
            return Some(Sum::constant(1));
        }
        let mut whole = Sum::default();
        let mut rest = Sum::default();
        let single = if other.0.len() == 1 { other.0.iter().next() } else { None };
        for (p, &c) in &self.0 {
            match single.and_then(|(q, &d)| Some((without(p, q)?, c.checked_rem(d)?, c.checked_div(d)?))) {
                Some((product, 0, quotient)) => whole.add_term(product, quotient)?,
                _ => rest.add_term(p.clone(), c)?,
            }
        }
        if rest.0.is_empty() {
            return Some(whole);
        }
        if let (Some(a), Some(b)) = (rest.as_constant(), other.as_constant()) {
            if b == 0 {
                return None;
            }
            return whole.plus(&Sum::constant(floor_div_i64(a, b)), 1);
        }
        // floor((floor(x/a) + c)/b) = floor((x + a*c)/(a*b)) for positive a and b.
        let c = rest.0.get(&Vec::new()).copied().unwrap_or(0);
        let named: Vec<_> = rest.0.iter().filter(|(p, _)| !p.is_empty()).map(|(p, &n)| (p.as_slice(), n)).collect();
        if let ([([Atom::Floor(x, a)], 1)], Some(b @ 1..)) = (named.as_slice(), other.as_constant())
            && let Some(a @ 1..) = a.as_constant()
        {
            let x = x.clone().plus(&Sum::constant(a.checked_mul(c)?), 1)?;
            let quotient = x.over(&Sum::constant(a.checked_mul(b)?))?;
            return whole.plus(&quotient, 1);
        }
        whole.plus(&Sum::atom(Atom::Floor(rest, other.clone())), 1)
    }
}

impl Sum {
    /// Sums, products and quotients of sizes grow with each of them, so the bound is the value where all are 0.
    fn lower_bound(&self) -> Option<i64> {
        let mut total = 0i64;
        for (product, &c) in &self.0 {
            let mut n = c;
            for atom in product {
                let low = match atom {
                    Atom::Name(_) => 0,
                    Atom::Floor(x, y) => match y.as_constant() {
                        Some(y @ 1..) => floor_div_i64(x.lower_bound()?, y),
                        _ => return None,
                    },
                };
                // A negative factor turns the order around.
                let grows = c > 0 && (low >= 0 || product.len() == 1);
                n = if grows { n.checked_mul(low)? } else { return None };
            }
            total = total.checked_add(n)?;
        }
        Some(total)
    }

    fn evaluate(&self, sizes: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        let mut total = 0i64;
        for (product, &c) in &self.0 {
            let mut n = c;
            for atom in product {
                n = n.checked_mul(match atom {
                    Atom::Name(name) => sizes(name)?,
                    Atom::Floor(x, y) => match (x.evaluate(sizes)?, y.evaluate(sizes)?) {
                        (_, 0) => return None,
                        (x, y) => floor_div_i64(x, y),
                    },
                })?;
            }
            total = total.checked_add(n)?;
        }
        Some(total)
    }
}

fn floor_div_i64(a: i64, b: i64) -> i64 {
    let q = a.wrapping_div(b);
    if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { q - 1 } else { q }
}

/// The product `p` without the atoms of `q`; `None` when one of them is not there.
fn without(p: &[Atom], q: &[Atom]) -> Option<Vec<Atom>> {
    let mut rest = p.to_vec();
    for a in q {
        rest.remove(rest.iter().position(|b| b == a)?);
    }
    Some(rest)
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut terms: Vec<_> = self.0.iter().collect();
        // Positive terms first, and the constant last, as one writes them.
        terms.sort_by_key(|(p, c)| (p.is_empty(), **c < 0, std::cmp::Reverse(p.len())));
        if terms.is_empty() {
            return f.write_str("0");
        }
        for (i, (product, c)) in terms.iter().map(|(p, c)| (*p, **c)).enumerate() {
            match (i, c < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                (_, false) => f.write_str(" + ")?,
                (_, true) => f.write_str(" - ")?,
            }
            if product.is_empty() || c.unsigned_abs() != 1 {
                write!(f, "{}", c.unsigned_abs())?;
                if !product.is_empty() {
                    f.write_str("*")?;
                }
            }
            for (j, a) in product.iter().enumerate() {
                if j > 0 {
                    f.write_str("*")?;
                }
                match a {
                    Atom::Name(n) => f.write_str(n)?,
                    Atom::Floor(x, y) => write!(f, "floor({}/{})", Grouped(x), Grouped(y))?,
                }
            }
        }
        Ok(())
    }
}

/// A sum in parentheses unless it is a single atom or a constant.
struct Grouped<'a>(&'a Sum);

impl fmt::Display for Grouped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = match self.0.0.iter().next() {
            Some((p, 1)) if self.0.0.len() == 1 => p.len() <= 1,
            Some((p, 2..)) if self.0.0.len() == 1 => p.is_empty(),
            _ => false,
        };
        if plain { write!(f, "{}", self.0) } else { write!(f, "({})", self.0) }
    }
}

/// Reads what [`Sum`] prints, and `//` for a floor division.
struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(r) => {
                self.rest = r;
                true
            }
            None => false,
        }
    }

    fn take_while(&mut self, f: impl Fn(char) -> bool) -> &'a str {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c| !f(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        token
    }

    fn sum(&mut self) -> Option<Sum> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut sign = if self.eat("-") { -1 } else { 1 };
        let mut out = Sum::default();
        loop {
            out = out.plus(&self.product()?, sign)?;
            sign = if self.eat("+") {
                1
            } else if self.eat("-") {
                -1
            } else {
                self.depth -= 1;
                return Some(out);
            };
        }
    }

    fn product(&mut self) -> Option<Sum> {
        let mut out = self.factor()?;
        loop {
            if self.eat("*") {
                out = out.times(&self.factor()?)?;
            } else if self.eat("//") {
                out = out.over(&self.factor()?)?;
            } else {
                return Some(out);
            }
        }
    }

    fn factor(&mut self) -> Option<Sum> {
        if self.eat("(") {
            let s = self.sum()?;
            return self.eat(")").then_some(s);
        }
        let word = self.take_while(|c| c.is_alphanumeric() || c == '_' || c == '.');
        if word.is_empty() {
            return None;
        }
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse().ok().map(Sum::constant);
        }
        if word == "floor" && self.eat("(") {
            let x = self.product()?;
            let y = if self.eat("/") { self.factor()? } else { Sum::constant(1) };
            return if self.eat(")") { x.over(&y) } else { None };
        }
        Some(Sum::atom(Atom::Name(word.to_owned())))
    }
}

fn parse(text: &str) -> Sum {
    let mut p = Parser { rest: text, depth: 0 };
    match p.sum() {
        Some(s) if p.rest.trim().is_empty() => s,
        _ => Sum::atom(Atom::Name(text.to_owned())),
    }
}

fn sum_of(d: &Dim) -> Option<Sum> {
    match d {
        Dim::Known(n) => i64::try_from(*n).ok().map(Sum::constant),
        // Some exporters write a question mark where they know no name.
        Dim::Symbol(s) if &**s != "?" => Some(parse(s)),
        Dim::Symbol(_) | Dim::Unknown => None,
    }
}

fn dim_of(s: Option<Sum>) -> Dim {
    match s {
        None => Dim::Unknown,
        Some(s) => match s.as_constant() {
            Some(n) => of_int(n),
            None => Dim::Symbol(Arc::from(s.to_string())),
        },
    }
}

/// An integer as a dimension; a negative one is a symbol that prints as the number.
#[must_use]
pub fn of_int(n: i64) -> Dim {
    match usize::try_from(n) {
        Ok(n) => Dim::Known(n),
        Err(_) => Dim::Symbol(Arc::from(n.to_string())),
    }
}

/// The integer, negative ones included; `None` when it is not fixed.
#[must_use]
pub fn constant(d: &Dim) -> Option<i64> {
    match d {
        Dim::Known(n) => i64::try_from(*n).ok(),
        Dim::Symbol(s) => s.parse().ok(),
        Dim::Unknown => None,
    }
}

/// The dimension as a size of a shape: a negative constant is none, so nothing is known.
#[must_use]
pub fn as_size(d: &Dim) -> Dim {
    if d.known().is_none() && constant(d).is_some() { Dim::Unknown } else { d.clone() }
}

/// `a + b`.
#[must_use]
pub fn add(a: &Dim, b: &Dim) -> Dim {
    if let (Dim::Known(x), Dim::Known(y)) = (a, b) {
        return x.checked_add(*y).map_or(Dim::Unknown, Dim::Known);
    }
    dim_of(sum_of(a).zip(sum_of(b)).and_then(|(a, b)| a.plus(&b, 1)))
}

/// `a - b`.
#[must_use]
pub fn sub(a: &Dim, b: &Dim) -> Dim {
    dim_of(sum_of(a).zip(sum_of(b)).and_then(|(a, b)| a.plus(&b, -1)))
}

/// `a * b`; 0 when one is 0, whatever the other.
#[must_use]
pub fn mul(a: &Dim, b: &Dim) -> Dim {
    if let (Dim::Known(x), Dim::Known(y)) = (a, b) {
        return x.checked_mul(*y).map_or(Dim::Unknown, Dim::Known);
    }
    if a.known() == Some(0) || b.known() == Some(0) {
        return Dim::Known(0);
    }
    dim_of(sum_of(a).zip(sum_of(b)).and_then(|(a, b)| a.times(&b)))
}

/// The floor of `a / b`; unknown when `b` is 0.
#[must_use]
pub fn floor_div(a: &Dim, b: &Dim) -> Dim {
    dim_of(sum_of(a).zip(sum_of(b)).and_then(|(a, b)| if b.0.is_empty() { None } else { a.over(&b) }))
}

/// The product of all; 1 for none.
#[must_use]
pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    dims.into_iter().fold(Dim::Known(1), |n, d| mul(&n, d))
}

/// Whether both are certainly the same number.
#[must_use]
pub fn is_same(a: &Dim, b: &Dim) -> bool {
    match (sum_of(a), sum_of(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// The smallest value that an expression over sizes can have, as far as that is easily seen.
#[must_use]
pub fn lower_bound(d: &Dim) -> Option<i64> {
    sum_of(d)?.lower_bound()
}

/// The value of an expression where the names have these sizes; `None` where one has none.
#[must_use]
pub fn evaluate(d: &Dim, sizes: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
    sum_of(d)?.evaluate(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(t: &str) -> Dim {
        Dim::Symbol(Arc::from(t))
    }

    #[test]
    fn prints_canonically_and_reads_its_own_output() {
        let n = s("N");
        let two = Dim::Known(2);
        assert_eq!(add(&mul(&two, &n), &Dim::Known(1)), s("2*N + 1"));
        assert_eq!(add(&Dim::Known(1), &mul(&n, &two)), s("2*N + 1"));
        assert_eq!(sub(&s("2*N + 1"), &s("N")), s("N + 1"));
        assert_eq!(sub(&s("N"), &s("N")), Dim::Known(0));
        assert_eq!(sub(&Dim::Known(1), &s("N")), s("-N + 1"));
        assert_eq!(mul(&s("N + 1"), &s("M - 1")), s("M*N + M - N - 1"));
        assert_eq!(of_int(-1), s("-1"));
        assert_eq!(constant(&s("-1")), Some(-1));
        assert_eq!(add(&s("-1"), &Dim::Known(3)), Dim::Known(2));
        assert_eq!(mul(&Dim::Unknown, &Dim::Known(0)), Dim::Known(0));
        assert_eq!(add(&Dim::Unknown, &Dim::Known(0)), Dim::Unknown);
        for text in ["floor((H - 1)/2) + 1", "2*N + 1", "M*N - 3", "floor(H/(2*W))", "3*floor(H/2)"] {
            assert_eq!(add(&s(text), &Dim::Known(0)), s(text));
        }
    }

    #[test]
    fn divisions_simplify() {
        let two = Dim::Known(2);
        assert_eq!(floor_div(&s("H"), &two), s("floor(H/2)"));
        assert_eq!(floor_div(&s("6*H + 4"), &two), s("3*H + 2"));
        assert_eq!(floor_div(&s("4*H + 3"), &two), s("2*H + 1"));
        assert_eq!(floor_div(&s("floor(H/2)"), &two), s("floor(H/4)"));
        assert_eq!(floor_div(&s("floor((H + 1)/2) + 1"), &two), s("floor((H + 3)/4)"));
        assert_eq!(floor_div(&s("C*H*W"), &s("C*W")), s("H"));
        assert_eq!(floor_div(&s("H // 2"), &two), s("floor(H/4)"));
        assert_eq!(floor_div(&Dim::Known(7), &two), Dim::Known(3));
        assert_eq!(floor_div(&s("H"), &Dim::Known(0)), Dim::Unknown);
    }

    #[test]
    fn expressions_have_bounds_and_values() {
        assert_eq!(lower_bound(&s("2*N + 1")), Some(1));
        assert_eq!(lower_bound(&s("N - 1")), Some(-1));
        assert_eq!(lower_bound(&s("floor((H - 1)/2) + 1")), Some(0));
        assert_eq!(lower_bound(&s("M - N")), None);
        assert_eq!(lower_bound(&s("floor(H/W)")), None);
        assert_eq!(lower_bound(&Dim::Unknown), None);
        let sizes = |name: &str| match name {
            "H" => Some(8),
            "W" => Some(3),
            _ => None,
        };
        assert_eq!(evaluate(&s("floor((H - 1)/2) + 2*W"), &sizes), Some(9));
        assert_eq!(evaluate(&s("H*W - N"), &sizes), None);
        assert_eq!(evaluate(&Dim::Known(7), &sizes), Some(7));
    }

    #[test]
    fn strange_names_stay_names() {
        assert_eq!(mul(&s("batch size"), &Dim::Known(1)), s("batch size"));
        assert_eq!(mul(&s("a/b"), &Dim::Known(2)), s("2*a/b"));
        assert!(is_same(&s("N + 1"), &s("1+N")));
        assert!(!is_same(&Dim::Unknown, &Dim::Unknown));
        assert!(!is_same(&s("?"), &s("?")));
        assert_eq!(add(&s("?"), &Dim::Known(0)), Dim::Unknown);
    }
}
