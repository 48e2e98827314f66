//! A block: its warps, shared memory, barriers, and what its threads may access.

use crate::checks::{Conflict, Order, Page, Who, several_blocks};
use crate::exec::access::SHARED_PAGE;
use crate::exec::alu::Alu;
use crate::exec::lanes::mask_of;
use crate::isa::{Instr, Op, Reduce};
use crate::kernel::Kernel;
use crate::launch::{Launch, Progress, Stats};
use crate::memory::{Allocation, Memory};
use crate::report::{Fault, Kind, Report};
use crate::warp::Warp;
use std::sync::Arc;

/// What the warps of a block share.
pub(crate) struct Env<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) launch: &'a Launch,
    pub(crate) params: &'a [u8],
    pub(crate) memory: &'a Memory,
    /// by address
    pub(crate) allocations: &'a [Arc<Allocation>],
    pub(crate) progress: &'a Progress,
    pub(crate) checks: bool,
    /// memory knows which bytes were written
    pub(crate) marked: bool,
    pub(crate) launch_id: u32,
    pub(crate) alu: Alu,
    /// index of the block in the grid, plus one
    pub(crate) block: u32,
    pub(crate) block_index: [u32; 3],
    pub(crate) shared: Vec<u8>,
    pub(crate) pages: Vec<Page>,
    pub(crate) order: Order,
    pub(crate) stats: Stats,
    /// the allocation accessed last
    pub(crate) hint: std::cell::Cell<usize>,
    /// threads and warps that arrived at each barrier without waiting
    arrivals: [(u32, Vec<usize>); 16],
}

impl<'a> Env<'a> {
    /// The allocation that holds an access.
    #[inline(always)]
    pub(crate) fn find(&self, address: u64, bytes: usize) -> Option<usize> {
        if self.allocations.get(self.hint.get()).is_some_and(|a| a.contains(address, bytes)) {
            return Some(self.hint.get());
        }
        let index = self.allocations.partition_point(|a| a.address <= address).checked_sub(1)?;
        self.allocations[index].contains(address, bytes).then(|| {
            self.hint.set(index);
            index
        })
    }

    #[inline(always)]
    pub(crate) fn who(&self, warp: usize, pc: u32) -> Who<'_> {
        who(self.block, &self.order, warp, pc)
    }

    /// The cells of shared memory, and who accesses them.
    #[inline(always)]
    pub(crate) fn shared_pages(&mut self, warp: usize, pc: u32) -> (&mut [Page], Who<'_>) {
        (&mut self.pages, who(self.block, &self.order, warp, pc))
    }

    /// Counts instructions against the budget.
    pub(crate) fn spend(&mut self, instructions: u64) -> Result<(), Box<Fault>> {
        self.stats.instructions += instructions;
        match self.progress.spend(instructions) {
            true => Ok(()),
            false => Err(Fault::new(
                Kind::Budget,
                None,
                format!(
                    "the launch executed more than its budget of {} instructions: an endless loop?",
                    self.progress.budget
                ),
            )),
        }
    }

    /// A clock: instructions executed so far.
    pub(crate) fn clock(&self) -> u64 {
        self.stats.thread_instructions
    }

    /// Threads arrive at a barrier and go on.
    pub(crate) fn arrive(&mut self, warp: &Warp, i: &Instr, e: u32) -> Result<(), Box<Fault>> {
        let lane = e.trailing_zeros();
        let id = warp.regs.word(i.a)[lane as usize];
        if id > 15 {
            return Err(Fault::new(Kind::Divergence, Some(lane), format!("barrier {id}: there are 16")));
        }
        let (threads, warps) = &mut self.arrivals[id as usize];
        *threads += 32;
        warps.push(warp.index);
        Ok(())
    }

    /// Where an instruction comes from, in words.
    pub(crate) fn place(&self, pc: u32) -> String {
        let instr = &self.kernel.code[pc as usize];
        let location = &self.kernel.locations[instr.loc as usize];
        if location.file.is_empty() { format!("PTX line {}", instr.line) } else { location.to_string() }
    }

    fn thread(&self, thread: u32) -> [u32; 3] {
        let [x, y, _] = self.launch.block;
        [thread % x, thread / x % y, thread / x / y]
    }

    /// Words for an access that is not ordered after another.
    #[cold]
    pub(crate) fn conflict(
        &self,
        warp: &Warp,
        lane: u32,
        conflict: Conflict,
        write: bool,
        bytes: usize,
        place: &str,
    ) -> Box<Fault> {
        let thread = |t: u16| {
            let [x, y, z] = self.thread(t as u32);
            format!("thread ({x},{y},{z})")
        };
        let verb = if write { "write" } else { "read" };
        let lane_number = Some(lane);
        match conflict {
            Conflict::Unwritten => Fault::new(
                Kind::Unwritten,
                lane_number,
                format!("{verb} of {bytes} bytes at {place}, which nothing in the block has written yet"),
            ),
            Conflict::Pending { thread: t, pc } => Fault::new(
                Kind::AsyncCopy,
                lane_number,
                format!(
                    "{verb} of {bytes} bytes at {place} while the asynchronous copy of {} at {} into it is not waited for",
                    thread(t),
                    self.place(pc)
                ),
            ),
            Conflict::Race { block, thread: t, pc, other_wrote } => {
                let other = if other_wrote { "write" } else { "read" };
                let (whose, missing) = if several_blocks(block) {
                    ("several other blocks".to_string(), "blocks of a launch are not ordered")
                } else if block != self.block {
                    let [x, y, z] = self.launch.block_index(block as u64 - 1);
                    (format!("block ({x},{y},{z})"), "blocks of a launch are not ordered")
                } else {
                    let t = t.unwrap_or(0);
                    let same = t as usize / 32 == warp.index;
                    let missing =
                        if same { "no __syncwarp or barrier lies between" } else { "no barrier of both lies between" };
                    (thread(t), missing)
                };
                let at = if several_blocks(block) { String::new() } else { format!(" at {}", self.place(pc)) };
                Fault::new(
                    Kind::Race,
                    lane_number,
                    format!("race: {verb} of {bytes} bytes at {place} after the {other} of {whose}{at}: {missing}"),
                )
            }
        }
    }
}

