//! A warp: its lanes' program counters, and which of them run.
//!
//! The lanes with the lowest program counter run, together, until they branch apart or reach where other lanes stand.
//! Operations that need several lanes hold those that arrive first until the others come.

use crate::block::Env;
use crate::exec::copy::AsyncCopies;
use crate::exec::lanes::{Registers, Row};
use crate::exec::{self};
use crate::isa::*;
use crate::kernel::Kernel;
use crate::report::{Fault, Kind};

/// Instructions between two looks at the budget.
const SLICE: u64 = 1 << 12;
/// Instructions before the other warps of the block get a turn: one may wait for what another writes.
const TURN: u64 = 1 << 16;

pub(crate) struct Warp {
    pub(crate) index: usize,
    pub(crate) regs: Registers,
    pub(crate) pc: [u32; 32],
    /// lanes of the block's threads
    pub(crate) exists: u32,
    /// lanes that have not exited
    pub(crate) live: u32,
    /// lanes at a barrier of the block
    pub(crate) blocked: u32,
    /// lanes that wait for other lanes of the warp
    pub(crate) waiting: u32,
    /// barrier that a blocked lane waits at, and how many threads it waits for (0: all)
    pub(crate) barrier: [(u32, u32); 32],
    /// some barrier of this block waits for a number of threads
    pub(crate) counted: bool,
    pub(crate) copies: AsyncCopies,
    /// local memory, lane by lane
    pub(crate) local: Vec<u8>,
    /// the instruction being executed
    pub(crate) at: u32,
}

impl Warp {
    pub(crate) fn new(kernel: &Kernel, index: usize) -> Warp {
        let mut regs = Registers {
            words: vec![Row([0; 32]); kernel.words as usize],
            longs: vec![Row([0; 32]); kernel.longs as usize],
            preds: vec![0; kernel.preds as usize],
            carry: 0,
        };
        for &(reg, value) in &kernel.word_constants {
            regs.words[reg as usize] = Row([value; 32]);
        }
        for &(reg, value) in &kernel.long_constants {
            regs.longs[reg as usize] = Row([value; 32]);
        }
        Warp {
            index,
            regs,
            pc: [0; 32],
            exists: 0,
            live: 0,
            blocked: 0,
            waiting: 0,
            barrier: [(0, 0); 32],
            counted: false,
            copies: AsyncCopies::default(),
            local: vec![0; kernel.local * 32],
            at: 0,
        }
    }

    /// Ready to run in a new block.
    pub(crate) fn start(&mut self, env: &Env, threads: usize) {
        self.pc = [0; 32];
        let count = (threads - self.index * 32).min(32);
        self.exists = if count == 32 { u32::MAX } else { (1 << count) - 1 };
        self.live = self.exists;
        (self.blocked, self.waiting, self.counted) = (0, 0, false);
        self.local.fill(0);
        self.copies.clear();
        // what nothing sets is zero, in every block and however many threads run them
        self.regs.preds.fill(0);
        self.regs.words[..env.kernel.plain_words as usize].fill(Row([0; 32]));
        self.regs.longs[..env.kernel.plain_longs as usize].fill(Row([0; 32]));
        for &(reg, special) in &env.kernel.specials {
            self.regs.words[reg as usize] = Row(std::array::from_fn(|lane| self.special(env, special, lane as u32)));
        }
    }

    fn special(&self, env: &Env, special: Special, lane: u32) -> u32 {
        let [x, y, _] = env.launch.block;
        let thread = self.index as u32 * 32 + lane;
        match special {
            Special::Tid(0) => thread % x,
            Special::Tid(1) => thread / x % y,
            Special::Tid(_) => thread / x / y,
            Special::Ntid(axis) => env.launch.block[axis as usize],
            Special::Ctaid(axis) => env.block_index[axis as usize],
            Special::Nctaid(axis) => env.launch.grid[axis as usize],
            Special::Laneid => lane,
            Special::Warpid => self.index as u32,
            Special::Nwarpid => 64,
            // blocks are spread over the processors of an A100
            Special::Smid => (env.block - 1) % 108,
            Special::Nsmid => 108,
            Special::Gridid => env.launch_id,
            Special::LanemaskEq => 1 << lane,
            Special::LanemaskLt => (1 << lane) - 1,
            Special::LanemaskLe => u32::MAX >> (31 - lane),
            Special::LanemaskGt => !(u32::MAX >> (31 - lane)),
            Special::LanemaskGe => u32::MAX << lane,
            Special::DynamicSmemSize => env.launch.dynamic_shared,
            Special::TotalSmemSize => env.shared.len() as u32,
            Special::Zero => 0,
        }
    }

