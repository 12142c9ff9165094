//! Buffers of 32-bit floats that come back: memory that the system hands out anew has to be mapped page by page and
//! cleared, which costs as much as a cheap operator does.
//!
//! A buffer goes into the pool when the last tensor that holds it is dropped, and comes out with whatever it held, for
//! an operator that writes every element. The pool is shared by all threads and bounded; results do not depend on it.

use std::any::Any;
use std::sync::{Mutex, PoisonError};

/// Elements from which a buffer is worth keeping.
const LEAST: usize = 4 << 10;
/// Elements that the pool holds at most.
const MOST: usize = 16 << 20;
/// Buffers that the pool holds at most.
const MOST_BUFFERS: usize = 64;

/// The oldest first.
static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// A buffer of `n` elements with any contents, for code that writes every element.
#[must_use]
pub fn buffer(n: usize) -> Vec<f32> {
    if n >= LEAST {
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that fits and is not much too large; among equals the one that was used last.
        let fits = |v: &Vec<f32>| v.capacity() >= n && v.capacity() / 2 <= n;
        let best = (0..pool.len()).rev().filter(|&i| fits(&pool[i])).min_by_key(|&i| pool[i].capacity());
        if let Some(i) = best {
            let mut v = pool.remove(i);
            drop(pool);
            // Writes only what the buffer did not hold before.
            v.resize(n, 0.0);
            return v;
        }
    }
    vec![0.0; n]
}

/// [`buffer`] for elements of any type; those that are no 32-bit floats are default ones.
#[must_use]
pub fn buffer_of<T: Clone + Default + 'static>(n: usize) -> Vec<T> {
    if std::any::TypeId::of::<T>() == std::any::TypeId::of::<f32>() {
        let mut v: Option<Vec<T>> = None;
        if let Some(slot) = (&mut v as &mut dyn Any).downcast_mut::<Option<Vec<f32>>>() {
            *slot = Some(buffer(n));
        }
        if let Some(v) = v {
            return v;
        }
    }
    vec![T::default(); n]
}

/// Keeps a buffer for later, if it is one of 32-bit floats and worth it.
pub(super) fn recycle<T: 'static>(v: &mut Vec<T>) {
    if let Some(v) = (v as &mut dyn Any).downcast_mut::<Vec<f32>>() {
        keep(std::mem::take(v));
    }
}

/// Keeps a scratch buffer for later, if it is worth it.
pub fn keep(v: Vec<f32>) {
    if v.capacity() < LEAST || v.capacity() > MOST {
        return;
    }
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let mut held: usize = pool.iter().map(Vec::capacity).sum::<usize>() + v.capacity();
    let mut drop_first = 0;
    while held > MOST || pool.len() - drop_first >= MOST_BUFFERS {
        held -= pool[drop_first].capacity();
        drop_first += 1;
    }
    let dropped: Vec<Vec<f32>> = pool.drain(..drop_first).collect();
    pool.push(v);
    drop(pool);
    // Outside the lock: giving memory back to the system takes time.
    drop(dropped);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn a_dropped_tensor_gives_its_buffer_to_the_next_and_the_pool_is_bounded() {
        // Of a size that no other test uses, since the pool is shared.
        let n = 123_457;
        let t = Tensor::vector(vec![1.5f32; n]);
        let address = t.slice::<f32>().unwrap().as_ptr();
        let shared = t.clone();
        drop(t);
        let other = buffer(n);
        assert_ne!(other.as_ptr(), address, "still held by a clone");
        drop(other);
        drop(shared);
        let again = buffer(n - 1);
        assert_eq!((again.as_ptr(), again.len()), (address, n - 1));
        // In the same test, since filling the pool throws out what others wait for.
        keep(vec![0.0; MOST + 1]);
        for _ in 0..3 {
            keep(Vec::with_capacity(MOST / 2));
        }
        let pool = POOL.lock().unwrap();
        assert!(pool.iter().map(Vec::capacity).sum::<usize>() <= MOST && pool.len() <= MOST_BUFFERS);
    }
}
