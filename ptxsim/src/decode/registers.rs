//! Register allocation. nvcc gives each value a register of its own; here those whose lifetimes do not overlap share
//! one, so that a warp's registers stay in the cache.
//!
//! Lanes are independent threads with a slot each in every register, so the lifetimes of one thread's path are all that
//! matters, however a warp diverges.

use super::Class;
use crate::isa::{Instr, NONE, Op};
use crate::kernel::Kernel;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

const CLASS_SHIFT: u32 = 30;
const INDEX: u32 = (1 << CLASS_SHIFT) - 1;

/// A register while a kernel is decoded: its class above its number.
pub(super) fn tag(class: Class, index: u32) -> u32 {
    (class as u32) << CLASS_SHIFT | index
}

fn class_of(reg: u32) -> usize {
    (reg >> CLASS_SHIFT) as usize
}

/// How many entries of an instruction's list are written, then how many are read.
fn listed(op: Op) -> (usize, usize) {
    use crate::isa::{Shape, Type};
    match op {
        Op::Ld(mem) => (mem.n as usize, 0),
        Op::St(mem) => (0, mem.n as usize),
        Op::Pack(n, _) => (0, n as usize),
        Op::Unpack(n, _) => (n as usize, 0),
        Op::Ldmatrix(n, _) => (n as usize, 0),
        Op::Stmatrix(n, _) => (0, n as usize),
        Op::Mma(Shape::M16n8k16, _) | Op::Mma(Shape::M16n8k8, Type::Tf32) => (4, 10),
        Op::Mma(..) => (4, 7),
        Op::MmaHalf(Shape::M16n8k16) => (2, 8),
        Op::MmaHalf(_) => (2, 5),
        _ => (0, 0),
    }
}

/// Calls `f` with each register of an instruction and whether it is written.
fn visit(i: &Instr, lists: &[u32], mut f: impl FnMut(u32, bool)) {
    for reg in [i.guard, i.a, i.b, i.c, i.d] {
        if reg != NONE {
            f(reg, false);
        }
    }
    let (writes, reads) = listed(i.op);
    let list = &lists[i.list as usize..];
    for &reg in &list[writes..writes + reads] {
        f(reg, false);
    }
    for &reg in &list[..writes] {
        f(reg, true);
    }
    for reg in [i.dst, i.dst2] {
        if reg != NONE {
            f(reg, true);
        }
    }
}

/// Stretches of instructions that are entered at their start and left at their end.
struct Blocks {
    starts: Vec<usize>,
    next: Vec<Vec<usize>>,
}

impl Blocks {
    fn new(kernel: &Kernel) -> Blocks {
        let code = &kernel.code;
        let targets = |i: &Instr| -> Vec<usize> {
            match i.op {
                Op::Bra => vec![i.imm as usize],
                Op::BrxIdx => kernel.lists[i.list as usize..][..i.imm as usize].iter().map(|&t| t as usize).collect(),
                _ => vec![],
            }
        };
        let ends = |i: &Instr| matches!(i.op, Op::Bra | Op::BrxIdx | Op::Exit);
        let mut leader = vec![false; code.len() + 1];
        leader[0] = true;
        for (at, i) in code.iter().enumerate() {
            for target in targets(i) {
                leader[target] = true;
            }
            leader[at + 1] |= ends(i);
        }
        let starts: Vec<usize> = (0..code.len()).filter(|&at| leader[at]).collect();
        let block_at = |at: usize| starts.binary_search(&at).ok();
        let next = (0..starts.len())
            .map(|b| {
                let last = starts.get(b + 1).copied().unwrap_or(code.len()) - 1;
                let i = &code[last];
                let mut next: Vec<usize> = targets(i).into_iter().filter_map(block_at).collect();
                if !ends(i) || i.guard != NONE {
                    next.extend(block_at(last + 1));
                }
                next
            })
            .collect();
        Blocks { starts, next }
    }
}

/// Bits of registers.
#[derive(Clone, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn new(n: usize) -> Set {
        Set(vec![0; n.div_ceil(64)])
    }

    fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn remove(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.0
            .iter()
            .enumerate()
            .flat_map(|(w, &bits)| (0..64).filter(move |b| bits >> b & 1 != 0).map(move |b| w * 64 + b))
    }
}

