//! Splitting work over threads: tasks that write disjoint parts of one output.

use std::marker::PhantomData;

use rayon::prelude::*;

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
