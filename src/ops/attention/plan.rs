//! What the attention kernels know of a layout: lists of tiles, spans, tasks, visits and sums, as `int`s. The records,
//! and the way in which keys and stacked queries are numbered, are those of `kernels/attention_tiles.cuh`.

use crate::layout::{Segment, Segments};
use std::ops::Range;

/// Stacked queries that are worth a task of their own, and the most tasks that share the queries of one tile of keys.
const TASK_QUERIES: usize = 256;
const TASKS_PER_TILE: usize = 32;
/// Tasks, over all key heads, among which the work on keys is spread at least, if it is enough.
const TASKS: usize = 256;

/// A list of records of `N` ints.
pub(crate) type Records<const N: usize> = Vec<[i32; N]>;

/// For the kernels whose blocks own queries: the forward pass and `dq`.
#[derive(Debug, PartialEq)]
pub(crate) struct QueryPlan {
    /// First query row of the segment, stacked queries from and to, keys that any of them sees, spans from and to.
    pub(crate) tiles: Records<8>,
    /// First key row, and the number of that key to the segment.
    pub(crate) spans: Records<2>,
    /// How many keys each query row sees.
    pub(crate) limits: Records<1>,
}

/// For the kernels whose blocks own keys: `dk` and `dv`.
#[derive(Debug, PartialEq)]
pub(crate) struct KeyPlan {
    /// First key row, keys, visits from and to, the slot for a partial sum or -1.
    pub(crate) tasks: Records<8>,
    /// First query row of the segment, stacked queries from and to, the number of the task's first key to them.
    pub(crate) visits: Records<4>,
    /// First key row, keys, first slot, slots.
    pub(crate) sums: Records<4>,
    /// Partial sums, each of a tile of key rows.
    pub(crate) slots: usize,
}

fn int(x: usize) -> i32 {
    i32::try_from(x).expect("the launch has checked that rows times heads fit an int")
}

/// The spans of a segment that hold keys, each with the number of its first key.
fn spans(segment: &Segment) -> impl Iterator<Item = (Range<usize>, usize)> {
    let mut next = 0;
    segment.context.iter().chain([&segment.own]).filter(|span| !span.is_empty()).map(move |span| {
        let first = next;
        next += span.len();
        (span.clone(), first)
    })
}

/// How many keys query `row` of `segment` sees.
fn limit(segments: &Segments, segment: &Segment, row: usize) -> usize {
    segment.context.iter().map(|span| span.len()).sum::<usize>() + segments.visible()[row]
}

impl QueryPlan {
    /// Tiles of `tile` stacked queries, `group` heads to a row.
    pub(crate) fn new(segments: &Segments, group: usize, tile: usize) -> Self {
        let mut plan = Self { tiles: Vec::new(), spans: Vec::new(), limits: Vec::with_capacity(segments.query_rows()) };
        for segment in segments.as_slice().iter().filter(|segment| !segment.queries.is_empty()) {
            let context: usize = segment.context.iter().map(|span| span.len()).sum();
            let limits = segment.queries.clone().map(|row| [int(context + segments.visible()[row])]);
            let first_limit = plan.limits.len();
            plan.limits.extend(limits);
            let first_span = plan.spans.len();
            plan.spans.extend(spans(segment).map(|(span, first)| [int(span.start), int(first)]));

            let stacked = segment.queries.len() * group;
            for begin in (0..stacked).step_by(tile) {
                let end = (begin + tile).min(stacked);
                let rows = first_limit + begin / group..first_limit + (end - 1) / group + 1;
                let keys = plan.limits[rows].iter().map(|limit| limit[0]).max().unwrap_or(0);
                let [query_row, begin, end] = [segment.queries.start, begin, end].map(int);
                let [from, to] = [first_span, plan.spans.len()].map(int);
                plan.tiles.push([query_row, begin, end, keys, from, to, 0, 0]);
            }
        }
        plan
    }

    /// How many tiles hold one of the first `rows` query rows.
    pub(crate) fn tiles_before(&self, rows: usize, group: usize) -> usize {
        self.tiles.partition_point(|&[query_row, begin, ..]| query_row as usize + begin as usize / group < rows)
    }
}

