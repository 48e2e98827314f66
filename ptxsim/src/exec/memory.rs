//! Loads, stores, atomics, asynchronous copies, matrix loads.
//!
//! Global memory is accessed with relaxed atomics, so that a kernel's race is a report and not undefined behaviour of
//! this program.

use crate::block::Env;
use crate::checks::{Access, Who};
use crate::isa::*;
use crate::memory::Allocation;
use crate::report::{Fault, Kind};
use crate::warp::Warp;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

type Checked<T> = Result<T, Box<Fault>>;

/// Up to 16 bytes as words.
type Bytes = [u32; 4];

#[inline(always)]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        (left != 0).then(|| {
            let lane = left.trailing_zeros() as usize;
            left &= left - 1;
            lane
        })
    })
}

/// Addresses of all lanes.
#[inline(always)]
fn addresses(warp: &Warp, i: &Instr, mem: Mem) -> [u64; 32] {
    if mem.wide {
        warp.regs.long(i.a).map(|a| a.wrapping_add(i.imm as u64))
    } else {
        warp.regs.word(i.a).map(|a| a.wrapping_add(i.imm as u32) as u64)
    }
}

/// The space of a generic address and the address in it.
fn resolve(address: u64) -> (Space, u64) {
    if address & PARAM_WINDOW != 0 {
        (Space::Param, address & !PARAM_WINDOW)
    } else if address & LOCAL_WINDOW != 0 {
        (Space::Local, address & !LOCAL_WINDOW)
    } else if address & SHARED_WINDOW != 0 {
        (Space::Shared, address & !SHARED_WINDOW)
    } else {
        (Space::Global, address)
    }
}

#[cold]
fn misaligned(space: Space, address: u64, bytes: usize, lane: usize) -> Box<Fault> {
    let what =
        format!("{}access of {bytes} bytes at {address:#x}, which is not a multiple of {bytes}", space_name(space));
    Fault::new(Kind::Misaligned, Some(lane as u32), what)
}

fn space_name(space: Space) -> &'static str {
    match space {
        Space::Shared => "shared memory: ",
        Space::Local => "local memory: ",
        Space::Param => "parameters: ",
        _ => "",
    }
}

fn verb(write: bool) -> &'static str {
    if write { "write" } else { "read" }
}

// ----- raw access

/// # Safety
/// `address` is a multiple of `bytes` (1, 2, 4, 8 or 16), and that many bytes there belong to a live allocation.
#[inline(always)]
unsafe fn fetch(address: u64, bytes: usize) -> Bytes {
    // SAFETY: the caller's promise; all accesses of these bytes are atomic.
    unsafe {
        match bytes {
            4 => [AtomicU32::from_ptr(address as *mut u32).load(Ordering::Relaxed), 0, 0, 0],
            2 => [AtomicU16::from_ptr(address as *mut u16).load(Ordering::Relaxed) as u32, 0, 0, 0],
            1 => [AtomicU8::from_ptr(address as *mut u8).load(Ordering::Relaxed) as u32, 0, 0, 0],
            8 => {
                let x = AtomicU64::from_ptr(address as *mut u64).load(Ordering::Relaxed);
                [x as u32, (x >> 32) as u32, 0, 0]
            }
            _ => {
                let x = AtomicU64::from_ptr(address as *mut u64).load(Ordering::Relaxed);
                let y = AtomicU64::from_ptr((address + 8) as *mut u64).load(Ordering::Relaxed);
                [x as u32, (x >> 32) as u32, y as u32, (y >> 32) as u32]
            }
        }
    }
}

