//! Calibrators against independent references, and the independence of results from order and splitting.

use super::histogram::{Histogram, MAX_BINS};
use super::*;
use crate::tensor::affine::{fake_one, quantize_one};

/// `n` numbers of a bell curve (sum of twelve uniform numbers), from a fixed sequence.
fn bell(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut unit = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..n).map(|_| (0..12).map(|_| unit()).sum::<f32>() - 6.0).collect()
}

fn method(name: &str, percentile: f64) -> Method {
    Method { calibrator: find(name).unwrap(), settings: Settings { percentile, bits: 8 } }
}

fn track(method: &Method, values: &[f32]) -> Tracker {
    let mut t = method.tracker();
    t.see(values, &[values.len()], 0);
    t
}

fn histogram(values: &[f32]) -> Histogram {
    let mut h = Histogram::default();
    let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
    h.observe(&Batch { values, min, max, sample: 0, weights: None });
    h
}

#[test]
fn names_and_aliases() {
    for (name, found) in [
        ("min-max", "min-max"),
        ("minmax", "min-max"),
        ("MinMax", "min-max"),
        ("max", "min-max"),
        ("kl", "entropy"),
        ("Entropy", "entropy"),
        ("moving_average", "moving-average"),
    ] {
        assert_eq!(find(name).map(|c| c.name), Some(found));
    }
    assert!(find("nope").is_none());
    let mut names: Vec<String> =
        ALL.iter().flat_map(|c| c.aliases.iter().chain([&c.name])).map(|n| n.replace('-', "")).collect();
    names.sort();
    let n = names.len();
    names.dedup();
    assert_eq!(names.len(), n, "a name means two calibrators");
}

#[test]
fn results_do_not_depend_on_order_or_splitting() {
    let mut values = bell(20_000, 1);
    values.extend([250.0, -3.0e-20, 0.0, 0.0]);
    for c in ALL {
        let m = method(c.name, 99.9);
        let mut whole = m.tracker();
        let chunks: Vec<(u64, &[f32])> = (0..).zip(values.chunks(700)).collect();
        let see = |t: &mut Tracker, &(i, part): &(u64, &[f32])| t.see(part, &[part.len()], i);
        chunks.iter().for_each(|part| see(&mut whole, part));
        for n_parts in [1, 2, 5] {
            let mut parts = chunks.chunks(chunks.len().div_ceil(n_parts)).map(|part| {
                let mut t = m.tracker();
                part.iter().for_each(|part| see(&mut t, part));
                t
            });
            let mut merged = parts.next().unwrap();
            parts.for_each(|p| merged.merge(&p).unwrap());
            assert_eq!(merged.save(), whole.save(), "{} in {n_parts} parts", c.name);
            assert_eq!(merged.range(), whole.range());
        }
        // Moving averages as well, since they go by the number of the sample.
        let mut reversed = m.tracker();
        chunks.iter().rev().for_each(|part| see(&mut reversed, part));
        assert_eq!(reversed.save(), whole.save(), "{} backwards", c.name);
    }
}

#[test]
fn histogram_counts_what_is_there() {
    for values in [
        bell(50_000, 2),
        vec![0.0; 9000],
        vec![1.0, 1.0 + f32::EPSILON],
        vec![-1e30, 1e30, 0.0],
        vec![1e-40, -1e-40],
        vec![1e6, 1e6 + 0.5],
        vec![f32::MAX, f32::MIN],
    ] {
        let h = histogram(&values);
        assert_eq!(h.total(), values.len() as u64);
        let width = h.width();
        assert!(h.bins().len() <= MAX_BINS);
        for (low, count) in h.bins() {
            let expected = values.iter().filter(|&&x| (low..low + width).contains(&f64::from(x))).count();
            assert_eq!(count, expected as u64, "bin at {low} of width {width}");
        }
        let absolute: u64 = h.absolute().iter().sum();
        assert_eq!(absolute, h.total());
    }
    // Never fewer than half of the bins between the extremes, unless floats are coarser than that.
    assert!(histogram(&bell(50_000, 3)).bins().len() > MAX_BINS / 2);
}

