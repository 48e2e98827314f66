//! Checked access to memory by the lanes of a warp.
//!
//! Global memory is accessed with relaxed atomics, so that a kernel's race is a report and not undefined behaviour of
//! this program.

use crate::block::Env;
use crate::checks::{Access, Page};
use crate::isa::*;
use crate::memory::{Allocation, PAGE};
use crate::report::{Fault, Kind};
use crate::warp::Warp;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

pub(super) type Checked<T> = Result<T, Box<Fault>>;

/// Up to 16 bytes as words.
pub(super) type Bytes = [u32; 4];

/// Up to 16 bytes for each lane: the first word of all lanes, then the second, ...
pub(super) type Lanes = [[u32; 32]; 4];

/// Bytes of shared memory of which one page of cells tells.
pub(crate) const SHARED_PAGE: usize = 256;

/// What every lane of a warp reads or writes in one instruction.
#[derive(Clone, Copy)]
pub(super) struct Request {
    /// lanes
    pub(super) e: u32,
    pub(super) bytes: usize,
    pub(super) access: Access,
}

impl Request {
    #[inline(always)]
    fn writes(&self) -> bool {
        !matches!(self.access, Access::Read | Access::StrongRead | Access::WarpRead)
    }
}

#[inline(always)]
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        (left != 0).then(|| {
            let lane = left.trailing_zeros() as usize;
            left &= left - 1;
            lane
        })
    })
}

/// The space of a generic address and the address in it.
pub(super) fn resolve(address: u64) -> (Space, u64) {
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

const WINDOWS: u64 = PARAM_WINDOW | LOCAL_WINDOW | SHARED_WINDOW;

/// Lanes by the space of their generic address; mostly all are in one.
pub(super) fn split(at: &[u64; 32], e: u32) -> impl Iterator<Item = (Space, u32)> {
    let first = at[e.trailing_zeros() as usize & 31] & WINDOWS;
    let mut same = 0;
    for l in 0..32 {
        same |= ((at[l] & WINDOWS == first) as u32) << l;
    }
    let one = (same & e == e).then(|| (resolve(first).0, e));
    let of = move |space: Space| lanes(e).filter(|&l| resolve(at[l]).0 == space).fold(0u32, |m, l| m | 1 << l);
    let several = [Space::Global, Space::Shared, Space::Local, Space::Param].into_iter();
    let several = several.filter(move |_| one.is_none()).map(move |s| (s, of(s))).filter(|(_, e)| *e != 0);
    one.into_iter().chain(several)
}

/// Generic addresses as addresses in their space.
#[inline(always)]
pub(super) fn strip(at: &[u64; 32]) -> [u64; 32] {
    let mut inner = [0; 32];
    for l in 0..32 {
        inner[l] = at[l] & !WINDOWS;
    }
    inner
}

fn verb(write: bool) -> &'static str {
    if write { "write" } else { "read" }
}

/// The lowest and highest address of lanes, and the bits that any of them has.
#[inline(always)]
fn span(at: &[u64; 32], e: u32) -> (u64, u64, u64) {
    let (mut low, mut high, mut bits) = (u64::MAX, 0, 0);
    for l in 0..32 {
        let active = e >> l & 1 != 0;
        low = low.min(if active { at[l] } else { u64::MAX });
        high = high.max(if active { at[l] } else { 0 });
        bits |= if active { at[l] } else { 0 };
    }
    (low, high, bits)
}

/// The lanes whose word is `x`.
#[inline(always)]
fn equal_words(words: &[u32; 32], x: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        let mut mask = 0;
        for k in 0..8 {
            // SAFETY: SSE2 is part of x86_64, and 4 words from 4 * k on are in the array.
            let bits = unsafe {
                let four = _mm_loadu_si128(words.as_ptr().add(4 * k).cast());
                _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(four, _mm_set1_epi32(x as i32))))
            };
            mask |= (bits as u32) << (4 * k);
        }
        mask
    }
    #[cfg(not(target_arch = "x86_64"))]
    super::lanes::mask_of(|l| words[l] == x)
}

/// Lanes that read the same address, which is recorded once for all of them.
struct Groups {
    /// the first lane of each group
    leaders: u32,
    /// of each leader, if there are groups of more than one
    members: Option<[u32; 32]>,
}

impl Groups {
    /// `near`: no two addresses differ in their upper halves alone.
    #[inline(always)]
    fn new(at: &[u64; 32], q: Request, near: bool) -> Groups {
        // where a value is read by many lanes, it is so for these
        let likely = q.e == u32::MAX && [1, 4, 8, 16].iter().any(|&l| at[0] == at[l]);
        if q.access == Access::Read && near && likely { Groups::find(at) } else { Groups::single(q.e) }
    }