/// # Safety
/// As for [`fetch`].
#[inline(always)]
unsafe fn put(address: u64, bytes: usize, x: Bytes) {
    let long = |k: usize| x[k] as u64 | (x[k + 1] as u64) << 32;
    // SAFETY: the caller's promise; all accesses of these bytes are atomic.
    unsafe {
        match bytes {
            4 => AtomicU32::from_ptr(address as *mut u32).store(x[0], Ordering::Relaxed),
            2 => AtomicU16::from_ptr(address as *mut u16).store(x[0] as u16, Ordering::Relaxed),
            1 => AtomicU8::from_ptr(address as *mut u8).store(x[0] as u8, Ordering::Relaxed),
            8 => AtomicU64::from_ptr(address as *mut u64).store(long(0), Ordering::Relaxed),
            _ => {
                AtomicU64::from_ptr(address as *mut u64).store(long(0), Ordering::Relaxed);
                AtomicU64::from_ptr((address + 8) as *mut u64).store(long(2), Ordering::Relaxed);
            }
        }
    }
}

fn from_slice(x: &[u8]) -> Bytes {
    let mut bytes = [0; 16];
    bytes[..x.len()].copy_from_slice(x);
    std::array::from_fn(|k| u32::from_le_bytes([bytes[4 * k], bytes[4 * k + 1], bytes[4 * k + 2], bytes[4 * k + 3]]))
}

fn to_slice(x: Bytes, to: &mut [u8]) {
    let mut bytes = [0; 16];
    for k in 0..4 {
        bytes[4 * k..4 * k + 4].copy_from_slice(&x[k].to_le_bytes());
    }
    let n = to.len();
    to.copy_from_slice(&bytes[..n]);
}

// ----- checked access of one warp

/// What every lane of a warp reads or writes in one instruction.
#[derive(Clone, Copy)]
struct Request {
    /// lanes
    e: u32,
    bytes: usize,
    access: Access,
}

impl Request {
    fn writes(&self) -> bool {
        !matches!(self.access, Access::Read | Access::StrongRead | Access::WarpRead)
    }
}

/// Checks an access of global memory; afterwards every address of `e` may be accessed.
fn check_global(warp: &Warp, env: &mut Env, at: &[u64; 32], q: Request) -> Checked<()> {
    let bytes = q.bytes;
    let mut page: Option<(usize, usize, std::sync::MutexGuard<crate::checks::Page>)> = None;
    let who = env.who(warp.index, warp.at);
    for lane in lanes(q.e) {
        let address = at[lane];
        let index = match env.find(address, bytes) {
            Some(index) => index,
            None => return Err(outside(env, address, lane, q)),
        };
        if address & (bytes as u64 - 1) != 0 {
            return Err(misaligned(Space::Global, address, bytes, lane));
        }
        if !env.checks {
            continue;
        }
        let allocation = &env.allocations[index];
        let offset = (address - allocation.address) as usize;
        if q.writes() {
            if q.access == Access::StrongWrite && !allocation.is_written(offset, bytes) {
                // atomics read too
                return Err(unwritten(allocation, address, offset, lane, bytes));
            }
            allocation.mark_written(offset, bytes);
        } else if !allocation.is_written(offset, bytes) {
            return Err(unwritten(allocation, address, offset, lane, bytes));
        }
        let number = offset / crate::memory::PAGE;
        if !matches!(&page, Some((i, n, _)) if *i == index && *n == number) {
            // one lock at a time
            drop(page.take());
            let mut guard = allocation.pages[number].lock().unwrap_or_else(|e| e.into_inner());
            guard.enter(env.launch_id, crate::memory::PAGE, bytes);
            page = Some((index, number, guard));
        }
        let (_, _, cells) = page.as_mut().expect("just set");
        let who = Who { lane: lane as u8, ..who };
        if let Err(conflict) = cells.access::<false>(offset % crate::memory::PAGE, bytes, q.access, &who) {
            let place = format!("{address:#x}, {}", inside(allocation, offset));
            return Err(env.conflict(warp, lane, conflict, q.writes(), bytes, &place));
        }
    }
    Ok(())
}

fn inside(allocation: &Allocation, offset: usize) -> String {
    format!("byte {offset} of the allocation of {} bytes at {:#x}", allocation.bytes, allocation.address)
}

