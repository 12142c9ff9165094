//! `Einsum` — sums of products by Einstein's notation.
//!
//! Spec: <https://onnx.ai/onnx/operators/onnx__Einsum.html> (opset 12)
//! Inputs: one or more of T, a rank for each term of `equation`. Output: of T. T: every number type.
//! Letters repeat within a term (a diagonal), `...` stands for broadcast dimensions, the output may be implicit.
//! Two operands at a time become batched matrix products.
//! Quantized: no; the notation has too many forms. Errors: a malformed equation; sizes that differ.

use std::collections::BTreeMap;

use super::elementwise::{infer_same_dtype, same_dtype};
use super::reverse::{Back, Gradients, Reverse};
use super::{Arity, Call, InferCtx, Item, OpDef, OpDomain, QuantRule};
use crate::error::{Result, anyhow, bail, ensure};
use crate::ir::Dim;
use crate::kernels::gemm::{Init, PackedB, gemm};
use crate::tensor::cast::cast;
use crate::tensor::{DType, Element, Tensor};

pub(super) const OPS: &[OpDef] = &[OpDef {
    name: "Einsum",
    domain: OpDomain::Onnx,
    since: 12,
    inputs: Arity::at_least(1),
    outputs: Arity::exactly(1),
    is_pure: true,
    infer,
    eval,
    quant: QuantRule::Keep { why: "has too many forms" },
}];

pub(super) const REVERSE: &[Reverse] = &[Reverse::of("Einsum", reverse)];

/// The gradient of an operand is the product of the output's gradient and the other operands, summed over what the
/// operand does not have. Only where it has no dimension that nothing else has, and no diagonal.
fn reverse(b: &Back<'_>) -> Result<Gradients> {
    let text = b.attrs.str("equation").ok_or_else(|| anyhow!("attribute \"equation\" is missing"))?;
    let inputs = (0..b.inputs.len()).map(|i| b.input(i)).collect::<Result<Vec<_>>>()?;
    let equation = Equation::parse(text, &inputs.iter().map(|t| t.rank()).collect::<Vec<_>>())?;
    let Some(Some(g)) = b.gradients.first() else { bail!("the output has no gradient") };
    let one = |slot: usize| -> Result<Option<Tensor>> {
        if !b.wants(slot) {
            return Ok(None);
        }
        let others = || (0..inputs.len()).filter(|&i| i != slot);
        let mut terms = vec![equation.output.clone()];
        terms.extend(others().map(|i| equation.terms[i].clone()));
        let output = equation.terms[slot].clone();
        let is_covered = output.iter().enumerate().all(|(i, l)| !output[..i].contains(l) && terms.concat().contains(l));
        ensure!(is_covered, "there is no rule for the equation \"{text}\"");
        let operands: Vec<&Tensor> = std::iter::once(g).chain(others().map(|i| inputs[i])).collect();
        let product = |m, k, n, a: &[f32], x: &[f32], c: &mut [f32]| {
            gemm(b.threads, m, a, &PackedB::new(x, k, n, n, 1), Init::Zero, c);
        };
        let dx = run::<f32>(&Equation { terms, output }, &operands, &product, |a, b| a + b)?;
        ensure!(dx.shape() == inputs[slot].shape(), "there is no rule for broadcast operands");
        Ok(Some(dx))
    };
    (0..inputs.len()).map(one).collect()
}

/// A dimension's name: a letter, or one of the dimensions under `...`, counted from the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis(std::cmp::Reverse<usize>),
    Letter(char),
}

/// The labels of each operand and of the output.
struct Equation {
    terms: Vec<Vec<Label>>,
    output: Vec<Label>,
}

impl Equation {
    fn parse(text: &str, ranks: &[usize]) -> Result<Self> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match text.split_once("->") {
            Some((l, r)) => (l, Some(r)),
            None => (text.as_str(), None),
        };
        let given: Vec<&str> = left.split(',').collect();
        ensure!(given.len() == ranks.len(), "equation \"{text}\" has {} terms, expected {}", given.len(), ranks.len());
        let mut widest = 0;
        let mut terms = Vec::new();
        for (i, (term, &rank)) in given.iter().zip(ranks).enumerate() {
            let letters = term.replace("...", "").chars().count();
            let hidden = if term.contains("...") { rank.checked_sub(letters) } else { (letters == rank).then_some(0) };
            let hidden = hidden.ok_or_else(|| anyhow!("input {i} has rank {rank}, but its term is \"{term}\""))?;
            widest = widest.max(hidden);
            terms.push(labels(term, hidden)?);
        }
        let output = match right {
            Some(r) => labels(r, widest)?,
            None => {
                let mut count: BTreeMap<Label, usize> = BTreeMap::new();
                terms.iter().flatten().for_each(|l| *count.entry(*l).or_default() += 1);
                // Dimensions under `...` come first, then the letters that occur once, in order of the alphabet.
                count.into_iter().filter(|(l, n)| *n == 1 || matches!(l, Label::Ellipsis(_))).map(|(l, _)| l).collect()
            }
        };
        for (i, l) in output.iter().enumerate() {
            ensure!(!output[..i].contains(l), "equation \"{text}\" names a dimension twice in its output");
            ensure!(terms.iter().flatten().any(|t| t == l), "equation \"{text}\" has a letter only in its output");
        }
        Ok(Equation { terms, output })
    }
}

