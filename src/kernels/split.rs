//! Splitting work over threads: tasks that write disjoint parts of one output.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::error::Result;

/// Runs `task(0..n)`, on `threads` threads of rayon's current pool when there are several. The order of tasks is free:
/// they must not depend on each other.
///
/// Rayon sees the task as a trait object: its machinery is compiled once instead of for every kernel.
pub fn for_each(threads: usize, n: usize, task: impl Fn(usize) + Send + Sync) {
    if threads > 1 && n > 1 {
        in_parallel(n, &task);
    } else {
        (0..n).for_each(task);
    }
}

fn in_parallel(n: usize, task: &(dyn Fn(usize) + Send + Sync)) {
    (0..n).into_par_iter().for_each(task);
}

/// What `task(0..n)` give, in their order, from all threads of rayon's current pool.
pub fn map<T: Send>(n: usize, task: impl Fn(usize) -> T + Send + Sync) -> Vec<T> {
    let mut done: Vec<Option<T>> = (0..n).map(|_| None).collect();
    let slots = Slots::new(&mut done);
    in_parallel(n, &|i| slots.chunk(i, 1)[0] = Some(task(i)));
    done.into_iter().flatten().collect()
}

/// As [`map`], for tasks that take their item with them.
pub fn map_into<I: Send, T: Send>(items: Vec<I>, task: impl Fn(I) -> T + Send + Sync) -> Vec<T> {
    let mut items: Vec<Option<I>> = items.into_iter().map(Some).collect();
    let (n, slots) = (items.len(), Slots::new(&mut items));
    map(n, |i| slots.chunk(i, 1)[0].take().map(&task)).into_iter().flatten().collect()
}

/// As [`map`], for tasks that can fail: after a failure no further one starts.
///
/// # Errors
/// That of the first task that failed.
pub fn try_map<T: Send>(n: usize, task: impl Fn(usize) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
    let failed = AtomicBool::new(false);
    let done = map(n, |i| {
        if failed.load(Ordering::Relaxed) {
            return None;
        }
        let result = task(i);
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
        Some(result)
    });
    done.into_iter().flatten().collect()
}

/// Runs `task(0..n)` on all threads of rayon's current pool, each thread taking the next number: what is merged in the
/// order of the numbers never waits for more than a few. After a failure no further task starts.
///
/// # Errors
/// That of the first task that failed.
pub fn try_in_order(n: usize, task: impl Fn(usize) -> Result<()> + Send + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let worker = |_| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                return Ok(());
            }
            task(i).inspect_err(|_| next.store(n, Ordering::Relaxed))?;
        }
    };
    try_map(rayon::current_num_threads().min(n), worker).map(drop)
}

/// Runs `task(i, chunk)` for the chunks of `len` elements of a slice (the last may be shorter), on several threads when
/// there are.
pub fn for_each_chunk<T: Send>(threads: usize, v: &mut [T], len: usize, task: &(dyn Fn(usize, &mut [T]) + Sync)) {
    let (total, len) = (v.len(), len.max(1));
    let slots = Slots::new(v);
    for_each(threads, total.div_ceil(len), |i| {
        let start = i * len;
        // SAFETY: the chunks of different numbers do not overlap, and each number is one task.
        let chunk = unsafe { slots.part(start, len.min(total - start)) };
        task(i, chunk);
    });
}

/// A slice that tasks write disjoint parts of.
#[derive(Clone, Copy)]
pub struct Slots<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for an exclusive borrow of a slice; `T: Send` lets other threads write the elements.
unsafe impl<T: Send> Send for Slots<'_, T> {}
// SAFETY: shared use hands out disjoint parts only, which the callers of `part` promise.
unsafe impl<T: Send> Sync for Slots<'_, T> {}

impl<'a, T> Slots<'a, T> {
    /// The parts of a slice.
    pub fn new(slice: &'a mut [T]) -> Self {
        Slots { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// A part of the slice for writing.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    ///
    /// # Panics
    /// The part lies outside the slice.
    #[must_use]
    #[allow(clippy::mut_from_ref, reason = "the callers promise that parts do not overlap")]
    pub unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {} elements", self.len);
        // SAFETY: inside the borrowed slice by the check above; disjoint from other parts by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Chunk `i` of the chunks of `len` elements, for tasks `0..n` of [`for_each`] that take one chunk each.
    ///
    /// # Panics
    /// The chunk lies outside the slice.
    #[must_use]
    #[allow(clippy::mut_from_ref, reason = "tasks have different numbers")]
    pub(crate) fn chunk(&self, i: usize, len: usize) -> &'a mut [T] {
        // SAFETY: inside the crate every task takes the chunk of its own number, once.
        unsafe { self.part(i * len, len) }
    }

    /// The address of an element, for tiles that write rows with a stride.
    #[must_use]
    pub fn at(&self, i: usize) -> *mut T {
        debug_assert!(i <= self.len);
        self.start.wrapping_add(i)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::error::bail;

    #[test]
    fn results_are_in_order() {
        assert_eq!(map(1000, |i| i * i), (0..1000).map(|i| i * i).collect::<Vec<_>>());
        assert_eq!(map_into(vec!["a".to_owned(), "b".to_owned()], |s| s + "!"), ["a!", "b!"]);
        assert_eq!(try_map(3, Ok).unwrap(), [0, 1, 2]);
        assert!(map(0, |i| i).is_empty());
    }

    #[test]
    fn the_first_failure_is_told() {
        let odd = |i: usize| if i % 2 == 1 { bail!("{i}") } else { Ok(()) };
        assert_eq!(try_map(2, odd).unwrap_err().to_string(), "1");
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| try_in_order(10, odd)).unwrap_err().to_string(), "1");
    }

    #[test]
    fn every_number_is_run_once_until_a_failure() {
        let seen = Mutex::new(Vec::new());
        try_in_order(100, |i| {
            seen.lock().unwrap().push(i);
            Ok(())
        })
        .unwrap();
        let mut all = seen.into_inner().unwrap();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        let n = AtomicUsize::new(0);
        let fail = |_| {
            n.fetch_add(1, Ordering::Relaxed);
            bail!("no")
        };
        assert!(try_in_order(1000, fail).is_err() && n.into_inner() <= rayon::current_num_threads());
    }
}