#[cold]
fn unwritten(a: &Arc<Allocation>, address: u64, offset: usize, lane: usize, bytes: usize) -> Box<Fault> {
    let first = a.first_unwritten(offset, bytes).unwrap_or(offset);
    let message = format!("read of {bytes} bytes at {address:#x}: nothing wrote {}", inside(a, first));
    Fault::new(Kind::Unwritten, Some(lane as u32), message)
}

#[cold]
fn outside(env: &Env, address: u64, lane: usize, q: Request) -> Box<Fault> {
    let why = env.memory.describe(address);
    let kind = if why.contains("null") {
        Kind::NullPointer
    } else if why.contains("freed") {
        Kind::FreedMemory
    } else {
        Kind::OutOfBounds
    };
    let message = format!("{} of {} bytes at {address:#x}: {why}", verb(q.writes()), q.bytes);
    Fault::new(kind, Some(lane as u32), message)
}

/// Checks an access of shared memory.
fn check_shared(warp: &Warp, env: &mut Env, at: &[u64; 32], q: Request) -> Checked<()> {
    let bytes = q.bytes;
    let size = env.shared.len() as u64;
    for lane in lanes(q.e) {
        let address = at[lane];
        if address & (bytes as u64 - 1) != 0 {
            return Err(misaligned(Space::Shared, address, bytes, lane));
        }
        if address + bytes as u64 > size {
            let message = format!(
                "{} of {bytes} bytes at {address} of the block's {size} bytes of shared memory",
                verb(q.writes())
            );
            return Err(Fault::new(Kind::OutOfBounds, Some(lane as u32), message));
        }
    }
    if env.checks {
        let (pages, who) = env.shared_pages(warp.index, warp.at);
        let mut failed = None;
        for lane in lanes(q.e) {
            let offset = at[lane] as usize;
            let page = &mut pages[offset / SHARED_PAGE];
            page.enter(1, SHARED_PAGE, bytes);
            let who = Who { lane: lane as u8, ..who };
            if let Err(conflict) = page.access::<true>(offset % SHARED_PAGE, bytes, q.access, &who) {
                failed = Some((lane, offset, conflict));
                break;
            }
        }
        if let Some((lane, offset, conflict)) = failed {
            let place = format!("byte {offset} of shared memory");
            return Err(env.conflict(warp, lane, conflict, q.writes(), bytes, &place));
        }
    }
    Ok(())
}

/// Bytes of shared memory of which one page of cells tells.
pub(crate) const SHARED_PAGE: usize = 256;

/// The range of a lane's local memory in the warp's.
fn local_range(warp: &Warp, size: usize, address: u64, bytes: usize, lane: usize, write: bool) -> Checked<usize> {
    if address % bytes as u64 != 0 {
        return Err(misaligned(Space::Local, address, bytes, lane));
    }
    if address + bytes as u64 > size as u64 || warp.local.is_empty() {
        let message =
            format!("{} of {bytes} bytes at {address} of the thread's {size} bytes of local memory", verb(write));
        return Err(Fault::new(Kind::OutOfBounds, Some(lane as u32), message));
    }
    Ok(lane * size + address as usize)
}