    fn single(e: u32) -> Groups {
        Groups { leaders: e, members: None }
    }

    #[inline(never)]
    fn find(at: &[u64; 32]) -> Groups {
        let mut words = [0; 32];
        for l in 0..32 {
            words[l] = at[l] as u32;
        }
        let (mut leaders, mut members, mut left) = (0, [0; 32], u32::MAX);
        while left != 0 {
            let lane = left.trailing_zeros();
            let group = equal_words(&words, words[lane as usize]);
            leaders |= 1 << lane;
            members[lane as usize] = group;
            left &= !group;
        }
        Groups { leaders, members: Some(members) }
    }

    #[inline(always)]
    fn of(&self, lane: usize) -> u32 {
        self.members.map_or(1 << lane, |members| members[lane])
    }
}

#[cold]
fn misaligned(space: &str, at: &[u64; 32], e: u32, bytes: usize) -> Box<Fault> {
    let lane = lanes(e).find(|&l| !at[l].is_multiple_of(bytes as u64)).unwrap_or(0);
    let message = format!("{space}access of {bytes} bytes at {:#x}, which is not a multiple of {bytes}", at[lane]);
    Fault::new(Kind::Misaligned, Some(lane as u32), message)
}

// ----- raw access

/// # Safety
/// `address` is a multiple of `N` (1, 2, 4, 8 or 16), and that many bytes there belong to a live allocation.
#[inline(always)]
unsafe fn fetch<const N: usize>(address: u64) -> Bytes {
    // SAFETY: the caller's promise; all accesses of these bytes are atomic.
    unsafe {
        match N {
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
unsafe fn put<const N: usize>(address: u64, x: Bytes) {
    let long = |k: usize| x[k] as u64 | (x[k + 1] as u64) << 32;
    // SAFETY: the caller's promise; all accesses of these bytes are atomic.
    unsafe {
        match N {
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

#[inline(always)]
pub(super) fn from_slice(x: &[u8]) -> Bytes {
    let mut bytes = [0; 16];
    bytes[..x.len()].copy_from_slice(x);
    std::array::from_fn(|k| u32::from_le_bytes([bytes[4 * k], bytes[4 * k + 1], bytes[4 * k + 2], bytes[4 * k + 3]]))
}

#[inline(always)]
pub(super) fn to_slice(x: Bytes, to: &mut [u8]) {
    let mut bytes = [0; 16];
    for k in 0..4 {
        bytes[4 * k..4 * k + 4].copy_from_slice(&x[k].to_le_bytes());
    }
    let n = to.len();
    to.copy_from_slice(&bytes[..n]);
}

// ----- global memory

/// Checks an access of global memory; afterwards every address of `e` may be accessed.
#[inline(always)]
pub(super) fn check_global(warp: &Warp, env: &Env, at: &[u64; 32], q: Request) -> Checked<()> {
    let bytes = q.bytes;
    let (low, high, bits) = span(at, q.e);
    if bits & (bytes as u64 - 1) != 0 {
        return Err(misaligned("", at, q.e, bytes));
    }
    // mostly all lanes are in one allocation
    let one = env.find(low, (high - low) as usize + bytes);
    if one.is_none() {
        for lane in lanes(q.e) {
            if env.find(at[lane], bytes).is_none() {
                return Err(outside(env, at[lane], lane, q));
            }
        }
    }
    if env.checks { check_marks(warp, env, at, q, one) } else { Ok(()) }
}

/// Checks marks of written bytes, and races.
#[inline(always)]
fn check_marks(warp: &Warp, env: &Env, at: &[u64; 32], q: Request, one: Option<usize>) -> Checked<()> {
    let bytes = q.bytes;
    let mut page: Option<(usize, usize, MutexGuard<Page>)> = None;
    let who = env.who(warp.index, warp.at);
    let near = one.is_some_and(|index| env.allocations[index].bytes < 1 << 32);
    let groups = Groups::new(at, q, near);
    for lane in lanes(groups.leaders) {
        let index = match one {
            Some(index) => index,
            None => env.find(at[lane], bytes).expect("found before"),
        };
        let allocation = &env.allocations[index];
        let offset = (at[lane] - allocation.address) as usize;
        // atomics read too
        if (!q.writes() || q.access == Access::Atomic) && env.marked && !allocation.is_written(offset, bytes) {
            return Err(unwritten(allocation, at[lane], offset, lane, bytes));
        }
        if q.writes() {
            allocation.mark_written(offset, bytes);
        }
        let number = offset / PAGE;
        if !matches!(&page, Some((i, n, _)) if *i == index && *n == number) {
            // one lock at a time
            drop(page.take());
            let mut guard = allocation.pages[number].lock().unwrap_or_else(|e| e.into_inner());
            guard.enter(env.launch_id, PAGE, bytes);
            page = Some((index, number, guard));
        }
        let (_, _, cells) = page.as_mut().expect("just set");
        if let Err((lane, conflict)) = cells.access::<false>(offset % PAGE, bytes, q.access, &who, groups.of(lane)) {
            let at = at[lane as usize];
            let place = format!("{at:#x}, {}", inside(allocation, offset));
            return Err(env.conflict(warp, lane, conflict, q.writes(), bytes, &place));
        }
    }
    Ok(())
}

fn inside(allocation: &Allocation, offset: usize) -> String {
    format!("byte {offset} of the allocation of {} bytes at {:#x}", allocation.bytes, allocation.address)
}

#[cold]
fn unwritten(a: &Allocation, address: u64, offset: usize, lane: usize, bytes: usize) -> Box<Fault> {
    let first = a.first_unwritten(offset, bytes).unwrap_or(offset);
    let message = format!("read of {bytes} bytes at {address:#x}: nothing wrote {}", inside(a, first));
    Fault::new(Kind::Unwritten, Some(lane as u32), message)
}

#[cold]
fn outside(env: &Env, address: u64, lane: usize, q: Request) -> Box<Fault> {
    let (kind, why) = env.memory.describe(address);
    let message = format!("{} of {} bytes at {address:#x}: {why}", verb(q.writes()), q.bytes);
    Fault::new(kind, Some(lane as u32), message)
}

// ----- shared memory

/// Checks an access of shared memory.
#[inline(always)]
pub(super) fn check_shared(warp: &Warp, env: &mut Env, at: &[u64; 32], q: Request) -> Checked<()> {
    let bytes = q.bytes;
    let (_, high, bits) = span(at, q.e);
    if bits & (bytes as u64 - 1) != 0 {
        return Err(misaligned("shared memory: ", at, q.e, bytes));
    }
    let size = env.shared.len() as u64;
    if high.saturating_add(bytes as u64) > size {
        let lane = lanes(q.e).find(|&l| at[l].saturating_add(bytes as u64) > size).unwrap_or(0);
        let (what, at) = (verb(q.writes()), at[lane]);
        let message = format!("{what} of {bytes} bytes at {at} of the block's {size} bytes of shared memory");
        return Err(Fault::new(Kind::OutOfBounds, Some(lane as u32), message));
    }
    if env.checks {
        let groups = Groups::new(at, q, true);
        let (pages, who) = env.shared_pages(warp.index, warp.at);
        let mut failed = None;
        for lane in lanes(groups.leaders) {
            let offset = at[lane] as usize;
            let page = &mut pages[offset / SHARED_PAGE];
            let access = page.access::<true>(offset % SHARED_PAGE, bytes, q.access, &who, groups.of(lane));
            if let Err((lane, conflict)) = access {
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

// ----- local memory and parameters

/// The range of a lane's local memory in the warp's.
fn local_range(warp: &Warp, size: usize, address: u64, q: Request, lane: usize) -> Checked<usize> {
    let (bytes, what) = (q.bytes as u64, verb(q.writes()));
    if !address.is_multiple_of(bytes) {
        let message = format!("local memory: {what} of {bytes} bytes at {address}, which is not a multiple of {bytes}");
        return Err(Fault::new(Kind::Misaligned, Some(lane as u32), message));
    }
    if address.saturating_add(bytes) > size as u64 || warp.local.is_empty() {
        let message = format!("{what} of {bytes} bytes at {address} of the thread's {size} bytes of local memory");
        return Err(Fault::new(Kind::OutOfBounds, Some(lane as u32), message));
    }
    Ok(lane * size + address as usize)
}

#[cold]
fn outside_params(address: u64, bytes: usize, size: usize, lane: usize) -> Box<Fault> {
    let message = format!("read of {bytes} bytes at {address} of the {size} bytes of parameters");
    Fault::new(Kind::OutOfBounds, Some(lane as u32), message)
}

// ----- reading and writing

#[inline(always)]
fn set<const N: usize>(out: &mut Lanes, lane: usize, x: Bytes) {
    for k in 0..N.div_ceil(4) {
        out[k][lane] = x[k];
    }
}

#[inline(always)]
fn get<const N: usize>(x: &Lanes, lane: usize) -> Bytes {
    let mut out = [0; 4];
    for k in 0..N.div_ceil(4) {
        out[k] = x[k][lane];
    }
    out
}

/// Reads for each lane of a request.
#[inline(always)]
pub(super) fn read(
    warp: &mut Warp,
    env: &mut Env,
    space: Space,
    at: &[u64; 32],
    q: Request,
    out: &mut Lanes,
) -> Checked<()> {
    match q.bytes {
        4 => read_sized::<4>(warp, env, space, at, q, out),
        16 => read_sized::<16>(warp, env, space, at, q, out),
        8 => read_sized::<8>(warp, env, space, at, q, out),
        2 => read_sized::<2>(warp, env, space, at, q, out),
        _ => read_sized::<1>(warp, env, space, at, q, out),
    }
}

fn read_sized<const N: usize>(
    warp: &mut Warp,
    env: &mut Env,
    space: Space,
    at: &[u64; 32],
    q: Request,
    out: &mut Lanes,
) -> Checked<()> {
    let q = Request { bytes: N, ..q };
    match space {
        Space::Global | Space::Const => {
            match q.access {
                Access::Read => check_global(warp, env, at, Request { access: Access::Read, ..q })?,
                _ => check_global(warp, env, at, q)?,
            }
            env.stats.global_read += N as u64 * q.e.count_ones() as u64;
            for lane in lanes(q.e) {
                // SAFETY: checked above.
                set::<N>(out, lane, unsafe { fetch::<N>(at[lane]) });
            }
        }
        Space::Shared => {
            match q.access {
                Access::Read => check_shared(warp, env, at, Request { access: Access::Read, ..q })?,
                _ => check_shared(warp, env, at, q)?,
            }
            for lane in lanes(q.e) {
                set::<N>(out, lane, from_slice(&env.shared[at[lane] as usize..][..N]));
            }
        }
        Space::Local => {
            for lane in lanes(q.e) {
                let start = local_range(warp, env.kernel.local, at[lane], q, lane)?;
                set::<N>(out, lane, from_slice(&warp.local[start..][..N]));
            }
        }
        Space::Param => {
            for lane in lanes(q.e) {
                let start = at[lane] as usize;
                match start.checked_add(N).and_then(|end| env.params.get(start..end)) {
                    Some(x) => set::<N>(out, lane, from_slice(x)),
                    None => return Err(outside_params(at[lane], N, env.params.len(), lane)),
                }
            }
        }
        Space::Generic => {
            let inner = strip(at);
            for (space, e) in split(at, q.e) {
                read_sized::<N>(warp, env, space, &inner, Request { e, ..q }, out)?;
            }
        }
    }
    Ok(())
}

/// Writes for each lane of a request.
#[inline(always)]
pub(super) fn write(
    warp: &mut Warp,
    env: &mut Env,
    space: Space,
    at: &[u64; 32],
    q: Request,
    x: &Lanes,
) -> Checked<()> {
    match q.bytes {
        4 => write_sized::<4>(warp, env, space, at, q, x),
        16 => write_sized::<16>(warp, env, space, at, q, x),
        8 => write_sized::<8>(warp, env, space, at, q, x),
        2 => write_sized::<2>(warp, env, space, at, q, x),
        _ => write_sized::<1>(warp, env, space, at, q, x),
    }
}

fn write_sized<const N: usize>(
    warp: &mut Warp,
    env: &mut Env,
    space: Space,
    at: &[u64; 32],
    q: Request,
    x: &Lanes,
) -> Checked<()> {
    let q = Request { bytes: N, ..q };
    match space {
        Space::Global => {
            match q.access {
                Access::Write => check_global(warp, env, at, Request { access: Access::Write, ..q })?,
                _ => check_global(warp, env, at, q)?,
            }
            env.stats.global_written += N as u64 * q.e.count_ones() as u64;
            for lane in lanes(q.e) {
                // SAFETY: checked above.
                unsafe { put::<N>(at[lane], get::<N>(x, lane)) };
            }
        }
        Space::Shared => {
            match q.access {
                Access::Write => check_shared(warp, env, at, Request { access: Access::Write, ..q })?,
                _ => check_shared(warp, env, at, q)?,
            }
            for lane in lanes(q.e) {
                to_slice(get::<N>(x, lane), &mut env.shared[at[lane] as usize..][..N]);
            }
        }
        Space::Local => {
            for lane in lanes(q.e) {
                let start = local_range(warp, env.kernel.local, at[lane], q, lane)?;
                to_slice(get::<N>(x, lane), &mut warp.local[start..][..N]);
            }
        }
        Space::Generic => {
            let inner = strip(at);
            for (space, e) in split(at, q.e) {
                write_sized::<N>(warp, env, space, &inner, Request { e, ..q }, x)?;
            }
        }
        Space::Param | Space::Const => {
            let message = "a write to parameters or constants".to_string();
            return Err(Fault::new(Kind::OutOfBounds, Some(q.e.trailing_zeros()), message));
        }
    }
    Ok(())
}
