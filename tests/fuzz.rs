//! Damaged and hostile bytes: an error or a sound model, never a panic.
//!
//! The seeds are fixed, so a failure repeats; it prints the mutation that caused it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use onnx_quant::ir::verify::verify;
use onnx_quant::ir::{Attr, Def};
use onnx_quant::onnx;

/// A small generator of pseudo-random numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n.max(1)
    }
}

/// Small models: one with every feature, and ordinary ones.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut paths: Vec<_> = ["read", "models"]
        .iter()
        .flat_map(|dir| std::fs::read_dir(root.join(dir)).unwrap())
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx") && p.metadata().unwrap().len() < 20_000)
        .collect();
    paths.sort();
    assert!(paths.len() > 3, "{paths:?}");
    paths.into_iter().map(|p| (p.file_name().unwrap().display().to_string(), std::fs::read(&p).unwrap())).collect()
}

/// Reads the bytes and touches all that was read. Whether they are a model.
fn exercise(bytes: &[u8]) -> bool {
    let model = match onnx::read_bytes(Bytes::copy_from_slice(bytes), None) {
        Ok(model) => model,
        Err(e) => {
            let text = format!("{e:#}");
            assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
            return false;
        }
    };
    assert_eq!(verify(&model), Vec::<String>::new());
    for id in model.graph_ids() {
        let g = model.graph(id);
        for v in g.values() {
            if let Def::Initializer(t) | Def::Overridable(t) = &g.value(v).def {
                // A string that is not UTF-8, an index out of range: errors, and no panic.
                let _ = t.get();
            }
        }
        for n in g.nodes() {
            for attr in g.node(n).attrs.iter() {
                if let Attr::Tensor(t) = &attr.value {
                    let _ = t.get();
                }
            }
        }
    }
    assert!(onnx::to_bytes(&model).unwrap() == bytes, "an unchanged model is written as it was read");
    onnx::to_canonical_bytes(&model).unwrap();
    true
}

fn check(what: &str, bytes: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| exercise(bytes))).unwrap_or_else(|_| panic!("{what}: {bytes:02x?}"))
}

#[test]
fn truncated_at_every_byte() {
    for (name, seed) in seeds() {
        let step = 1 + seed.len() / 5000;
        let mut models = 0;
        for end in (0..seed.len()).step_by(step) {
            models += usize::from(check(&format!("{name} cut at {end}"), &seed[..end]));
        }
        assert!(models * 3 < seed.len(), "{name}: {models} of {} prefixes are models", seed.len());
        assert!(check(&name, &seed));
    }
}

#[test]
fn mutated() {
    let seeds = seeds();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut models, rounds) = (0, 12_000);
    for round in 0..rounds {
        let (name, seed) = &seeds[round % seeds.len()];
        let mut bytes = seed.clone();
        for _ in 0..=random.below(3) {
            mutate(&mut bytes, &seeds[random.below(seeds.len())].1, &mut random);
        }
        models += usize::from(check(&format!("{name} round {round}"), &bytes));
    }
    println!("{models} of {rounds} mutants are models");
    assert!(models > rounds / 50 && models < rounds, "{models} of {rounds} mutants are models");
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let at = random.below(bytes.len());
    let n = 1 + random.below(24.min(bytes.len() - at));
    match random.below(7) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        // Lengths and numbers at their limits.
        2 => bytes[at] = [0, 0x7f, 0x80, 0xff][random.below(4)],
        3 => drop(bytes.drain(at..at + n)),
        4 => {
            let piece = bytes[at..at + n].to_vec();
            bytes.splice(at..at, piece);
        }
        5 => {
            let from = random.below(other.len());
            let piece = other[from..(from + n).min(other.len())].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).for_each(drop),
    }
}

#[test]
fn noise() {
    let mut random = Random(42);
    for round in 0..3000 {
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        check(&format!("noise {round}"), &bytes);
    }
}