    pub(crate) fn runnable(&self) -> u32 {
        self.live & !self.blocked & !self.waiting
    }

    fn set_pc(&mut self, lanes: u32, pc: u32) {
        for l in 0..32 {
            if lanes >> l & 1 != 0 {
                self.pc[l] = pc;
            }
        }
    }

    /// The runnable lanes with the lowest program counter, it, and the next lane's.
    fn select(&self, runnable: u32) -> (u32, u32, u32) {
        let lanes = || (0..32).filter(|l| runnable >> l & 1 != 0);
        let pc = lanes().map(|l| self.pc[l]).min().expect("a lane is runnable");
        let (mut group, mut limit) = (0, u32::MAX);
        for l in lanes() {
            if self.pc[l] == pc {
                group |= 1 << l;
            } else {
                limit = limit.min(self.pc[l]);
            }
        }
        (group, pc, limit)
    }

    /// Runs until no lane can go on, or the turn is over.
    pub(crate) fn run(&mut self, env: &mut Env) -> Result<(), Box<Fault>> {
        let kernel = env.kernel;
        let code = &kernel.code[..];
        let (mut executed, mut spent) = (0, 0);
        loop {
            let runnable = self.runnable();
            if runnable == 0 || executed >= TURN {
                env.spend(executed - spent)?;
                return if runnable == 0 { self.stuck(env) } else { Ok(()) };
            }
            let (m, mut pc, limit) = self.select(runnable);
            loop {
                if executed - spent >= SLICE {
                    self.at = pc;
                    env.spend(executed - spent)?;
                    spent = executed;
                }
                if pc >= limit || executed >= TURN {
                    self.set_pc(m, pc);
                    break;
                }
                let i = &code[pc as usize];
                executed += 1;
                let e = match i.guard {
                    NONE => m,
                    p => m & (self.regs.pred(p) ^ if i.negated { u32::MAX } else { 0 }),
                };
                if e == 0 {
                    pc += 1;
                    continue;
                }
                env.stats.thread_instructions += e.count_ones() as u64;
                self.at = pc;
                match i.op {
                    Op::Bra => {
                        if e == m {
                            pc = i.imm as u32;
                            continue;
                        }
                        self.set_pc(e, i.imm as u32);
                        self.set_pc(m & !e, pc + 1);
                        break;
                    }
                    Op::Ld(mem) => exec::memory::load(self, env, i, mem, e)?,
                    Op::St(mem) => exec::memory::store(self, env, i, mem, e)?,
                    Op::Nop | Op::Fence => {}
                    Op::Exit => {
                        self.live &= !e;
                        self.set_pc(m & !e, pc + 1);
                        break;
                    }
                    Op::BrxIdx => {
                        for l in (0..32).filter(|l| m >> l & 1 != 0) {
                            let index = self.regs.word(i.a)[l] as i64;
                            let jumps = e >> l & 1 != 0;
                            if jumps && index >= i.imm {
                                let message = format!("branch index {index} of {} targets", i.imm);
                                return Err(Fault::new(Kind::OutOfBounds, Some(l as u32), message));
                            }
                            self.pc[l] = if jumps { kernel.lists[i.list as usize + index as usize] } else { pc + 1 };
                        }
                        break;
                    }
                    Op::Atom(op, mem) => exec::memory::atomic(self, env, i, op, mem, e, true)?,
                    Op::Red(op, mem) => exec::memory::atomic(self, env, i, op, mem, e, false)?,
                    Op::CpAsync(n) => exec::copy::start(self, env, i, n as usize, e)?,
                    Op::CpCommit => self.copies.commit(e),
                    Op::CpWait => exec::copy::wait(self, env, i.imm as u32, e),
                    Op::CpWaitAll => {
                        self.copies.commit(e);
                        exec::copy::wait(self, env, 0, e);
                    }
                    Op::Mma(..)
                    | Op::MmaHalf(..)
                    | Op::Ldmatrix(..)
                    | Op::Stmatrix(..)
                    | Op::Movmatrix
                    | Op::Shfl(..)
                    | Op::Vote(..)
                    | Op::MatchAny(..)
                    | Op::MatchAll(..)
                    | Op::Redux(..)
                    | Op::Elect
                    | Op::BarWarp => {
                        if !exec::warp::together(self, env, i, pc, m, e)? {
                            break;
                        }
                    }
                    Op::ActiveMask => self.regs.set_word(i.dst, e, &[e; 32]),
                    Op::BarSync | Op::BarRed(..) => {
                        self.arrive(i, e)?;
                        self.set_pc(e, pc);
                        self.set_pc(m & !e, pc + 1);
                        break;
                    }
                    Op::BarArrive => env.arrive(self, i, e)?,
                    Op::Clock => self.regs.set_word(i.dst, e, &[env.clock() as u32; 32]),
                    Op::Clock64 | Op::GlobalTimer => {
                        let now = env.clock();
                        self.regs.set_long(i.dst, e, &[now; 32]);
                    }
                    Op::Trap => return Err(Fault::new(Kind::Trap, Some(e.trailing_zeros()), "trap".into())),
                    Op::AssertFail => {
                        let message = "a device assertion failed".into();
                        return Err(Fault::new(Kind::Trap, Some(e.trailing_zeros()), message));
                    }
                    _ => (env.alu)(i, &kernel.lists, &mut self.regs, e),
                }
                pc += 1;
            }
        }
    }