#[inline(always)]
fn who(block: u32, order: &Order, warp: usize, pc: u32) -> Who<'_> {
    Who {
        block,
        warp: warp as u8,
        stamp: order.clock[warp],
        pc,
        seen: &order.seen[warp],
        lanes: order.lanes[warp].as_deref(),
    }
}

/// One worker's block: used again for each block it runs.
pub(crate) struct Block<'a> {
    pub(crate) env: Env<'a>,
    warps: Vec<Warp>,
}

impl<'a> Block<'a> {
    pub(crate) fn new(
        kernel: &'a Kernel,
        launch: &'a Launch,
        params: &'a [u8],
        memory: &'a Memory,
        allocations: &'a [Arc<Allocation>],
        progress: &'a Progress,
        checks: bool,
        launch_id: u32,
    ) -> Block<'a> {
        let warps = launch.threads().div_ceil(32);
        let shared = kernel.static_shared + launch.dynamic_shared as usize;
        let env = Env {
            kernel,
            launch,
            params,
            memory,
            allocations,
            progress,
            checks,
            marked: memory.is_marked(),
            launch_id,
            alu: crate::exec::alu::select(),
            block: 0,
            block_index: [0; 3],
            shared: vec![0xff; shared],
            pages: (0..if checks { shared.div_ceil(SHARED_PAGE) } else { 0 }).map(|_| Page::new(SHARED_PAGE)).collect(),
            order: Order::new(warps),
            stats: Stats::default(),
            hint: std::cell::Cell::new(0),
            arrivals: std::array::from_fn(|_| (0, vec![])),
        };
        Block { env, warps: (0..warps).map(|w| Warp::new(kernel, w)).collect() }
    }

    /// Runs the block of this index to its end.
    pub(crate) fn run(&mut self, index: u64, reverse: bool) -> Result<(), Box<Report>> {
        let env = &mut self.env;
        env.block = index as u32 + 1;
        env.block_index = env.launch.block_index(index);
        env.order.reset();
        env.arrivals = std::array::from_fn(|_| (0, vec![]));
        env.stats.blocks += 1;
        // shared memory does not outlive a block
        env.shared.fill(0xff);
        let threads = env.launch.threads();
        for warp in &mut self.warps {
            warp.start(env, threads);
        }
        let count = self.warps.len();
        loop {
            let mut ran = false;
            for k in 0..count {
                let w = if reverse { count - 1 - k } else { k };
                if self.warps[w].runnable() == 0 {
                    continue;
                }
                ran = true;
                if let Err(fault) = self.warps[w].run(&mut self.env) {
                    return Err(self.report(w, *fault));
                }
                self.release_counted()?;
            }
            if self.warps.iter().all(|w| w.live == 0) {
                return Ok(());
            }
            if !ran {
                self.release_all()?;
            }
        }
    }

    /// Releases barriers that wait for a number of threads which have come.
    fn release_counted(&mut self) -> Result<(), Box<Report>> {
        if !self.warps.iter().any(|warp| warp.blocked != 0 && warp.counted) {
            return Ok(());
        }
        for id in 0..16 {
            let mut needed = 0;
            let mut arrived = self.env.arrivals[id as usize].0;
            for warp in &self.warps {
                let here = mask_of(|l| warp.blocked >> l & 1 != 0 && warp.barrier[l].0 == id);
                if here != 0 {
                    let count = warp.barrier[here.trailing_zeros() as usize].1;
                    needed = needed.max(count);
                    // the barrier counts warps
                    arrived += 32;
                }
            }
            if needed != 0 && arrived >= needed {
                self.release(id)?;
            }
        }
        Ok(())
    }

    /// Nothing can run: all live threads must be at one barrier that waits for all.
    fn release_all(&mut self) -> Result<(), Box<Report>> {
        let first = self.warps.iter().position(|w| w.live != 0).expect("a thread is alive");
        let lane = self.warps[first].live.trailing_zeros() as usize;
        let (id, _) = self.warps[first].barrier[lane];
        for w in 0..self.warps.len() {
            let warp = &self.warps[w];
            for l in (0..32).filter(|l| warp.live >> l & 1 != 0) {
                let (other, count) = warp.barrier[l];
                if other != id || count != 0 {
                    let waits = if count == 0 { "all threads".into() } else { format!("{count} threads") };
                    let message = format!(
                        "waits at barrier {other} for {waits}, while thread {:?} waits at barrier {id} at {}: nobody goes on",
                        self.env.thread((first * 32 + lane) as u32),
                        self.env.place(self.warps[first].pc[lane])
                    );
                    let pc = Some(warp.pc[l]);
                    let fault = Fault { kind: Kind::Divergence, lane: Some(l as u32), pc, message };
                    return Err(self.report(w, fault));
                }
            }
        }
        self.release(id)
    }

    /// Lets the threads at a barrier go on.
    fn release(&mut self, id: u32) -> Result<(), Box<Report>> {
        let (_, mut arrived) = std::mem::take(&mut self.env.arrivals[id as usize]);
        let mut waited = vec![];
        let mut first: Option<(usize, u32)> = None;
        let mut votes = (0, true, false);
        for w in 0..self.warps.len() {
            let warp = &self.warps[w];
            let here = mask_of(|l| warp.blocked >> l & 1 != 0 && warp.barrier[l].0 == id);
            if here == 0 {
                continue;
            }
            let lane = here.trailing_zeros() as usize;
            let pc = warp.pc[lane];
            if let Some(l) = (0..32).find(|l| warp.live >> l & 1 != 0 && (here >> l & 1 == 0 || warp.pc[*l] != pc)) {
                let message = format!(
                    "bar.sync {id} in divergent code: lanes {here:#010x} of {:#010x} reach it, lane {l} is at {}",
                    warp.live,
                    self.env.place(warp.pc[l])
                );
                let fault = Fault { kind: Kind::Divergence, lane: Some(lane as u32), pc: Some(pc), message };
                return Err(self.report(w, fault));
            }
            if let Some(l) = (0..32).find(|l| (warp.exists & !warp.live) >> l & 1 != 0) {
                let message = format!(
                    "bar.sync {id} in divergent code: lanes {here:#010x} reach it, lane {l} of the warp has exited without"
                );
                let fault = Fault { kind: Kind::Divergence, lane: Some(lane as u32), pc: Some(pc), message };
                return Err(self.report(w, fault));
            }
            // other warps may be at a copy of the same barrier that the compiler made, not at another one
            let place = |pc: u32| self.env.kernel.code[pc as usize].loc;
            match first {
                None => first = Some((w, pc)),
                Some((v, other)) if other != pc && place(other) != place(pc) => {
                    let message = format!(
                        "bar.sync {id} joins thread {:?} at another barrier, {}",
                        self.env.thread(v as u32 * 32),
                        self.env.place(other)
                    );
                    let fault = Fault { kind: Kind::Divergence, lane: Some(lane as u32), pc: Some(pc), message };
                    return Err(self.report(w, fault));
                }
                _ => {}
            }
            let i = &self.env.kernel.code[pc as usize];
            if let Op::BarRed(_) = i.op {
                let x = warp.regs.condition(i) & here;
                votes = (votes.0 + x.count_ones(), votes.1 && x == here, votes.2 || x != 0);
            }
            arrived.push(w);
            waited.push(w);
        }
        self.env.stats.barriers += 1;
        self.env.order.block_barrier(&arrived, &waited);
        for &w in &waited {
            let warp = &mut self.warps[w];
            let here = mask_of(|l| warp.blocked >> l & 1 != 0 && warp.barrier[l].0 == id);
            let i = &self.env.kernel.code[warp.pc[here.trailing_zeros() as usize] as usize];
            let truth = |b: bool| if b { u32::MAX } else { 0 };
            match i.op {
                Op::BarRed(Reduce::Popc) => warp.regs.set_word(i.dst, here, &[votes.0; 32]),
                Op::BarRed(Reduce::And) => warp.regs.set_pred(i.dst, here, truth(votes.1)),
                Op::BarRed(Reduce::Or) => warp.regs.set_pred(i.dst, here, truth(votes.2)),
                _ => {}
            }
            for l in (0..32).filter(|l| here >> l & 1 != 0) {
                warp.pc[l] += 1;
            }
            warp.blocked &= !here;
        }
        Ok(())
    }

    /// A fault with the names of kernel, block, thread and line.
    fn report(&self, warp: usize, fault: Fault) -> Box<Report> {
        let env = &self.env;
        let pc = fault.pc.unwrap_or(self.warps[warp].at);
        let instr = env.kernel.code.get(pc as usize);
        let location = instr.map(|i| env.kernel.locations[i.loc as usize].clone()).filter(|l| !l.file.is_empty());
        Box::new(Report {
            kind: fault.kind,
            kernel: env.kernel.name.clone(),
            block: Some(env.block_index),
            thread: fault.lane.map(|lane| env.thread(warp as u32 * 32 + lane)),
            location,
            ptx_line: instr.map_or(0, |i| i.line),
            message: fault.message,
        })
    }
}
