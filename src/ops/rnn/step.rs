//! The steps of one direction of a recurrent layer.

use super::cell::{Direction, Kind, Real, Weights};

/// The state of one direction, and where its outputs go.
pub(super) struct State<'a, T> {
    /// `[N, H]`: initial values before, final ones after.
    pub h: &'a mut [T],
    /// LSTM: `[N, H]`; empty otherwise.
    pub c: &'a mut [T],
    /// Outputs of all steps and directions.
    pub y: &'a mut [T],
    /// Where this direction's outputs of the first step lie, and how far apart steps are.
    pub y_offset: usize,
    pub y_step: usize,
}

/// One direction over all steps.
pub(super) struct Run<'a, T: Real> {
    pub cell: &'a Direction<T>,
    pub weights: &'a Weights<T>,
    /// Steps of each sequence.
    pub lengths: &'a [usize],
    pub time: usize,
    pub batch: usize,
    pub threads: usize,
    /// Rounds the state before its products, as a quantized layer does.
    pub requantize: Option<fn(&mut [T])>,
}

impl<T: Real> Run<'_, T> {
    /// Runs over `x` `[T, N, I]`.
    pub(super) fn all(&self, x: &[T], peephole: Option<&[T]>, state: &mut State<'_, T>) {
        let (w, hidden) = (self.weights, self.weights.hidden);
        let gates = w.kind.n_gates() * hidden;
        let mut xw = vec![T::zero(); self.time * self.batch * gates];
        T::product(self.threads, self.time * self.batch, x, &w.w, w.bias.as_deref(), &mut xw);
        let recurrent = if w.kind == Kind::Gru { 2 * hidden } else { gates };
        let mut hr = vec![T::zero(); self.batch * recurrent];
        let mut scratch =
            Scratch { gate: vec![T::zero(); self.batch * hidden], product: vec![T::zero(); self.batch * hidden] };
        for s in 0..self.time {
            if let Some(round) = self.requantize {
                scratch.product.copy_from_slice(state.h);
                round(&mut scratch.product);
                T::product(self.threads, self.batch, &scratch.product, &w.r, None, &mut hr);
            } else {
                T::product(self.threads, self.batch, state.h, &w.r, None, &mut hr);
            }
            // GRU: the product that its last gate needs comes before or after the reset gate.
            if w.kind == Kind::Gru {
                self.gru_gates(s, &mut xw, &hr, state, &mut scratch);
            }
            for b in 0..self.batch {
                let Some(t) = self.position(s, b) else { continue };
                let row = &mut xw[(t * self.batch + b) * gates..(t * self.batch + b + 1) * gates];
                let h = &mut state.h[b * hidden..(b + 1) * hidden];
                match w.kind {
                    Kind::Rnn => {
                        add(row, &hr[b * gates..(b + 1) * gates]);
                        self.cell.activate(0, row);
                        h.copy_from_slice(row);
                    }
                    Kind::Gru => {
                        let (z, n) = (&row[..hidden], &row[2 * hidden..]);
                        for (h, (&z, &n)) in h.iter_mut().zip(z.iter().zip(n)) {
                            *h = (T::one() - z) * n + z * *h;
                        }
                    }
                    Kind::Lstm => {
                        add(row, &hr[b * gates..(b + 1) * gates]);
                        self.lstm(row, h, &mut state.c[b * hidden..(b + 1) * hidden], peephole, &mut scratch.gate);
                    }
                }
                let to = state.y_offset + t * state.y_step + b * hidden;
                state.y[to..to + hidden].copy_from_slice(h);
            }
        }
    }

    /// The time that step `s` of sequence `b` handles; `None` when the sequence is over.
    fn position(&self, s: usize, b: usize) -> Option<usize> {
        let n = self.lengths[b];
        (s < n).then(|| if self.cell.reverse { n - 1 - s } else { s })
    }

    /// The gates z, r and h of all sequences, in place of the products with W.
    fn gru_gates(&self, s: usize, xw: &mut [T], hr: &[T], state: &State<'_, T>, scratch: &mut Scratch<T>) {
        let (w, hidden) = (self.weights, self.weights.hidden);
        let at = |t: usize, b: usize| (t * self.batch + b) * 3 * hidden;
        for b in 0..self.batch {
            let Some(t) = self.position(s, b) else { continue };
            let row = &mut xw[at(t, b)..][..2 * hidden];
            add(row, &hr[b * 2 * hidden..(b + 1) * 2 * hidden]);
            self.cell.activate(0, row);
        }
        let Some(r_h) = &w.r_h else { return };
        if !w.linear_before_reset {
            for b in 0..self.batch {
                let reset = self.position(s, b).map(|t| &xw[at(t, b) + hidden..][..hidden]);
                let to = &mut scratch.gate[b * hidden..(b + 1) * hidden];
                to.copy_from_slice(&state.h[b * hidden..(b + 1) * hidden]);
                if let Some(r) = reset {
                    to.iter_mut().zip(r).for_each(|(h, &r)| *h *= r);
                }
            }
            T::product(self.threads, self.batch, &scratch.gate, r_h, None, &mut scratch.product);
        } else {
            T::product(self.threads, self.batch, state.h, r_h, w.bias_h.as_deref(), &mut scratch.product);
        }
        for b in 0..self.batch {
            let Some(t) = self.position(s, b) else { continue };
            let (gates, n) = xw[at(t, b)..][..3 * hidden].split_at_mut(2 * hidden);
            let product = &scratch.product[b * hidden..(b + 1) * hidden];
            if w.linear_before_reset {
                for ((n, &p), &r) in n.iter_mut().zip(product).zip(&gates[hidden..]) {
                    *n += r * p;
                }
            } else {
                add(n, product);
            }
            self.cell.activate(1, n);
        }
    }

    /// One step of one sequence: `row` holds what goes into the gates i, o, f, c.
    fn lstm(&self, row: &mut [T], h: &mut [T], c: &mut [T], peephole: Option<&[T]>, scratch: &mut [T]) {
        let n = self.weights.hidden;
        let (i, rest) = row.split_at_mut(n);
        let (o, rest) = rest.split_at_mut(n);
        let (f, g) = rest.split_at_mut(n);
        if let Some(p) = peephole {
            mul_add(i, &p[..n], c);
            mul_add(f, &p[2 * n..], c);
        }
        self.cell.activate(0, i);
        if self.cell.input_forget {
            f.iter_mut().zip(&*i).for_each(|(f, &i)| *f = T::one() - i);
        } else {
            self.cell.activate(0, f);
        }
        self.cell.activate(1, g);
        for (((c, &f), &i), &g) in c.iter_mut().zip(&*f).zip(&*i).zip(&*g) {
            *c = f * *c + i * g;
        }
        if let Some(p) = peephole {
            mul_add(o, &p[n..2 * n], c);
        }
        self.cell.activate(0, o);
        let out = &mut scratch[..n];
        out.copy_from_slice(c);
        self.cell.activate(2, out);
        for ((h, &o), &c) in h.iter_mut().zip(&*o).zip(&*out) {
            *h = o * c;
        }
    }
}

/// Buffers of one step, `[N, H]` each.
struct Scratch<T> {
    gate: Vec<T>,
    product: Vec<T>,
}

fn add<T: Real>(x: &mut [T], y: &[T]) {
    x.iter_mut().zip(y).for_each(|(x, &y)| *x += y);
}

fn mul_add<T: Real>(x: &mut [T], p: &[T], c: &[T]) {
    for ((x, &p), &c) in x.iter_mut().zip(p).zip(c) {
        *x += p * c;
    }
}
