//! Operations between the lanes of a warp.

use super::lanes::{Registers, mask_of};
use super::{matrix, tile};
use crate::block::Env;
use crate::isa::*;
use crate::report::{Fault, Kind};
use crate::warp::Warp;

/// The lanes that must execute an instruction together with a lane.
pub(crate) fn members(i: &Instr, r: &Registers, lane: usize) -> u32 {
    match i.op {
        Op::Shfl(_) | Op::Vote(_) | Op::MatchAny(_) | Op::MatchAll(_) | Op::BarWarp => r.word(i.d)[lane],
        Op::Redux(..) => r.word(i.b)[lane],
        Op::Elect => r.word(i.a)[lane],
        _ => u32::MAX,
    }
}

/// Do all lanes name all lanes?
#[inline(always)]
fn named_by_all(i: &Instr, r: &Registers) -> bool {
    let row = match i.op {
        Op::Shfl(_) | Op::Vote(_) | Op::MatchAny(_) | Op::MatchAll(_) | Op::BarWarp => i.d,
        Op::Redux(..) => i.b,
        Op::Elect => i.a,
        _ => return true,
    };
    r.word(row).iter().fold(u32::MAX, |all, mask| all & mask) == u32::MAX
}

/// What a report calls the operation.
pub(crate) fn name(op: &Op) -> &'static str {
    match op {
        Op::Shfl(_) => "shfl.sync",
        Op::Vote(_) => "vote.sync",
        Op::MatchAny(_) | Op::MatchAll(_) => "match.sync",
        Op::Redux(..) => "redux.sync",
        Op::Elect => "elect.sync",
        Op::BarWarp => "bar.warp.sync",
        Op::Ldmatrix(..) => "ldmatrix",
        Op::Stmatrix(..) => "stmatrix",
        Op::Movmatrix => "movmatrix",
        _ => "mma",
    }
}

/// Lanes `e` of the running group `m` arrive. Executes the instruction for each set of lanes that is complete and makes
/// the others wait. True if the whole group goes on to the next instruction.
pub(crate) fn together(warp: &mut Warp, env: &mut Env, i: &Instr, pc: u32, m: u32, e: u32) -> Result<bool, Box<Fault>> {
    // the usual case: all lanes are here and name all lanes
    if e == u32::MAX && named_by_all(i, &warp.regs) {
        execute(warp, env, i, e)?;
        return Ok(true);
    }
    let code = &env.kernel.code;
    // a barrier of the warp joins lanes at different instructions
    let same = |at: u32| at == pc || (i.op == Op::BarWarp && code[at as usize].op == Op::BarWarp);
    let held = mask_of(|l| warp.waiting >> l & 1 != 0 && same(warp.pc[l]));
    let mut todo = e | held;
    let mut done = 0;
    while todo != 0 {
        let first = todo.trailing_zeros() as usize;
        let of = |l: usize| {
            let at = if held >> l & 1 != 0 { &code[warp.pc[l] as usize] } else { i };
            members(at, &warp.regs, l)
        };
        let mask = of(first);
        let group = mask_of(|l| todo >> l & 1 != 0 && of(l) == mask);
        todo &= !group;
        let lane = Some(first as u32);
        if group & !mask != 0 {
            let lane = (group & !mask).trailing_zeros();
            let message =
                format!("{} with mask {mask:#010x}, which does not name lane {lane} that runs it", name(&i.op));
            return Err(Fault::new(Kind::Divergence, Some(lane), message));
        }
        let needed = mask & warp.exists;
        if needed & !warp.live != 0 {
            let gone = (needed & !warp.live).trailing_zeros();
            let message = format!("{} with mask {mask:#010x}, but lane {gone} has exited", name(&i.op));
            return Err(Fault::new(Kind::Divergence, lane, message));
        }
        let whole = !matches!(
            i.op,
            Op::Shfl(_) | Op::Vote(_) | Op::MatchAny(_) | Op::MatchAll(_) | Op::BarWarp | Op::Redux(..) | Op::Elect
        );
        if whole && warp.exists != u32::MAX {
            let message = format!("{} needs a whole warp; this one has lanes {:#010x}", name(&i.op), warp.exists);
            return Err(Fault::new(Kind::Divergence, lane, message));
        }
        if group == needed {
            execute(warp, env, i, group)?;
            done |= group;
        } else {
            let new = group & e;
            warp.waiting |= new;
            for l in (0..32).filter(|l| new >> l & 1 != 0) {
                warp.pc[l] = pc;
            }
        }
    }
    if done == e && held & done == 0 {
        return Ok(true);
    }
    for l in 0..32 {
        let bit = 1u32 << l;
        if done & bit != 0 {
            let at = if held & bit != 0 { warp.pc[l] } else { pc };
            warp.pc[l] = at + 1;
        } else if m & !e & bit != 0 {
            warp.pc[l] = pc + 1;
        }
    }
    warp.waiting &= !done;
    Ok(false)
}

