//! Buffers given back and used again: training repeats the same shapes, and memory the system has already given costs
//! nothing to take once more.

use std::collections::BTreeMap;

/// Free blocks of memory by length, in whatever unit the device counts in.
pub(super) struct Pool<B> {
    free: BTreeMap<usize, Vec<B>>,
    length: usize,
}

impl<B> Default for Pool<B> {
    fn default() -> Self {
        Self { free: BTreeMap::new(), length: 0 }
    }
}

impl<B> Pool<B> {
    /// The smallest block that holds `length` and wastes at most a quarter of itself, with its own length.
    pub(super) fn take(&mut self, length: usize) -> Option<(usize, B)> {
        let (&found, stack) = self.free.range_mut(length..=length + length / 3).next()?;
        let block = stack.pop()?;
        if stack.is_empty() {
            self.free.remove(&found);
        }
        self.length -= found;
        Some((found, block))
    }

    /// Keeps a block; returns the largest ones, for the system, while more than `room` are kept.
    pub(super) fn put(&mut self, length: usize, block: B, room: usize) -> Vec<B> {
        if length > 0 {
            self.length += length;
            self.free.entry(length).or_default().push(block);
        }
        let mut evicted = Vec::new();
        while self.length > room
            && let Some(mut largest) = self.free.last_entry()
        {
            if let Some(block) = largest.get_mut().pop() {
                self.length -= *largest.key();
                evicted.push(block);
            }
            if largest.get().is_empty() {
                largest.remove();
            }
        }
        evicted
    }

    /// Puts blocks of one length in the order of their addresses, so that equal sets are handed out alike.
    pub(super) fn sort(&mut self)
    where
        B: Ord,
    {
        self.free.values_mut().for_each(|stack| stack.sort_unstable());
    }

    /// Everything that is kept.
    pub(super) fn drain(&mut self) -> Vec<B> {
        self.length = 0;
        std::mem::take(&mut self.free).into_values().flatten().collect()
    }

    /// The summed length of what is kept.
    #[cfg(test)]
    pub(super) fn length(&self) -> usize {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_block_is_used_and_the_largest_goes_first() {
        let mut pool = Pool::default();
        for length in [100, 80, 10] {
            assert!(pool.put(length, length, 1000).is_empty());
        }
        assert_eq!(pool.take(70), Some((80, 80)));
        assert_eq!(pool.take(20), None);
        assert_eq!(pool.put(30, 30, 45), [100]);
        assert_eq!(pool.length(), 40);
        assert_eq!(pool.drain().len(), 2);
        assert_eq!(pool.length(), 0);
    }
}
