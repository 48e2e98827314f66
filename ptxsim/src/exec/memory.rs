//! Loads, stores and atomics.

use super::access::{
    Checked, Lanes, Request, check_global, check_shared, from_slice, lanes, read, split, strip, to_slice, write,
};
use crate::block::Env;
use crate::checks::Access;
use crate::isa::*;
use crate::report::{Fault, Kind};
use crate::warp::Warp;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Addresses of all lanes.
#[inline(always)]
fn addresses(warp: &Warp, i: &Instr, mem: Mem) -> [u64; 32] {
    let mut at = [0; 32];
    if mem.wide {
        let base = warp.regs.long(i.a);
        for l in 0..32 {
            at[l] = base[l].wrapping_add(i.imm as u64);
        }
    } else {
        let base = warp.regs.word(i.a);
        for l in 0..32 {
            at[l] = base[l].wrapping_add(i.imm as u32) as u64;
        }
    }
    at
}

pub(crate) fn load(warp: &mut Warp, env: &mut Env, i: &Instr, mem: Mem, e: u32) -> Checked<()> {
    let at = addresses(warp, i, mem);
    let size = mem.ty.size();
    let access = if mem.strong { Access::StrongRead } else { Access::Read };
    let mut raw = [[0u32; 32]; 4];
    read(warp, env, mem.space, &at, Request { e, bytes: size * mem.n as usize, access }, &mut raw)?;
    for v in 0..mem.n as usize {
        let reg = env.kernel.lists[i.list as usize + v];
        let mut words = [0; 32];
        if size == 4 && !mem.long {
            warp.regs.set_word(reg, e, &raw[v & 3]);
        } else if mem.long {
            let mut longs = [0; 32];
            for l in 0..32 {
                longs[l] = element(&raw, l, v, mem.ty);
            }
            warp.regs.set_long(reg, e, &longs);
        } else {
            for l in 0..32 {
                words[l] = element(&raw, l, v, mem.ty) as u32;
            }
            warp.regs.set_word(reg, e, &words);
        }
    }
    Ok(())
}

/// Element `v` of a lane's vector, sign-extended if its type is signed.
#[inline(always)]
fn element(raw: &Lanes, l: usize, v: usize, ty: Type) -> u64 {
    let size = ty.size();
    if size == 8 {
        return raw[2 * v][l] as u64 | (raw[2 * v + 1][l] as u64) << 32;
    }
    let bit = 8 * size * v;
    let x = raw[bit / 32][l] >> (bit % 32);
    match ty {
        Type::S8 => x as i8 as u64,
        Type::S16 => x as i16 as u64,
        Type::S32 => x as i32 as u64,
        _ if size == 1 => x as u8 as u64,
        _ if size == 2 => x as u16 as u64,
        _ => x as u64,
    }
}

pub(crate) fn store(warp: &mut Warp, env: &mut Env, i: &Instr, mem: Mem, e: u32) -> Checked<()> {
    let at = addresses(warp, i, mem);
    let size = mem.ty.size();
    let access = if mem.strong { Access::StrongWrite } else { Access::Write };
    let mut raw = [[0u32; 32]; 4];
    for v in 0..mem.n as usize {
        let reg = env.kernel.lists[i.list as usize + v];
        if size == 8 {
            let x = warp.regs.long(reg);
            for l in 0..32 {
                raw[2 * v][l] = x[l] as u32;
                raw[2 * v + 1][l] = (x[l] >> 32) as u32;
            }
            continue;
        }
        let x: [u32; 32] = if mem.long { warp.regs.long(reg).map(|x| x as u32) } else { *warp.regs.word(reg) };
        if size == 4 {
            raw[v & 3] = x;
            continue;
        }
        let bit = 8 * size * v;
        let mask = (1 << (8 * size)) - 1;
        for l in 0..32 {
            raw[bit / 32][l] |= (x[l] & mask) << (bit % 32);
        }
    }
    write(warp, env, mem.space, &at, Request { e, bytes: size * mem.n as usize, access }, &raw)
}