fn labels(term: &str, hidden: usize) -> Result<Vec<Label>> {
    let mut out = Vec::new();
    let (before, after) = term.split_once("...").map_or((term, None), |(b, a)| (b, Some(a)));
    let letters = |s: &str, out: &mut Vec<Label>| {
        s.chars().try_for_each(|c| {
            ensure!(c.is_ascii_alphabetic(), "term \"{term}\" has the character '{c}', expected letters");
            out.push(Label::Letter(c));
            Ok(())
        })
    };
    letters(before, &mut out)?;
    if let Some(after) = after {
        out.extend((0..hidden).rev().map(|i| Label::Ellipsis(std::cmp::Reverse(i))));
        letters(after, &mut out)?;
    }
    Ok(out)
}

fn infer(ctx: &mut InferCtx<'_>) -> Result<()> {
    let n = ctx.inputs.len();
    let dtype = infer_same_dtype(ctx, 0..n)?;
    let text = ctx.attrs.str("equation").ok_or_else(|| anyhow!("attribute \"equation\" is missing"))?;
    let shapes: Option<Vec<&[Dim]>> = (0..n).map(|i| ctx.shape(i)).collect();
    let mut out = None;
    if let Some(shapes) = shapes {
        let equation = Equation::parse(text, &shapes.iter().map(|s| s.len()).collect::<Vec<_>>())?;
        let mut sizes: BTreeMap<Label, Dim> = BTreeMap::new();
        for (l, d) in equation.terms.iter().flatten().zip(shapes.into_iter().flatten()) {
            match (sizes.get(l), d) {
                (Some(Dim::Known(a)), Dim::Known(b)) if a != b && *a != 1 && *b != 1 => {
                    bail!("equation \"{text}\" gives one dimension the sizes {a} and {b}")
                }
                (None | Some(Dim::Known(1) | Dim::Unknown), _) => drop(sizes.insert(*l, d.clone())),
                (Some(Dim::Symbol(_)), Dim::Known(k)) if *k != 1 => drop(sizes.insert(*l, d.clone())),
                _ => {}
            }
        }
        out = Some(equation.output.iter().map(|l| sizes.get(l).cloned().unwrap_or(Dim::Unknown)).collect());
    }
    ctx.set_tensor(0, dtype, out);
    Ok(())
}

fn eval(call: &mut Call<'_>) -> Result<Vec<Item>> {
    let dtype = same_dtype(call)?;
    let text = call.attrs.str("equation").ok_or_else(|| anyhow!("attribute \"equation\" is missing"))?;
    let inputs = (0..call.n_inputs()).map(|i| call.input(i)).collect::<Result<Vec<_>>>()?;
    let equation = Equation::parse(text, &inputs.iter().map(|t| t.rank()).collect::<Vec<_>>())?;
    let y = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => {
            let threads = call.threads;
            let product = |m, k, n, a: &[f32], b: &[f32], c: &mut [f32]| {
                gemm(threads, m, a, &PackedB::new(b, k, n, n, 1), Init::Zero, c);
            };
            run::<f32>(&equation, &inputs, &product, |a, b| a + b)?
        }
        DType::F64 => run::<f64>(&equation, &inputs, &plain(|s, a, b| s + a * b), |a, b| a + b)?,
        d if d.is_integer() => run::<i64>(
            &equation,
            &inputs,
            &plain(|s: i64, a: i64, b: i64| s.wrapping_add(a.wrapping_mul(b))),
            i64::wrapping_add,
        )?,
        d => bail!("input 0 has element type {d}, expected a number type"),
    };
    Ok(cast(&y, dtype, true)?.into())
}

/// A matrix product by `s = f(s, a, b)`.
fn plain<T: Copy + Default>(f: impl Fn(T, T, T) -> T) -> impl Fn(usize, usize, usize, &[T], &[T], &mut [T]) {
    move |m, k, n, a, b, c| {
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).fold(T::default(), |s, l| f(s, a[i * k + l], b[l * n + j]));
            }
        }
    }
}

/// An operand with each label once.
struct Term<T> {
    labels: Vec<Label>,
    shape: Vec<usize>,
    data: Vec<T>,
}