#[test]
fn percentile_against_sorted_values() {
    let mut values = bell(100_000, 4);
    values.push(1000.0);
    for p in [90.0, 99.0, 99.9] {
        let (low, high) = track(&method("percentile", p), &values).range().unwrap();
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        let cut = ((100.0 - p) / 200.0 * sorted.len() as f64).floor() as usize;
        // The outlier makes the bins wide: 1006 / 4096 at least.
        let width = histogram(&values).width() as f32;
        let (expected_low, expected_high) = (sorted[cut], sorted[sorted.len() - 1 - cut]);
        assert!(low <= expected_low && expected_low - low <= width, "{p}: {low} for {expected_low}");
        assert!(high >= expected_high && high - expected_high <= width, "{p}: {high} for {expected_high}");
    }
    let whole = track(&method("percentile", 100.0), &values).range().unwrap();
    assert_eq!(whole.1, 1000.0);
    // Nothing is cut off a side that is all zeros.
    let relu: Vec<f32> = bell(10_000, 5).iter().map(|x| x.max(0.0)).collect();
    assert_eq!(track(&method("percentile", 99.0), &relu).range().unwrap().0, 0.0);
}

/// The published procedure word by word: quantize, expand, compare; no running sums.
fn threshold_by_the_book(counts: &[u64], levels: usize) -> usize {
    let mut best = (f64::INFINITY, counts.len());
    for bins in levels..=counts.len() {
        let mut reference: Vec<f64> = counts[..bins].iter().map(|&c| c as f64).collect();
        reference[bins - 1] += counts[bins..].iter().sum::<u64>() as f64;
        let mut candidate = vec![0.0; bins];
        for level in 0..levels {
            let range = level * bins / levels..(level + 1) * bins / levels;
            let part = &counts[range.clone()];
            let filled = part.iter().filter(|&&c| c > 0).count();
            for i in range {
                if counts[i] > 0 {
                    candidate[i] = part.iter().sum::<u64>() as f64 / filled as f64;
                }
            }
        }
        let (p_sum, q_sum): (f64, f64) = (reference.iter().sum(), candidate.iter().sum());
        let divergence: f64 = reference
            .iter()
            .zip(&candidate)
            .filter(|(p, _)| **p > 0.0)
            .map(|(p, q)| p / p_sum * ((p / p_sum) / (q / q_sum)).ln())
            .sum();
        if divergence < best.0 - 1e-12 {
            best = (divergence, bins);
        }
    }
    best.1
}

#[test]
fn entropy_follows_the_published_procedure() {
    for (seed, outliers) in [(6, 0), (7, 1), (8, 30)] {
        let mut values = bell(30_000, seed);
        values.extend((0..outliers).map(|i| 20.0 + i as f32));
        // Coarser than the histogram, for the sake of time.
        let mut counts = vec![0u64; 700];
        for x in &values {
            counts[((x.abs() * 10.0) as usize).min(699)] += 1;
        }
        assert_eq!(super::entropy::threshold(&counts, 64), threshold_by_the_book(&counts, 64), "seed {seed}");
    }
}

#[test]
fn entropy_clips_an_outlier_and_nothing_else() {
    let mut values = bell(200_000, 9);
    let (low, high) = track(&method("entropy", 0.0), &values).range().unwrap();
    assert!(low < -3.0 && high > 3.0, "[{low}, {high}]");
    values.push(60.0);
    let (low, high) = track(&method("entropy", 0.0), &values).range().unwrap();
    assert!(low < -2.5 && (2.5..15.0).contains(&high), "[{low}, {high}]");
    assert_eq!(track(&method("min-max", 0.0), &values).range().unwrap().1, 60.0);
    // Behind a Relu, with half of the values zero.
    let relu: Vec<f32> = values.iter().map(|x| x.max(0.0)).collect();
    let (low, high) = track(&method("entropy", 0.0), &relu).range().unwrap();
    assert!(low == 0.0 && (2.5..15.0).contains(&high), "[{low}, {high}]");
}