/// The new value of an atomic operation.
fn apply(op: Atom, ty: Type, old: u64, x: u64, swap: u64) -> u64 {
    use super::float::{bits, bits64, d, f, half_fma};
    let long = ty.size() == 8;
    let signed = |v: u64| if long { v as i64 } else { v as i32 as i64 };
    match op {
        Atom::Add => match ty {
            Type::F32 => bits(f(old as u32) + f(x as u32)) as u64,
            Type::F64 => bits64(d(old) + d(x)),
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 => {
                let (h, one) = match ty {
                    Type::F16 | Type::F16x2 => (super::float::Half::F16, 0x3c00),
                    _ => (super::float::Half::Bf16, 0x3f80),
                };
                let (old, x) = (old as u32, x as u32);
                let low = half_fma(h, old & 0xffff, one, x & 0xffff);
                let high = if ty.size() == 4 { half_fma(h, old >> 16, one, x >> 16) } else { 0 };
                (low | high << 16) as u64
            }
            _ => old.wrapping_add(x),
        },
        Atom::Min if ty.is_signed() => {
            if signed(x) < signed(old) {
                x
            } else {
                old
            }
        }
        Atom::Max if ty.is_signed() => {
            if signed(x) > signed(old) {
                x
            } else {
                old
            }
        }
        Atom::Min => old.min(x),
        Atom::Max => old.max(x),
        Atom::And => old & x,
        Atom::Or => old | x,
        Atom::Xor => old ^ x,
        Atom::Exch => x,
        Atom::Cas => {
            if old == x {
                swap
            } else {
                old
            }
        }
        Atom::Inc => {
            if old >= x {
                0
            } else {
                old + 1
            }
        }
        Atom::Dec => {
            if old == 0 || old > x {
                x
            } else {
                old - 1
            }
        }
    }
}

pub(crate) fn atomic(
    warp: &mut Warp,
    env: &mut Env,
    i: &Instr,
    op: Atom,
    mem: Mem,
    e: u32,
    returns: bool,
) -> Checked<()> {
    let at = addresses(warp, i, mem);
    let bytes = mem.ty.size();
    let mask = if bytes == 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 };
    let value = |warp: &Warp, reg: u32, l: usize| match reg {
        NONE => 0,
        reg if mem.long => warp.regs.long(reg)[l],
        reg => warp.regs.word(reg)[l] as u64 & mask,
    };
    let q = Request { e, bytes, access: Access::Atomic };
    let mut old = [0u64; 32];
    for (space, e) in split_space(mem.space, &at, e) {
        let local = if mem.space == Space::Generic { strip(&at) } else { at };
        match space {
            Space::Global => {
                check_global(warp, env, &local, Request { e, ..q })?;
                for l in lanes(e) {
                    let (x, swap) = (value(warp, i.b, l), value(warp, i.c, l));
                    // SAFETY: checked above.
                    old[l] = unsafe { update(local[l], bytes, |old| apply(op, mem.ty, old, x, swap) & mask) };
                }
                env.stats.global_read += (bytes * e.count_ones() as usize) as u64;
                env.stats.global_written += (bytes * e.count_ones() as usize) as u64;
            }
            Space::Shared => {
                check_shared(warp, env, &local, Request { e, ..q })?;
                for l in lanes(e) {
                    let (x, swap) = (value(warp, i.b, l), value(warp, i.c, l));
                    let place = &mut env.shared[local[l] as usize..local[l] as usize + bytes];
                    let raw = from_slice(place);
                    old[l] = raw[0] as u64 | (raw[1] as u64) << 32;
                    let new = apply(op, mem.ty, old[l], x, swap) & mask;
                    to_slice([new as u32, (new >> 32) as u32, 0, 0], place);
                }
            }
            _ => {
                let message = "an atomic operation on local memory or parameters".to_string();
                return Err(Fault::new(Kind::OutOfBounds, Some(e.trailing_zeros()), message));
            }
        }
    }
    if returns {
        if mem.long {
            warp.regs.set_long(i.dst, e, &old);
        } else {
            warp.regs.set_word(i.dst, e, &old.map(|x| x as u32));
        }
    }
    Ok(())
}

fn split_space(space: Space, at: &[u64; 32], e: u32) -> Vec<(Space, u32)> {
    if space == Space::Generic { split(at, e).collect() } else { vec![(space, e)] }
}

/// Replaces a value in global memory atomically; gives the old one.
///
/// # Safety
/// As for [`fetch`].
unsafe fn update(address: u64, bytes: usize, f: impl Fn(u64) -> u64) -> u64 {
    let (set, get) = (Ordering::SeqCst, Ordering::SeqCst);
    // SAFETY: the caller's promise.
    unsafe {
        match bytes {
            8 => AtomicU64::from_ptr(address as *mut u64).fetch_update(set, get, |x| Some(f(x))).unwrap_or_else(|x| x),
            4 => AtomicU32::from_ptr(address as *mut u32)
                .fetch_update(set, get, |x| Some(f(x as u64) as u32))
                .unwrap_or_else(|x| x) as u64,
            _ => AtomicU16::from_ptr(address as *mut u16)
                .fetch_update(set, get, |x| Some(f(x as u64) as u16))
                .unwrap_or_else(|x| x) as u64,
        }
    }
}