/// Reads `bytes` for each lane of `e`.
#[inline(always)]
fn read(
    warp: &mut Warp,
    env: &mut Env,
    space: Space,
    at: &[u64; 32],
    q: Request,
    out: &mut [Bytes; 32],
) -> Checked<()> {
    let bytes = q.bytes;
    match space {
        Space::Global | Space::Const => {
            check_global(warp, env, at, q)?;
            env.stats.global_read += bytes as u64 * q.e.count_ones() as u64;
            for lane in lanes(q.e) {
                // SAFETY: checked above.
                out[lane] = unsafe { fetch(at[lane], bytes) };
            }
        }
        Space::Shared => {
            check_shared(warp, env, at, q)?;
            for lane in lanes(q.e) {
                out[lane] = from_slice(&env.shared[at[lane] as usize..at[lane] as usize + bytes]);
            }
        }
        Space::Local => {
            for lane in lanes(q.e) {
                let start = local_range(warp, env.kernel.local, at[lane], bytes, lane, false)?;
                out[lane] = from_slice(&warp.local[start..start + bytes]);
            }
        }
        Space::Param => {
            for lane in lanes(q.e) {
                let start = at[lane] as usize;
                let Some(x) = env.params.get(start..start + bytes) else {
                    let message =
                        format!("read of {bytes} bytes at {start} of {} bytes of parameters", env.params.len());
                    return Err(Fault::new(Kind::OutOfBounds, Some(lane as u32), message));
                };
                out[lane] = from_slice(x);
            }
        }
        Space::Generic => {
            for (space, e) in split(at, q.e) {
                let local = at.map(|a| resolve(a).1);
                read(warp, env, space, &local, Request { e, ..q }, out)?;
            }
        }
    }
    Ok(())
}

fn write(warp: &mut Warp, env: &mut Env, space: Space, at: &[u64; 32], q: Request, x: &[Bytes; 32]) -> Checked<()> {
    let bytes = q.bytes;
    match space {
        Space::Global => {
            check_global(warp, env, at, q)?;
            env.stats.global_written += bytes as u64 * q.e.count_ones() as u64;
            for lane in lanes(q.e) {
                // SAFETY: checked above.
                unsafe { put(at[lane], bytes, x[lane]) };
            }
        }
        Space::Shared => {
            check_shared(warp, env, at, q)?;
            for lane in lanes(q.e) {
                to_slice(x[lane], &mut env.shared[at[lane] as usize..at[lane] as usize + bytes]);
            }
        }
        Space::Local => {
            for lane in lanes(q.e) {
                let start = local_range(warp, env.kernel.local, at[lane], bytes, lane, true)?;
                to_slice(x[lane], &mut warp.local[start..start + bytes]);
            }
        }
        Space::Generic => {
            for (space, e) in split(at, q.e) {
                let local = at.map(|a| resolve(a).1);
                write(warp, env, space, &local, Request { e, ..q }, x)?;
            }
        }
        Space::Param | Space::Const => {
            let message = "a write to parameters or constants".to_string();
            return Err(Fault::new(Kind::OutOfBounds, Some(q.e.trailing_zeros()), message));
        }
    }
    Ok(())
}

/// Lanes by the space of their generic address.
fn split(at: &[u64; 32], e: u32) -> impl Iterator<Item = (Space, u32)> {
    let of = |space: Space| lanes(e).filter(|&l| resolve(at[l]).0 == space).fold(0u32, |m, l| m | 1 << l);
    [Space::Global, Space::Shared, Space::Local, Space::Param].map(|s| (s, of(s))).into_iter().filter(|(_, e)| *e != 0)
}

// ----- instructions

pub(crate) fn load(warp: &mut Warp, env: &mut Env, i: &Instr, mem: Mem, e: u32) -> Checked<()> {
    let at = addresses(warp, i, mem);
    let size = mem.ty.size();
    let access = if mem.strong { Access::StrongRead } else { Access::Read };
    let mut raw = [[0u32; 4]; 32];
    read(warp, env, mem.space, &at, Request { e, bytes: size * mem.n as usize, access }, &mut raw)?;
    for v in 0..mem.n as usize {
        let reg = env.kernel.lists[i.list as usize + v];
        if size == 4 && !mem.long {
            let out = std::array::from_fn(|l| raw[l][v]);
            warp.regs.set_word(reg, e, &out);
        } else {
            let out: [u64; 32] = std::array::from_fn(|l| element(&raw[l], v, mem.ty));
            if mem.long {
                warp.regs.set_long(reg, e, &out);
            } else {
                warp.regs.set_word(reg, e, &out.map(|x| x as u32));
            }
        }
    }
    Ok(())
}