fn square_error(values: &[f32], (low, high): Range) -> f64 {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = (high - low) / 255.0;
    let zero_point = quantize_one(-low, scale, 0, 0, 255);
    values.iter().map(|&x| f64::from(x - fake_one(x, scale, zero_point, 0, 255)).powi(2)).sum()
}

#[test]
fn mse_is_as_good_as_brute_force() {
    let one_sided: Vec<f32> = bell(3000, 10).iter().map(|x| x.max(0.0)).chain([40.0]).collect();
    let two_sided: Vec<f32> = bell(3000, 11).into_iter().chain([-25.0, 9.0]).collect();
    for values in [one_sided, two_sided, bell(3000, 12)] {
        let (min, max) = values.iter().fold((0.0f32, 0.0f32), |(a, b), &x| (a.min(x), b.max(x)));
        let mut least = f64::INFINITY;
        for i in 1..=150 {
            for j in 1..=150 {
                let range = (min * i as f32 / 150.0, max * j as f32 / 150.0);
                least = least.min(square_error(&values, range));
            }
        }
        let found = track(&method("mse", 0.0), &values).range().unwrap();
        let e = square_error(&values, found);
        assert!(e <= least * 1.05, "{found:?} has an error of {e}, {least} is possible");
    }
    let bell = bell(100_000, 13);
    let outlier: Vec<f32> = bell.iter().copied().chain([500.0]).collect();
    let (_, high) = track(&method("mse", 0.0), &outlier).range().unwrap();
    assert!(high < 500.0, "{high}: a thousandfold outlier is worth clipping");
}

#[test]
fn auto_clips_what_no_reader_looks_at() {
    // Channel 0 carries an outlier.
    let mut values = bell(32_000, 14);
    values[17] = 400.0;
    let m = Method::default();
    let range = |relative: Option<[f64; 4]>, shape: &[usize], axis| {
        let mut t = m.tracker().weighted(relative.map(|r| Importance::new(axis, &r)));
        t.see(&values, shape, 0);
        t.range().unwrap()
    };
    let convolved = |relative| range(Some(relative), &[1, 4, 100, 80], 1).1;
    assert_eq!(convolved([1.0, 1.0, 1.0, 1.0]), range(None, &[32_000], 0).1);
    assert!((200.0..350.0).contains(&convolved([0.1, 1.0, 1.0, 1.0])), "something depends on it");
    assert!(convolved([0.0001, 1.0, 1.0, 1.0]) < 20.0, "little depends on it");
    assert_eq!(convolved([1.0, 0.0001, 0.0001, 0.0001]), 400.0, "all depends on it");
    // The same channels last: value 17 is in channel 1.
    let multiplied = |relative| range(Some(relative), &[8_000, 4], -1).1;
    assert!(multiplied([1.0, 0.0001, 1.0, 1.0]) < 20.0);
    assert_eq!(multiplied([0.0001, 1.0, 0.0001, 0.0001]), 400.0);
    // Another number of channels than the weights have: they count alike.
    assert_eq!(range(Some([1.0, 0.0001, 1.0, 1.0]), &[4_000, 8], -1), range(None, &[32_000], 0));
    // Nothing to gain: both ends are kept exactly.
    let even: Vec<f32> = (0..10_000).map(|i| i as f32 * 0.37 - 900.0).collect();
    assert_eq!(track(&m, &even).range(), Some((even[0], even[9999])));
}

#[test]
fn auto_sees_enough_of_large_tensors() {
    let m = Method::default();
    let mut values = bell(400_000, 16);
    let (mut whole, mut parts) = (m.tracker(), m.tracker());
    whole.see(&values, &[400_000], 0);
    values.chunks(20_000).for_each(|c| parts.see(c, &[c.len()], 0));
    let (a, b) = (whole.range().unwrap(), parts.range().unwrap());
    assert!((a.0 - b.0).abs() < 0.2 && (a.1 - b.1).abs() < 0.2, "{a:?}, all counted {b:?}");
    // Wherever an outlier is, it is seen: far too large to be clipped at all, or a hundredth of it.
    for at in [0, 511, 12_345, 200_001, 399_999] {
        let old = std::mem::replace(&mut values[at], 1e6);
        let high = track(&m, &values).range().unwrap().1;
        assert!(high > 1e5, "at {at}: {high}");
        values[at] = old;
    }
}

