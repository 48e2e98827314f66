//! Who touched which byte last, and whether that was ordered before the access at hand.
//!
//! **Order.** Each warp of a block has a clock that advances at each of its barriers. An access is stamped with its
//! warp's clock. `seen[w][v]` is the latest stamp of warp `v` that is ordered before what warp `w` does now: a barrier
//! (`bar.sync`, and a `bar.warp.sync` of a whole warp) raises it for those who take part. A `bar.warp.sync` of part of a
//! warp orders single lanes (`lanes`). Two accesses of different threads, one of them a write, with no such order
//! between them are a race; so are two of different blocks of a launch. Atomics and volatile, relaxed, acquire and
//! release accesses do not race with each other.
//!
//! **Cells.** A cell describes `grain` bytes. A page starts with the size of the first access and is split when a
//! smaller one comes, so 16-byte accesses cost one cell and byte accesses stay exact.

/// The last accesses to a few bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cell {
    /// block of the last write, plus one; 0: none
    write_block: u32,
    write_stamp: u32,
    write_pc: u32,
    /// block of the last read, plus one; 0: none; `SEVERAL`
    read_block: u32,
    read_stamp: u32,
    read_pc: u32,
    /// lanes of `read_warp` that read since its last barrier
    read_mask: u32,
    /// the last read by a warp other than `read_warp`
    other_stamp: u32,
    write_thread: u16,
    read_warp: u8,
    other_warp: u8,
    flags: u8,
}

const SEVERAL: u32 = u32::MAX;
/// an asynchronous copy into this cell is under way
const PENDING: u8 = 1;
/// the last write was atomic or volatile
const STRONG: u8 = 2;
/// `other_warp`, `other_stamp` are set
const OTHER: u8 = 4;

/// The warp that accesses, and what is ordered before it.
#[derive(Clone, Copy)]
pub(crate) struct Who<'a> {
    /// plus one
    pub(crate) block: u32,
    pub(crate) warp: u8,
    pub(crate) stamp: u32,
    pub(crate) pc: u32,
    pub(crate) seen: &'a [u32; 32],
    /// order between single lanes, if a barrier of part of the warp made one
    pub(crate) lanes: Option<&'a [[u32; 32]; 32]>,
}

impl Who<'_> {
    fn thread(&self, lane: u32) -> u16 {
        self.warp as u16 * 32 + lane as u16
    }

    fn after(&self, lane: u32, thread: u16, stamp: u32) -> bool {
        let warp = (thread >> 5) as usize;
        stamp <= self.seen[warp]
            || (warp == self.warp as usize
                && self.lanes.is_some_and(|order| stamp <= order[lane as usize][(thread & 31) as usize]))
    }
}

/// Why an access is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Conflict {
    /// shared memory only; global memory keeps marks over launches
    Unwritten,
    /// an asynchronous copy of this thread has not been waited for
    Pending { thread: u16, pc: u32 },
    /// (block, thread, pc) of the other access and whether it was the write
    Race { block: u32, thread: Option<u16>, pc: u32, other_wrote: bool },
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Access {
    Read,
    /// a read that does not race with strong writes
    StrongRead,
    Write,
    StrongWrite,
    /// a strong read and write
    Atomic,
    /// start of an asynchronous copy
    AsyncStart,
    /// its end: the write happens
    AsyncEnd,
    /// a read by all lanes of a warp
    WarpRead,
}

/// Cells of a stretch of memory.
#[derive(Default)]
pub(crate) struct Page {
    /// the launch these cells belong to
    launch: u32,
    /// log2 of the bytes of a cell
    grain: u8,
    cells: Vec<Cell>,
}

impl Page {
    /// Of shared memory: always in the same launch, at first with the largest cells.
    pub(crate) fn new(bytes: usize) -> Page {
        Page { launch: 0, grain: 4, cells: vec![Cell::default(); bytes >> 4] }
    }

    /// Forgets accesses of earlier launches.
    #[inline]
    pub(crate) fn enter(&mut self, launch: u32, page_bytes: usize, access_bytes: usize) {
        if self.launch != launch {
            self.launch = launch;
            self.grain = access_bytes.trailing_zeros().min(4) as u8;
            self.cells.clear();
            self.cells.resize(page_bytes >> self.grain, Cell::default());
        }
    }