/// Replaces the tagged registers of a kernel by few, untagged ones.
pub(super) fn allocate(kernel: &mut Kernel) {
    let counts = [kernel.preds, kernel.words, kernel.longs];
    let base = [0, counts[0], counts[0] + counts[1]];
    let total = counts.iter().sum::<u32>() as usize;
    let flat = |reg: u32| (base[class_of(reg)] + (reg & INDEX)) as usize;
    let intervals = lifetimes(kernel, total, &flat);

    // what holds constants or special values keeps its register
    let fixed: HashSet<usize> = (kernel.word_constants.iter().map(|c| c.0))
        .chain(kernel.long_constants.iter().map(|c| c.0))
        .chain(kernel.specials.iter().map(|s| s.0))
        .map(flat)
        .collect();
    let mut place = vec![0u32; total];
    let mut used = [0u32; 3];
    let mut plain = [0u32; 3];
    for class in 0..3 {
        let range = base[class] as usize..(base[class] + counts[class]) as usize;
        let mut order: Vec<usize> =
            range.clone().filter(|r| !fixed.contains(r) && intervals[*r].0 <= intervals[*r].1).collect();
        order.sort_by_key(|&r| intervals[r]);
        let mut active = BinaryHeap::new();
        let mut free = BinaryHeap::new();
        for r in order {
            let (start, end) = intervals[r];
            while let Some(&Reverse((ends, reg))) = active.peek()
                && ends < start
            {
                active.pop();
                free.push(Reverse(reg));
            }
            let reg = match free.pop() {
                Some(Reverse(reg)) => reg,
                None => {
                    used[class] += 1;
                    used[class] - 1
                }
            };
            place[r] = reg;
            active.push(Reverse((end, reg)));
        }
        plain[class] = used[class];
        for r in range.filter(|r| fixed.contains(r)) {
            place[r] = used[class];
            used[class] += 1;
        }
    }

    let map = |reg: &mut u32| {
        if *reg != NONE {
            *reg = place[flat(*reg)];
        }
    };
    for i in &mut kernel.code {
        let (writes, reads) = listed(i.op);
        let start = i.list as usize;
        for reg in &mut kernel.lists[start..start + writes + reads] {
            map(reg);
        }
        for reg in [&mut i.guard, &mut i.dst, &mut i.dst2, &mut i.a, &mut i.b, &mut i.c, &mut i.d] {
            map(reg);
        }
    }
    kernel.word_constants.iter_mut().for_each(|c| map(&mut c.0));
    kernel.long_constants.iter_mut().for_each(|c| map(&mut c.0));
    kernel.specials.iter_mut().for_each(|s| map(&mut s.0));
    [kernel.preds, kernel.words, kernel.longs] = used;
    [_, kernel.plain_words, kernel.plain_longs] = plain;
}

/// First and last position of each register at which it is alive; an instruction reads at twice its index and writes
/// one later. What is never used has a start after its end.
fn lifetimes(kernel: &Kernel, total: usize, flat: &impl Fn(u32) -> usize) -> Vec<(usize, usize)> {
    let blocks = Blocks::new(kernel);
    let count = blocks.starts.len();
    let range = |b: usize| blocks.starts[b]..blocks.starts.get(b + 1).copied().unwrap_or(kernel.code.len());
    // backwards through a block: a write without a predicate ends what was alive, a read begins it
    let step = |alive: &mut Set, i: &Instr| {
        visit(i, &kernel.lists, |reg, written| {
            if written && i.guard == NONE {
                alive.remove(flat(reg));
            }
        });
        visit(i, &kernel.lists, |reg, written| {
            if !written {
                alive.insert(flat(reg));
            }
        });
    };
    let mut alive_in = vec![Set::new(total); count];
    let alive_out = |alive_in: &[Set], b: usize| {
        let mut out = Set::new(total);
        for &n in &blocks.next[b] {
            for (x, y) in out.0.iter_mut().zip(&alive_in[n].0) {
                *x |= y;
            }
        }
        out
    };
    loop {
        let mut changed = false;
        for b in (0..count).rev() {
            let mut alive = alive_out(&alive_in, b);
            for at in range(b).rev() {
                step(&mut alive, &kernel.code[at]);
            }
            if alive != alive_in[b] {
                alive_in[b] = alive;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let mut intervals = vec![(usize::MAX, 0); total];
    let mut extend = |reg: usize, at: usize| {
        let (start, end) = &mut intervals[reg];
        *start = (*start).min(at);
        *end = (*end).max(at);
    };
    for b in 0..count {
        let range = range(b);
        for reg in alive_in[b].iter() {
            extend(reg, 2 * range.start);
        }
        for reg in alive_out(&alive_in, b).iter() {
            extend(reg, 2 * range.end - 1);
        }
        for at in range {
            visit(&kernel.code[at], &kernel.lists, |reg, written| extend(flat(reg), 2 * at + written as usize));
        }
    }
    intervals
}
