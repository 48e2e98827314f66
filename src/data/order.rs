//! The order of examples, and the batches cut from it.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::hash::{extend, splitmix64};
use crate::error::Place;
use crate::{Error, Result};

/// The order of an epoch's examples, a function of (seed, epoch, index) and nothing else.
///
/// Each index has a hash of the three, and an epoch is the indices sorted by it. So an example's rank among others does
/// not depend on how many more there are, nor on what was drawn before: any epoch can be had without the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochOrder {
    /// The run's seed.
    pub seed: u64,
    /// Whether to shuffle at all; otherwise every epoch goes in the file's order.
    pub shuffle: bool,
}

impl EpochOrder {
    /// The indices `0..len` in the order of `epoch`, counted from 0.
    pub fn indices(&self, epoch: u64, len: usize) -> Vec<usize> {
        if !self.shuffle {
            return (0..len).collect();
        }
        let state = extend(splitmix64(self.seed), epoch);
        let mut keyed: Vec<(u64, usize)> = (0..len).map(|i| (extend(state, i as u64), i)).collect();
        // Keys with their index are all distinct, so an unstable parallel sort has one result.
        keyed.par_sort_unstable();
        keyed.into_iter().map(|(_, i)| i).collect()
    }
}

/// Where a run stands in its data: the next example to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The examples of that epoch already used.
    pub position: u64,
}

/// One batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    /// The epoch it belongs to, counted from 0.
    pub epoch: u64,
    /// Indices of its examples; never empty.
    pub indices: &'a [usize],
    /// Whether it is the last of its epoch.
    pub ends_epoch: bool,
}

/// Batches without end, epoch after epoch; the caller decides when to stop.
#[derive(Debug, Clone)]
pub struct Batches {
    order: EpochOrder,
    len: usize,
    batch_size: usize,
    drop_last: bool,
    cursor: Cursor,
    indices: Vec<usize>,
}

impl Batches {
    /// Batches of `batch_size` of `len` examples, from `cursor` on (its default is the beginning). An epoch's last
    /// batch holds what is left, or with `drop_last` is left out if it is short.
    ///
    /// The cursor of one run continues in another of the same seed and length exactly, whatever the batch size.
    ///
    /// # Errors
    /// [`Error::Config`] for no examples, a batch size of 0, or `drop_last` with fewer examples than a batch holds;
    /// [`Error::Input`] for a cursor beyond the data.
    pub fn new(order: EpochOrder, len: usize, batch_size: usize, drop_last: bool, cursor: Cursor) -> Result<Self> {
        let smallest = if drop_last { batch_size } else { 1 };
        if batch_size == 0 || len < smallest {
            let item = Place::item("per_device_train_batch_size");
            let expected = format!("a batch of 1 to {len} examples");
            return Err(Error::config(item, expected, batch_size.to_string()).hint("there is not one whole batch"));
        }
        if cursor.position > len as u64 {
            let got = format!("position {} of {len} examples", cursor.position);
            return Err(Error::input(Place::item("cursor"), "a position within the data", got)
                .hint("the checkpoint was made with other data: resume with the same files and split"));
        }
        let mut batches = Self { order, len, batch_size, drop_last, cursor, indices: Vec::new() };
        batches.settle();
        batches.indices = order.indices(batches.cursor.epoch, len);
        Ok(batches)
    }