/// Element `v` of a vector, sign-extended if its type is signed.
#[inline(always)]
fn element(raw: &Bytes, v: usize, ty: Type) -> u64 {
    let size = ty.size();
    if size == 8 {
        return raw[2 * v] as u64 | (raw[2 * v + 1] as u64) << 32;
    }
    let bit = 8 * size * v;
    let x = raw[bit / 32] >> (bit % 32);
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
    let mut raw = [[0u32; 4]; 32];
    for v in 0..mem.n as usize {
        let reg = env.kernel.lists[i.list as usize + v];
        if size == 8 {
            let x = warp.regs.long(reg);
            for l in 0..32 {
                raw[l][2 * v] = x[l] as u32;
                raw[l][2 * v + 1] = (x[l] >> 32) as u32;
            }
            continue;
        }
        let x: [u32; 32] = if mem.long { warp.regs.long(reg).map(|x| x as u32) } else { *warp.regs.word(reg) };
        let bit = 8 * size * v;
        let mask = if size == 4 { u32::MAX } else { (1 << (8 * size)) - 1 };
        for l in 0..32 {
            raw[l][bit / 32] |= (x[l] & mask) << (bit % 32);
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
    let q = Request { e, bytes, access: Access::StrongWrite };
    let mut old = [0u64; 32];
    for (space, e) in split_space(mem.space, &at, e) {
        let local = if mem.space == Space::Generic { at.map(|a| resolve(a).1) } else { at };
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

// ----- asynchronous copies

struct Copy {
    lane: u8,
    /// the lane's group that this belongs to
    group: u32,
    to: u32,
    bytes: u8,
    data: Bytes,
}

/// Asynchronous copies of a warp that are under way. The source is read when a copy starts, the destination written
/// when it is waited for: so code that does not wait gets the old bytes.
#[derive(Default)]
pub(crate) struct AsyncCopies {
    open: Vec<Copy>,
    /// groups that each lane committed
    committed: [u32; 32],
}

impl AsyncCopies {
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.committed = [0; 32];
    }

    pub(crate) fn commit(&mut self, e: u32) {
        for lane in lanes(e) {
            self.committed[lane] += 1;
        }
    }
}

pub(crate) fn copy_start(warp: &mut Warp, env: &mut Env, i: &Instr, bytes: usize, e: u32) -> Checked<()> {
    // a predicate that is true copies nothing but zeros
    let ignored = if i.c == NONE { 0 } else { warp.regs.pred(i.c) };
    let from_offset = env.kernel.lists[i.list as usize] as i32 as i64 as u64;
    let from = warp.regs.long(i.a).map(|a| a.wrapping_add(from_offset));
    let to = warp.regs.word(i.dst).map(|a| a.wrapping_add(i.imm as u32) as u64);
    let sizes: [usize; 32] = match i.b {
        NONE => [bytes; 32],
        reg => warp.regs.word(reg).map(|n| n as usize),
    };
    let mut data = [[0u32; 4]; 32];
    let mut whole = 0;
    for lane in lanes(e & !ignored) {
        let from = from[lane];
        if sizes[lane] == bytes {
            whole |= 1 << lane;
        } else if sizes[lane] > bytes {
            let message = format!("cp.async of {} bytes from the source into {bytes}", sizes[lane]);
            return Err(Fault::new(Kind::OutOfBounds, Some(lane as u32), message));
        } else {
            // part of the source, a byte at a time
            let mut part = [0u8; 16];
            for (k, byte) in part.iter_mut().enumerate().take(sizes[lane]) {
                let mut at = [0; 32];
                at[lane] = from + k as u64;
                let mut out = [[0; 4]; 32];
                read(
                    warp,
                    env,
                    Space::Global,
                    &at,
                    Request { e: 1 << lane, bytes: 1, access: Access::Read },
                    &mut out,
                )?;
                *byte = out[lane][0] as u8;
            }
            data[lane] = from_slice(&part);
        }
    }
    if whole != 0 {
        read(warp, env, Space::Global, &from, Request { e: whole, bytes, access: Access::Read }, &mut data)?;
    }
    check_shared(warp, env, &to, Request { e, bytes, access: Access::AsyncStart })?;
    for lane in lanes(e) {
        let group = warp.copies.committed[lane];
        let copy = Copy { lane: lane as u8, group, to: to[lane] as u32, bytes: bytes as u8, data: data[lane] };
        warp.copies.open.push(copy);
    }
    Ok(())
}

/// `wait_group n`: all groups of a lane but its last `n` are done.
pub(crate) fn copy_wait(warp: &mut Warp, env: &mut Env, n: u32, e: u32) {
    let mut open = std::mem::take(&mut warp.copies.open);
    let committed = &warp.copies.committed;
    let index = warp.index;
    open.retain(|copy| {
        let lane = copy.lane as usize;
        let done = e >> lane & 1 != 0 && copy.group + n < committed[lane];
        if done {
            let (start, bytes) = (copy.to as usize, copy.bytes as usize);
            to_slice(copy.data, &mut env.shared[start..start + bytes]);
            if env.checks {
                let (pages, who) = env.shared_pages(index, 0);
                let who = Who { lane: copy.lane, ..who };
                // ending a copy conflicts with nothing
                let _ = pages[start / SHARED_PAGE].access::<true>(start % SHARED_PAGE, bytes, Access::AsyncEnd, &who);
            }
        }
        !done
    });
    warp.copies.open = open;
}

// ----- matrices

/// Rows of 8 × 8 matrices of 16-bit elements, their addresses from lanes 0-7, 8-15, ...
fn rows(warp: &Warp, i: &Instr) -> [u64; 32] {
    if i.dst2 != 0 {
        warp.regs.long(i.a).map(|a| a.wrapping_add(i.imm as u64) & !SHARED_WINDOW)
    } else {
        warp.regs.word(i.a).map(|a| a.wrapping_add(i.imm as u32) as u64)
    }
}

pub(crate) fn ldmatrix(warp: &mut Warp, env: &mut Env, i: &Instr, n: usize, trans: bool) -> Checked<()> {
    let at = rows(warp, i);
    let e = if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 };
    let mut raw = [[0u32; 4]; 32];
    read(warp, env, Space::Shared, &at, Request { e, bytes: 16, access: Access::WarpRead }, &mut raw)?;
    for q in 0..n {
        let matrix = &raw[8 * q..8 * q + 8];
        let out: [u32; 32] = if trans {
            std::array::from_fn(|l| {
                let (column, row) = (l / 4, l % 4 * 2);
                let get = |row: usize| matrix[row][column / 2] >> (column % 2 * 16) & 0xffff;
                get(row) | get(row + 1) << 16
            })
        } else {
            std::array::from_fn(|l| matrix[l / 4][l % 4])
        };
        warp.regs.set_word(env.kernel.lists[i.list as usize + q], u32::MAX, &out);
    }
    Ok(())
}

pub(crate) fn stmatrix(warp: &mut Warp, env: &mut Env, i: &Instr, n: usize, trans: bool) -> Checked<()> {
    let at = rows(warp, i);
    let e = if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 };
    let mut raw = [[0u32; 4]; 32];
    for q in 0..n {
        let x = warp.regs.word(env.kernel.lists[i.list as usize + q]);
        for l in 0..32 {
            if trans {
                let (column, row) = (l / 4, l % 4 * 2);
                raw[8 * q + row][column / 2] |= (x[l] & 0xffff) << (column % 2 * 16);
                raw[8 * q + row + 1][column / 2] |= (x[l] >> 16) << (column % 2 * 16);
            } else {
                raw[8 * q + l / 4][l % 4] = x[l];
            }
        }
    }
    write(warp, env, Space::Shared, &at, Request { e, bytes: 16, access: Access::Write }, &raw)
}