    /// Lanes arrive at a barrier of the block.
    fn arrive(&mut self, i: &Instr, e: u32) -> Result<(), Box<Fault>> {
        for l in (0..32).filter(|l| e >> l & 1 != 0) {
            let id = self.regs.word(i.a)[l];
            if id > 15 {
                return Err(Fault::new(Kind::Divergence, Some(l as u32), format!("barrier {id}: there are 16")));
            }
            let count = if i.b == NONE { 0 } else { self.regs.word(i.b)[l] };
            if count % 32 != 0 {
                let message = format!("barrier {id} for {count} threads: the number must be a multiple of 32");
                return Err(Fault::new(Kind::Divergence, Some(l as u32), message));
            }
            self.barrier[l] = (id, count);
            self.counted |= count != 0;
        }
        self.blocked |= e;
        Ok(())
    }

    /// No lane can run. That is wrong if some wait for others of their warp, which will not come.
    fn stuck(&mut self, env: &Env) -> Result<(), Box<Fault>> {
        if self.waiting == 0 {
            return Ok(());
        }
        let lane = self.waiting.trailing_zeros();
        let pc = self.pc[lane as usize];
        let group = (0..32).filter(|&l| self.waiting >> l & 1 != 0 && self.pc[l] == pc).fold(0, |g, l| g | 1u32 << l);
        let needed = exec::warp::members(&env.kernel.code[pc as usize], &self.regs, lane as usize) & self.exists;
        let missing = needed & !group;
        let other = missing.trailing_zeros();
        let elsewhere = if other < 32 && self.live >> other & 1 != 0 {
            format!("lane {other} is at {}", env.place(self.pc[other as usize]))
        } else {
            format!("lane {other} has exited")
        };
        let message = format!(
            "{} needs lanes {needed:#010x}, and only {group:#010x} reach it: {elsewhere}",
            exec::warp::name(&env.kernel.code[pc as usize].op)
        );
        self.at = pc;
        Err(Fault::new(Kind::Divergence, Some(lane), message))
    }
}