    /// The next batch.
    pub fn next_batch(&mut self) -> Batch<'_> {
        if self.cursor.position == 0 {
            self.indices = self.order.indices(self.cursor.epoch, self.len);
        }
        let epoch = self.cursor.epoch;
        let start = self.cursor.position as usize;
        let end = (start + self.batch_size).min(self.len);
        self.cursor.position = end as u64;
        self.settle();
        Batch { epoch, indices: &self.indices[start..end], ends_epoch: self.cursor.epoch != epoch }
    }

    /// Where the next batch begins: what a checkpoint keeps.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// How many batches an epoch has that is begun at its start.
    pub fn batches_per_epoch(&self) -> usize {
        if self.drop_last { self.len / self.batch_size } else { self.len.div_ceil(self.batch_size) }
    }

    /// Moves a cursor that has no batch left in its epoch to the next one.
    fn settle(&mut self) {
        let left = self.len - self.cursor.position as usize;
        if left == 0 || (self.drop_last && left < self.batch_size) {
            self.cursor = Cursor { epoch: self.cursor.epoch.saturating_add(1), position: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: EpochOrder = EpochOrder { seed: 7, shuffle: true };

    fn batches(len: usize, size: usize, drop_last: bool, cursor: Cursor) -> Batches {
        Batches::new(ORDER, len, size, drop_last, cursor).unwrap()
    }

    #[test]
    fn the_order_never_changes() {
        // Pinned: a change here breaks every resumed run.
        assert_eq!(EpochOrder { seed: 0, shuffle: true }.indices(0, 8), PINNED);
    }
    const PINNED: [usize; 8] = [6, 4, 7, 3, 1, 2, 0, 5];

    #[test]
    fn every_epoch_and_seed_is_another_permutation() {
        let base = ORDER.indices(0, 1000);
        let mut sorted = base.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1000));
        assert_eq!(base, ORDER.indices(0, 1000));
        assert_ne!(base, ORDER.indices(1, 1000));
        assert_ne!(base, EpochOrder { seed: 8, shuffle: true }.indices(0, 1000));
        assert!(EpochOrder { seed: 7, shuffle: false }.indices(3, 5).into_iter().eq(0..5));
    }

    #[test]
    fn an_examples_rank_does_not_depend_on_how_many_there_are() {
        let few = ORDER.indices(2, 50);
        let many: Vec<usize> = ORDER.indices(2, 500).into_iter().filter(|&i| i < 50).collect();
        assert_eq!(few, many);
    }

    #[test]
    fn first_places_are_spread_evenly() {
        let mut counts = [0u32; 10];
        for epoch in 0..10_000 {
            counts[ORDER.indices(epoch, 10)[0]] += 1;
        }
        assert!(counts.iter().all(|&c| (850..1150).contains(&c)), "{counts:?}");
    }

    #[test]
    fn an_epoch_is_cut_into_batches_and_the_short_one_kept() {
        let mut all = batches(10, 4, false, Cursor::default());
        assert_eq!(all.batches_per_epoch(), 3);
        for epoch in 0..3 {
            let order = ORDER.indices(epoch, 10);
            for (i, part) in order.chunks(4).enumerate() {
                assert_eq!(all.cursor(), Cursor { epoch, position: 4 * i as u64 });
                assert_eq!(all.next_batch(), Batch { epoch, indices: part, ends_epoch: i == 2 });
            }
        }
    }

    #[test]
    fn the_short_one_is_dropped_on_demand() {
        let mut all = batches(10, 4, true, Cursor::default());
        assert_eq!(all.batches_per_epoch(), 2);
        assert!(!all.next_batch().ends_epoch);
        assert!(all.next_batch().ends_epoch);
        assert_eq!(all.cursor(), Cursor { epoch: 1, position: 0 });
        assert_eq!(all.next_batch().indices, &ORDER.indices(1, 10)[..4]);
    }

    #[test]
    fn any_cursor_resumes_exactly() {
        for drop_last in [false, true] {
            let mut whole = batches(10, 4, drop_last, Cursor::default());
            for _ in 0..12 {
                let json = serde_json::to_string(&whole.cursor()).unwrap();
                let mut resumed = batches(10, 4, drop_last, serde_json::from_str(&json).unwrap());
                for _ in 0..7 {
                    let mut copy = whole.clone();
                    assert_eq!(resumed.clone().next_batch(), copy.next_batch());
                    resumed.next_batch();
                    whole.next_batch();
                }
            }
        }
    }

    #[test]
    fn a_cursor_at_the_end_of_an_epoch_is_the_start_of_the_next() {
        let all = batches(10, 4, false, Cursor { epoch: 0, position: 10 });
        assert_eq!(all.cursor(), Cursor { epoch: 1, position: 0 });
        let mut odd = batches(10, 4, false, Cursor { epoch: 1, position: 3 });
        assert_eq!(odd.next_batch().indices, &ORDER.indices(1, 10)[3..7]);
        assert_eq!(batches(10, 4, false, Cursor { epoch: u64::MAX, position: 0 }).next_batch().epoch, u64::MAX);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let refused = |len, size, drop_last, position| {
            Batches::new(ORDER, len, size, drop_last, Cursor { epoch: 0, position }).unwrap_err().exit_code()
        };
        assert_eq!(refused(10, 0, false, 0), 3);
        assert_eq!(refused(0, 4, false, 0), 3);
        assert_eq!(refused(3, 4, true, 0), 3);
        assert_eq!(refused(10, 4, false, 11), 4);
        assert!(serde_json::from_str::<Cursor>("{\"epoch\": 0, \"position\": 0, \"x\": 1}").is_err());
    }
}