impl KeyPlan {
    /// Tasks that make the gradients of the first `key_rows` key rows out of those of the first `output_rows` rows of
    /// the output. How a tile's queries are spread over tasks depends on the shapes alone.
    pub(crate) fn new(
        segments: &Segments,
        group: usize,
        key_heads: usize,
        tile: usize,
        output_rows: usize,
        key_rows: usize,
    ) -> Self {
        let tiles = key_tiles(segments, group, tile, output_rows, key_rows);
        let queries: usize = tiles.iter().map(KeyTile::queries).sum();
        let share = (queries * key_heads).div_ceil(TASKS).max(TASK_QUERIES);
        let mut plan = Self { tasks: Vec::new(), visits: Vec::new(), sums: Vec::new(), slots: 0 };
        for key_tile in &tiles {
            plan.add(key_tile, share);
        }
        plan
    }

    fn add(&mut self, tile: &KeyTile, share: usize) {
        let [key_row, keys] = [tile.keys.start, tile.keys.len()].map(int);
        let tasks = tile.queries().div_ceil(share).clamp(1, TASKS_PER_TILE);
        let share = tile.queries().div_ceil(tasks);
        let first_slot = self.slots;
        let mut first_visit = self.visits.len();
        let mut room = share;
        let mut visits = tile.visits.iter().cloned();
        let mut next = visits.next();
        while let Some(visit) = next.take() {
            let take = visit.queries.len().min(room);
            let cut = visit.queries.start + take;
            self.visits.push([visit.query_row, visit.queries.start, cut, visit.first_key].map(int));
            room -= take;
            next = if cut < visit.queries.end {
                Some(Visit { queries: cut..visit.queries.end, ..visit })
            } else {
                visits.next()
            };
            if room == 0 && next.is_some() {
                self.tasks.push([key_row, keys, int(first_visit), int(self.visits.len()), int(self.slots), 0, 0, 0]);
                self.slots += 1;
                (first_visit, room) = (self.visits.len(), share);
            }
        }
        let is_only = self.slots == first_slot;
        let slot = if is_only { -1 } else { int(self.slots) };
        self.tasks.push([key_row, keys, int(first_visit), int(self.visits.len()), slot, 0, 0, 0]);
        if !is_only {
            self.slots += 1;
            self.sums.push([key_row, keys, int(first_slot), int(self.slots - first_slot)]);
        }
    }
}

/// Some keys that the same segments see, and who sees them.
struct KeyTile {
    keys: Range<usize>,
    visits: Vec<Visit>,
}

impl KeyTile {
    fn queries(&self) -> usize {
        self.visits.iter().map(|visit| visit.queries.len()).sum()
    }
}

#[derive(Clone)]
struct Visit {
    query_row: usize,
    /// Stacked queries of the segment.
    queries: Range<usize>,
    /// The number of the tile's first key to the segment.
    first_key: usize,
}

/// Cuts the first `key_rows` key rows where a span starts or ends, and then into tiles.
fn key_tiles(segments: &Segments, group: usize, tile: usize, output_rows: usize, key_rows: usize) -> Vec<KeyTile> {
    let mut cuts = vec![0, key_rows];
    for segment in segments.as_slice() {
        cuts.extend(spans(segment).flat_map(|(span, _)| [span.start, span.end]).filter(|&cut| cut < key_rows));
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut tiles = Vec::new();
    for pair in cuts.windows(2) {
        let starts = (pair[0]..pair[1]).step_by(tile);
        tiles.extend(starts.map(|start| KeyTile { keys: start..(start + tile).min(pair[1]), visits: Vec::new() }));
    }
    for segment in segments.as_slice() {
        let rows = segment.queries.start..segment.queries.end.min(output_rows);
        for (span, first) in spans(segment) {
            let from = tiles.partition_point(|tile| tile.keys.start < span.start);
            for tile in tiles[from..].iter_mut().take_while(|tile| tile.keys.start < span.end) {
                let first_key = first + tile.keys.start - span.start;
                let sees = |&row: &usize| limit(segments, segment, row) > first_key;
                let (Some(begin), Some(end)) = (rows.clone().find(sees), rows.clone().rfind(sees)) else { continue };
                let stacked = |row: usize| (row - segment.queries.start) * group;
                tile.visits.push(Visit {
                    query_row: segment.queries.start,
                    queries: stacked(begin)..stacked(end + 1),
                    first_key,
                });
            }
        }
    }
    tiles
}