impl<T: Element + Copy> Term<T> {
    /// The elements in the order of `labels`, some of which may repeat in `from` (diagonals); others are summed over.
    fn gather(from: &[(Label, usize, usize)], data: &[T], labels: &[Label], add: impl Fn(T, T) -> T) -> Self {
        let find = |l: Label| {
            let same = from.iter().filter(|f| f.0 == l);
            same.fold((1, 0), |(_, stride), f| (f.1, stride + f.2))
        };
        let mut summed: Vec<Label> = Vec::new();
        for f in from {
            if !labels.contains(&f.0) && !summed.contains(&f.0) {
                summed.push(f.0);
            }
        }
        let kept: Vec<(usize, usize)> = labels.iter().map(|&l| find(l)).collect();
        let over: Vec<(usize, usize)> = summed.iter().map(|&l| find(l)).collect();
        let shape: Vec<usize> = kept.iter().map(|k| k.0).collect();
        let mut out = Vec::with_capacity(shape.iter().product());
        for_each_offset(&kept, |o| {
            let mut sum = T::default();
            let mut is_first = true;
            for_each_offset(&over, |i| {
                sum = if is_first { data[o + i] } else { add(sum, data[o + i]) };
                is_first = false;
            });
            out.push(sum);
        });
        Term { labels: labels.to_vec(), shape, data: out }
    }

    fn dims(&self) -> Vec<(Label, usize, usize)> {
        let strides = crate::tensor::broadcast::strides(&self.shape);
        self.labels.iter().zip(&self.shape).zip(&strides).map(|((&l, &n), &s)| (l, n, s)).collect()
    }

    fn ordered(&self, labels: &[Label], add: impl Fn(T, T) -> T) -> Term<T> {
        Term::gather(&self.dims(), &self.data, labels, add)
    }

    fn size(&self, labels: &[Label]) -> usize {
        labels.iter().map(|l| self.labels.iter().position(|x| x == l).map_or(1, |i| self.shape[i])).product()
    }
}

/// Calls `f` with the offset of each element of a box of (size, stride), in row-major order.
fn for_each_offset(dims: &[(usize, usize)], mut f: impl FnMut(usize)) {
    if dims.iter().any(|d| d.0 == 0) {
        return;
    }
    let mut index = vec![0; dims.len()];
    let mut offset = 0;
    loop {
        f(offset);
        let mut d = dims.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            index[d] += 1;
            offset += dims[d].1;
            if index[d] < dims[d].0 {
                break;
            }
            offset -= dims[d].0 * dims[d].1;
            index[d] = 0;
        }
    }
}

type Product<'a, T> = &'a dyn Fn(usize, usize, usize, &[T], &[T], &mut [T]);

fn run<T: Element + Copy>(
    equation: &Equation,
    inputs: &[&Tensor],
    product: Product<'_, T>,
    add: impl Fn(T, T) -> T + Copy,
) -> Result<Tensor> {
    let mut sizes: BTreeMap<Label, usize> = BTreeMap::new();
    for (i, (term, t)) in equation.terms.iter().zip(inputs).enumerate() {
        for (l, &n) in term.iter().zip(t.shape()) {
            let size = sizes.entry(*l).or_insert(n);
            ensure!(*size == n || *size == 1 || n == 1, "input {i} has a dimension of {n}, which is {size} elsewhere");
            if *size == 1 {
                *size = n;
            }
        }
    }
    let mut acc: Option<Term<T>> = None;
    for (i, (term, t)) in equation.terms.iter().zip(inputs).enumerate() {
        let wide = cast(t, T::DTYPE, true)?;
        let strides = crate::tensor::broadcast::strides(wide.shape());
        // A dimension of 1 that is larger elsewhere is broadcast: as if the operand did not have it.
        let dims: Vec<(Label, usize, usize)> = term
            .iter()
            .zip(wide.shape())
            .zip(&strides)
            .map(|((&l, &n), &s)| (l, n, s))
            .filter(|(l, n, _)| *n != 1 || sizes[l] == 1)
            .collect();
        let is_needed_later =
            |l: &Label| equation.output.contains(l) || equation.terms[i + 1..].iter().flatten().any(|x| x == l);
        // What only this operand has and nobody needs is summed at once.
        let mut own: Vec<Label> = Vec::new();
        for (l, ..) in &dims {
            let is_shared = acc.as_ref().is_some_and(|a| a.labels.contains(l));
            if !own.contains(l) && (is_shared || is_needed_later(l)) {
                own.push(*l);
            }
        }
        let next = Term::gather(&dims, wide.slice::<T>()?, &own, add);
        acc = Some(match acc {
            None => next,
            Some(a) => contract(&a, &next, is_needed_later, product, add),
        });
    }
    let Some(acc) = acc else { bail!("there is no input") };
    let out = acc.ordered(&equation.output, add);
    let shape: Vec<usize> = equation.output.iter().map(|l| sizes[l]).collect();
    Tensor::new(&shape, out.data)
}