    #[cold]
    fn split(&mut self, grain: u8) {
        let copies = 1usize << (self.grain - grain);
        self.cells = self.cells.iter().flat_map(|&cell| std::iter::repeat_n(cell, copies)).collect();
        self.grain = grain;
    }

    /// Records an access of `lanes` to `bytes` (a power of two, at most 16) at `offset` in the page; only reads may be of
    /// several lanes. `SHARED`: what other blocks did does not count, and reads of bytes nothing wrote are conflicts.
    /// An error names the lane.
    #[inline(always)]
    pub(crate) fn access<const SHARED: bool>(
        &mut self,
        offset: usize,
        bytes: usize,
        access: Access,
        who: &Who,
        lanes: u32,
    ) -> Result<(), (u32, Conflict)> {
        if bytes < 1 << self.grain {
            self.split(bytes.trailing_zeros() as u8);
        }
        let first = offset >> self.grain;
        let count = bytes >> self.grain;
        for cell in &mut self.cells[first..first + count] {
            match access {
                Access::Read => cell.read::<SHARED>(who, lanes)?,
                Access::WarpRead => cell.read::<SHARED>(who, u32::MAX)?,
                Access::StrongRead => cell.check_write::<SHARED>(who, lanes.trailing_zeros(), true)?,
                Access::Write => cell.write::<SHARED>(who, lanes.trailing_zeros(), 0)?,
                Access::StrongWrite | Access::Atomic => cell.write::<SHARED>(who, lanes.trailing_zeros(), STRONG)?,
                Access::AsyncStart => cell.write::<SHARED>(who, lanes.trailing_zeros(), PENDING)?,
                Access::AsyncEnd => {
                    cell.flags &= !PENDING;
                    cell.write_stamp = who.stamp;
                }
            }
        }
        Ok(())
    }
}

impl Cell {
    /// Is the last write ordered before an access of a lane?
    #[inline(always)]
    fn check_write<const SHARED: bool>(&self, who: &Who, lane: u32, strong: bool) -> Result<(), (u32, Conflict)> {
        if self.write_block == who.block {
            if self.flags & PENDING != 0 {
                return Err((lane, Conflict::Pending { thread: self.write_thread, pc: self.write_pc }));
            }
            if self.write_thread != who.thread(lane)
                && !who.after(lane, self.write_thread, self.write_stamp)
                && !(strong && self.flags & STRONG != 0)
            {
                return Err((lane, self.race_with_write()));
            }
        } else if !SHARED && self.write_block != 0 && !(strong && self.flags & STRONG != 0) {
            return Err((lane, self.race_with_write()));
        }
        Ok(())
    }

    #[cold]
    fn race_with_write(&self) -> Conflict {
        Conflict::Race {
            block: self.write_block,
            thread: Some(self.write_thread),
            pc: self.write_pc,
            other_wrote: true,
        }
    }

    #[inline(always)]
    fn read<const SHARED: bool>(&mut self, who: &Who, lanes: u32) -> Result<(), (u32, Conflict)> {
        if SHARED && self.write_block != who.block {
            return Err((lanes.trailing_zeros(), Conflict::Unwritten));
        }
        let written = self.write_block != 0;
        let ordered = self.write_block == who.block
            && self.flags & PENDING == 0
            && self.write_stamp <= who.seen[(self.write_thread >> 5) as usize & 31];
        if written && !ordered {
            let mut left = lanes;
            while left != 0 {
                self.check_write::<SHARED>(who, left.trailing_zeros(), false)?;
                left &= left - 1;
            }
        }
        if self.read_block == who.block {
            if self.read_warp == who.warp {
                let forget = self.read_stamp != who.stamp
                    && (who.lanes.is_some() || self.read_stamp <= who.seen[who.warp as usize]);
                self.read_mask = if forget { lanes } else { self.read_mask | lanes };
            } else {
                self.other_warp = self.read_warp;
                self.other_stamp = self.read_stamp;
                self.flags |= OTHER;
                self.read_warp = who.warp;
                self.read_mask = lanes;
            }
        } else if SHARED || self.read_block == 0 {
            self.read_block = who.block;
            self.read_warp = who.warp;
            self.read_mask = lanes;
            self.flags &= !OTHER;
        } else {
            self.read_block = SEVERAL;
            return Ok(());
        }
        self.read_stamp = who.stamp;
        self.read_pc = who.pc;
        Ok(())
    }