fn execute(warp: &mut Warp, env: &mut Env, i: &Instr, e: u32) -> Result<(), Box<Fault>> {
    let lanes = || (0..32usize).filter(move |l| e >> l & 1 != 0);
    let r = &mut warp.regs;
    match i.op {
        Op::Mma(..) | Op::MmaHalf(..) => {
            env.stats.mma += 1;
            (env.alu)(i, &env.kernel.lists, r, e);
        }
        Op::Ldmatrix(n, trans) => return tile::ldmatrix(warp, env, i, n as usize, trans),
        Op::Stmatrix(n, trans) => return tile::stmatrix(warp, env, i, n as usize, trans),
        Op::Movmatrix => matrix::transpose(i, r),
        Op::Shfl(mode) => {
            let (a, b, c) = (*r.word(i.a), *r.word(i.b), *r.word(i.c));
            let mut out = a;
            let mut valid = 0;
            let mut absent = None;
            for l in 0..32u32 {
                let (by, clamp) = (b[l as usize] & 31, c[l as usize]);
                let segment = clamp >> 8 & 31;
                let low = l & segment;
                let high = low | (clamp & 31 & !segment);
                let (from, ok) = match mode {
                    Shuffle::Up => (l.wrapping_sub(by), l as i32 - by as i32 >= high as i32),
                    Shuffle::Down => (l + by, l + by <= high),
                    Shuffle::Bfly => (l ^ by, l ^ by <= high),
                    Shuffle::Idx => (low | (by & !segment), low | (by & !segment) <= high),
                };
                if ok {
                    out[l as usize] = a[from as usize & 31];
                    valid |= 1 << l;
                    if e >> l & 1 != 0 && e >> from & 1 == 0 {
                        absent = absent.or(Some((l, from)));
                    }
                }
            }
            if let Some((lane, from)) = absent {
                let message = format!("shfl.sync reads lane {from}, which does not take part ({e:#010x} do)");
                return Err(Fault::new(Kind::Divergence, Some(lane), message));
            }
            r.set_word(i.dst, e, &out);
            if i.dst2 != NONE {
                r.set_pred(i.dst2, e, valid);
            }
        }
        Op::Vote(kind) => {
            let x = r.condition(i) & e;
            let all = if x == e { u32::MAX } else { 0 };
            match kind {
                Vote::Ballot => r.set_word(i.dst, e, &[x; 32]),
                Vote::All => r.set_pred(i.dst, e, all),
                Vote::Any => r.set_pred(i.dst, e, if x != 0 { u32::MAX } else { 0 }),
                Vote::Uni => r.set_pred(i.dst, e, if x == 0 { u32::MAX } else { all }),
            }
        }
        Op::MatchAny(long) | Op::MatchAll(long) => {
            let a: [u64; 32] = std::array::from_fn(|l| if long { r.long(i.a)[l] } else { r.word(i.a)[l] as u64 });
            let equal = |l: usize| mask_of(|k| a[k] == a[l]) & e;
            if matches!(i.op, Op::MatchAny(_)) {
                r.set_word(i.dst, e, &std::array::from_fn(equal));
            } else {
                let all = equal(e.trailing_zeros() as usize) == e;
                r.set_word(i.dst, e, &[if all { e } else { 0 }; 32]);
                if i.dst2 != NONE {
                    r.set_pred(i.dst2, e, if all { u32::MAX } else { 0 });
                }
            }
        }
        Op::Redux(op, ty) => {
            let a = *r.word(i.a);
            let signed = ty == Type::S32;
            let join = |x: u32, y: u32| match op {
                Atom::Add => x.wrapping_add(y),
                Atom::Min if signed => (x as i32).min(y as i32) as u32,
                Atom::Max if signed => (x as i32).max(y as i32) as u32,
                Atom::Min => x.min(y),
                Atom::Max => x.max(y),
                Atom::And => x & y,
                Atom::Or => x | y,
                _ => x ^ y,
            };
            let result = lanes().map(|l| a[l]).reduce(join).unwrap_or(0);
            r.set_word(i.dst, e, &[result; 32]);
        }
        Op::Elect => {
            let leader = e.trailing_zeros();
            r.set_word(i.dst, e, &[leader; 32]);
            if i.dst2 != NONE {
                r.set_pred(i.dst2, e, 1 << leader);
            }
        }
        // all lanes of the warp, or some
        Op::BarWarp if e == warp.live => env.order.warp_barrier(warp.index),
        Op::BarWarp => env.order.lane_barrier(warp.index, e),
        _ => unreachable!("{:?} is executed elsewhere", i.op),
    }
    Ok(())
}