/// The product of two operands, summed over what nobody needs afterwards.
fn contract<T: Element + Copy>(
    a: &Term<T>,
    b: &Term<T>,
    is_needed: impl Fn(&Label) -> bool,
    product: Product<'_, T>,
    add: impl Fn(T, T) -> T + Copy,
) -> Term<T> {
    let shared = |l: &&Label| b.labels.contains(l);
    let batch: Vec<Label> = a.labels.iter().filter(shared).filter(|l| is_needed(l)).copied().collect();
    let inner: Vec<Label> = a.labels.iter().filter(shared).filter(|l| !is_needed(l)).copied().collect();
    let rows: Vec<Label> = a.labels.iter().filter(|l| !b.labels.contains(l) && is_needed(l)).copied().collect();
    let columns: Vec<Label> = b.labels.iter().filter(|l| !a.labels.contains(l)).copied().collect();
    let (m, k, n) = (a.size(&rows), a.size(&inner), b.size(&columns));
    let labels = [batch.as_slice(), &rows, &columns].concat();
    let shape: Vec<usize> =
        labels.iter().map(|l| if a.labels.contains(l) { a.size(&[*l]) } else { b.size(&[*l]) }).collect();
    let mut data = vec![T::default(); shape.iter().product()];
    if !data.is_empty() && k > 0 {
        let a = a.ordered(&[batch.as_slice(), &rows, &inner].concat(), add);
        let b = b.ordered(&[batch.as_slice(), &inner, &columns].concat(), add);
        for ((a, b), c) in a.data.chunks_exact(m * k).zip(b.data.chunks_exact(k * n)).zip(data.chunks_exact_mut(m * n))
        {
            product(m, k, n, a, b, c);
        }
    }
    Term { labels, shape, data }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::Case;
    use crate::tensor::Tensor;

    fn x() -> Tensor {
        Tensor::of(&[2, 3], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])
    }

    fn case(equation: &str) -> Case {
        Case::new("Einsum", 12).attr("equation", equation)
    }

    #[test]
    fn one_operand() {
        case("ij->ji").input(x()).expect(&[Tensor::of(&[3, 2], vec![1.0f32, 4.0, 2.0, 5.0, 3.0, 6.0])]);
        case("ij -> i").input(x()).expect(&[Tensor::vector(vec![6.0f32, 15.0])]);
        case("ij->").input(x()).expect(&[Tensor::scalar(21.0f32)]);
        let square = Tensor::of(&[2, 2], vec![1i32, 2, 3, 4]);
        case("ii->i").input(square.clone()).expect(&[Tensor::vector(vec![1i32, 4])]);
        case("ii").input(square).expect(&[Tensor::scalar(5i32)]);
    }

    #[test]
    fn products() {
        let xt = Tensor::of(&[3, 2], vec![1.0f32, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let y = Tensor::of(&[2, 2], vec![14.0f32, 32.0, 32.0, 77.0]);
        case("ij,jk->ik").input(x()).input(xt.clone()).expect(&[y.clone()]);
        case("ij,jk").input(x()).input(xt.clone()).expect(&[y.clone()]);
        case("...j,jk->...k").input(x()).input(xt).expect(&[y]);
        let v = Tensor::vector(vec![1.0f64, 2.0]);
        case("i,j->ij").input(v.clone()).input(v.clone()).expect(&[Tensor::of(&[2, 2], vec![1.0f64, 2.0, 2.0, 4.0])]);
        case("i,i,i->").input(v.clone()).input(v.clone()).input(v).expect(&[Tensor::scalar(9.0f64)]);
        let b = Tensor::of(&[2, 1], vec![10.0f32, 100.0]);
        let y = Tensor::of(&[2, 3], vec![10.0f32, 20.0, 30.0, 400.0, 500.0, 600.0]);
        case("ij,ij->ij").input(x()).input(b).expect(&[y]);
    }

    #[test]
    fn malformed_equations() {
        case("ij->k").input(x()).fails("only in its output");
        case("ijk->i").input(x()).fails("input 0 has rank 2");
        case("ij,ij->ij").input(x()).fails("has 2 terms, expected 1");
        case("i1->i").input(x()).fails("character '1'");
        case("ij->ii").input(x()).fails("twice");
        case("ij,jk->ik").input(x()).input(x()).fails("a dimension of 2, which is 3 elsewhere");
        Case::new("Einsum", 12).input(x()).fails("\"equation\" is missing");
    }
}