#[test]
fn weights_survive_values_that_are_not_finite() {
    let (m, mut values) = (Method::default(), bell(40_000, 15));
    let importance = Importance::new(-1, &[1.0, 2.0, 3.0, 4.0]);
    let mut clean = m.tracker().weighted(Some(importance.clone()));
    let mut masked = m.tracker().weighted(Some(importance));
    clean.see(&values[4..], &[9_999, 4], 0);
    values[..4].fill(f32::NEG_INFINITY);
    masked.see(&values, &[10_000, 4], 0);
    assert_eq!(masked.n_neg_inf, 4);
    assert_eq!(masked.save()["statistics"], clean.save()["statistics"]);
}

#[test]
fn moving_average_by_hand() {
    let m = method("moving-average", 0.0);
    let mut t = m.tracker();
    for (i, values) in (0..).zip([[-1.0f32, 2.0], [-3.0, 10.0], [0.0, 0.0]]) {
        t.see(&values, &[2], i);
    }
    let (mut low, mut high) = (-1.0f32, 2.0f32);
    for (a, b) in [(-3.0, 10.0), (0.0, 0.0)] {
        low = 0.99 * low + 0.01 * a;
        high = 0.99 * high + 0.01 * b;
    }
    let r = t.range().unwrap();
    assert!((r.0 - low).abs() < 1e-6 && (r.1 - high).abs() < 1e-6, "{r:?}");
}

#[test]
fn values_that_are_not_finite_are_counted() {
    for c in ALL {
        let m = method(c.name, 99.9);
        let mut t = m.tracker();
        t.see(&[1.0, f32::NAN, f32::NEG_INFINITY, -2.0, f32::INFINITY, f32::NEG_INFINITY], &[6], 0);
        assert_eq!((t.n, t.n_nan, t.n_inf, t.n_neg_inf), (6, 1, 1, 2), "{}", c.name);
        assert_eq!((t.min, t.max), (-2.0, 1.0));
        let (low, high) = t.range().unwrap();
        assert!((-2.0..=0.0).contains(&low) && (0.0..=1.0).contains(&high), "{}: [{low}, {high}]", c.name);
        let mut none = m.tracker();
        none.see(&[f32::NAN], &[1], 0);
        none.see(&[], &[0], 0);
        assert_eq!(none.range(), None);
    }
    // In any place of a long tensor, full vectors and the rest included.
    for at in 0..67 {
        let mut values = vec![0.5f32; 67];
        values[at] = f32::NEG_INFINITY;
        let t = track(&Method::default(), &values);
        assert_eq!((t.n_neg_inf, t.min, t.max), (1, 0.5, 0.5), "at {at}");
    }
}

#[test]
fn constant_tensors_have_a_range() {
    for c in ALL {
        for x in [0.0f32, 3.5, -1e-30, f32::MAX] {
            let (low, high) = track(&method(c.name, 99.9), &[x; 5000]).range().unwrap();
            assert!(low <= high && low.is_finite() && high.is_finite(), "{} of {x}: [{low}, {high}]", c.name);
            assert!(
                (low.min(0.0)..=high.max(0.0)).contains(&x) || ["mse", "auto"].contains(&c.name),
                "{} of {x}: [{low}, {high}]",
                c.name
            );
        }
    }
}

mod caches {
    use super::super::cache::{Cache, Entry, digest};
    use super::*;

    fn cache(name: &str, samples: &[&str], values: &[&[f32]]) -> Cache {
        let m = method(name, 99.0);
        let mut tracker = m.tracker();
        (0..).zip(values).for_each(|(i, v)| tracker.see(v, &[v.len()], i));
        Cache {
            method: m,
            model: digest(b"model"),
            samples: samples.iter().map(|s| (*s).to_owned()).collect(),
            tensors: [("x".to_owned(), Entry { tracker, edited: None })].into(),
        }
    }