    #[inline(always)]
    fn write<const SHARED: bool>(&mut self, who: &Who, lane: u32, flags: u8) -> Result<(), (u32, Conflict)> {
        self.check_write::<SHARED>(who, lane, flags & STRONG != 0)?;
        if self.read_block != 0 {
            self.check_reads::<SHARED>(who, lane).map_err(|conflict| (lane, conflict))?;
        }
        self.write_block = who.block;
        self.write_stamp = who.stamp;
        self.write_pc = who.pc;
        self.write_thread = who.thread(lane);
        self.read_block = 0;
        self.flags = flags;
        Ok(())
    }

    #[inline]
    fn check_reads<const SHARED: bool>(&self, who: &Who, lane: u32) -> Result<(), Conflict> {
        let race = |thread| Conflict::Race { block: self.read_block, thread, pc: self.read_pc, other_wrote: false };
        if self.read_block != who.block {
            return if SHARED { Ok(()) } else { Err(race(None)) };
        }
        if self.read_warp == who.warp {
            let mut others = self.read_mask & !(1 << lane);
            if self.read_stamp > who.seen[who.warp as usize] {
                while others != 0 {
                    let thread = who.warp as u16 * 32 + others.trailing_zeros() as u16;
                    if !who.after(lane, thread, self.read_stamp) {
                        return Err(race(Some(thread)));
                    }
                    others &= others - 1;
                }
            }
        } else if self.read_stamp > who.seen[self.read_warp as usize] {
            return Err(race(Some(self.read_warp as u16 * 32 + self.read_mask.trailing_zeros() as u16)));
        }
        if self.flags & OTHER != 0
            && self.other_warp != who.warp
            && self.other_stamp > who.seen[self.other_warp as usize]
        {
            return Err(race(Some(self.other_warp as u16 * 32)));
        }
        Ok(())
    }
}

/// Whether several blocks read; used to word a report.
pub(crate) fn several_blocks(block: u32) -> bool {
    block == SEVERAL
}

/// What is ordered before what among the warps of a block.
pub(crate) struct Order {
    /// `seen[w][v]`: the latest stamp of warp v ordered before warp w's next access
    pub(crate) seen: Vec<[u32; 32]>,
    pub(crate) clock: Vec<u32>,
    /// order between lanes, for warps with a barrier of part of the warp
    pub(crate) lanes: Vec<Option<Box<[[u32; 32]; 32]>>>,
}

impl Order {
    pub(crate) fn new(warps: usize) -> Order {
        Order { seen: vec![[0; 32]; warps], clock: vec![1; warps], lanes: vec![None; warps] }
    }

    pub(crate) fn reset(&mut self) {
        self.seen.fill([0; 32]);
        self.clock.fill(1);
        self.lanes.fill(None);
    }

    /// A barrier of all live lanes of a warp.
    pub(crate) fn warp_barrier(&mut self, warp: usize) {
        self.seen[warp][warp] = self.clock[warp];
        self.clock[warp] += 1;
        self.lanes[warp] = None;
    }

    /// A barrier of some lanes of a warp.
    pub(crate) fn lane_barrier(&mut self, warp: usize, mask: u32) {
        let clock = self.clock[warp];
        let order = self.lanes[warp].get_or_insert_with(|| Box::new([[0; 32]; 32]));
        let members = || (0..32).filter(|l| mask >> l & 1 != 0);
        let mut joined = [0; 32];
        for lane in members() {
            for other in 0..32 {
                joined[other] = joined[other].max(order[lane][other]);
            }
        }
        for lane in members() {
            joined[lane] = clock;
        }
        for lane in members() {
            order[lane] = joined;
        }
        self.clock[warp] += 1;
    }

    /// A barrier of whole warps: `arrived` take part, `waited` go on after it.
    pub(crate) fn block_barrier(&mut self, arrived: &[usize], waited: &[usize]) {
        let mut joined = [0; 32];
        for &warp in arrived {
            for other in 0..32 {
                joined[other] = joined[other].max(self.seen[warp][other]);
            }
        }
        for &warp in arrived {
            joined[warp] = self.clock[warp];
        }
        for &warp in waited {
            let own = self.seen[warp];
            for other in 0..32 {
                self.seen[warp][other] = joined[other].max(own[other]);
            }
            self.lanes[warp] = None;
        }
        for &warp in arrived {
            self.clock[warp] += 1;
        }
    }
}