    #[test]
    fn joined_parts_equal_one_run() {
        let (a, b) = (bell(5000, 20), bell(3000, 21).iter().map(|x| x * 3.0).collect::<Vec<_>>());
        for c in ALL {
            let whole = cache(c.name, &["1", "2"], &[&a, &b]);
            let mut parts = cache(c.name, &["1"], &[&a]);
            parts.merge(&Cache::from_json(&cache(c.name, &["2"], &[&b]).to_json()).unwrap()).unwrap();
            assert_eq!(parts.to_json(), whole.to_json(), "{}", c.name);
            assert_eq!(Cache::from_json(&whole.to_json()).unwrap().to_json(), whole.to_json());
        }
    }

    #[test]
    fn an_edited_range_is_obeyed() {
        let values = bell(1000, 22);
        let mut c = Cache::from_json(&cache("min-max", &["1"], &[&values]).to_json()).unwrap();
        assert!(c.tensors["x"].edited.is_none());
        let mut json: Value = serde_json::from_str(&c.to_json()).unwrap();
        json["tensors"]["x"]["range"] = serde_json::json!([-0.5, 0.5]);
        let edited = Cache::from_json(&json.to_string()).unwrap();
        assert_eq!(edited.tensors["x"].range(), Some((-0.5, 0.5)));
        c.samples = vec!["2".into()];
        c.merge(&edited).unwrap();
        assert_eq!(c.tensors["x"].range(), Some((-0.5, 0.5)));
    }

    #[test]
    fn a_cache_serves_its_model_method_and_samples_only() {
        let c = cache("entropy", &["1", "2"], &[&[1.0]]);
        let model = digest(b"model");
        let samples = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        c.check(&model, None, None).unwrap();
        c.check(&model, find("entropy"), Some(&samples(&["2", "1"]))).unwrap();
        let why = |e: Result<()>| e.unwrap_err().to_string();
        assert!(why(c.check("other", None, None)).contains("another model"));
        assert!(why(c.check(&model, find("mse"), None)).contains("method entropy, not mse"));
        assert!(why(c.check(&model, None, Some(&samples(&["1", "3"])))).contains("1 of the 2 given"));
        let foreign = Cache::from_text("TRT-8601-EntropyCalibration2\nx: 3f800000\n").unwrap();
        foreign.check("any", None, Some(&samples(&["1"]))).unwrap();
        assert_eq!(foreign.tensors["x"].range(), Some((-127.0, 127.0)));
    }

    #[test]
    fn wrong_caches_say_what_is_wrong() {
        let good = cache("percentile", &["1"], &[&[1.0, 2.0]]).to_json();
        let edited = |path: &[&str], value: Value| {
            let mut json: Value = serde_json::from_str(&good).unwrap();
            *path.iter().fold(&mut json, |v, key| &mut v[*key]) = value;
            format!("{:#}", Cache::from_json(&json.to_string()).map(|_| ()).unwrap_err())
        };
        assert!(edited(&["format"], "x".into()).contains("no calibration cache"));
        assert!(edited(&["version"], 2.into()).contains("version 2"));
        assert!(edited(&["method"], "x".into()).contains("unknown method \"x\""));
        assert!(edited(&["tensors", "x", "min"], 5.into()).contains("tensor \"x\": [5, 2] is no range"));
        assert!(edited(&["tensors", "x", "range"], serde_json::json!([2, 1])).contains("\"range\""));
        assert!(edited(&["tensors", "x", "statistics", "counts"], 1.into()).contains("\"counts\" is no list"));
        assert!(Cache::from_json("{").is_err());
        let merge = |a: &str, b: Cache| format!("{}", Cache::from_json(a).unwrap().merge(&b).unwrap_err());
        assert!(merge(&good, cache("percentile", &["1"], &[])).contains("count twice"));
        assert!(merge(&good, cache("entropy", &["2"], &[])).contains("different methods"));
        assert!(merge(&good, Cache { model: "other".into(), ..cache("percentile", &["2"], &[]) }).contains("models"));
    }
}
