//! Asynchronous copies.

use super::access::{Checked, Lanes, Request, SHARED_PAGE, check_shared, lanes, read, to_slice};
use crate::block::Env;
use crate::checks::Access;
use crate::isa::*;
use crate::report::{Fault, Kind};
use crate::warp::Warp;

/// What lanes of a warp copy in one instruction.
struct Copy {
    /// those whose copy is under way
    lanes: u32,
    bytes: usize,
    /// the group of each lane that this belongs to
    group: [u32; 32],
    to: [u64; 32],
    data: Lanes,
}

/// Asynchronous copies of a warp that are under way. The source is read when a copy starts, the destination written
/// when it is waited for: so code that does not wait gets the old bytes.
#[derive(Default)]
// a copy is large, and moves from one list to the other
#[allow(clippy::vec_box)]
pub(crate) struct AsyncCopies {
    open: Vec<Box<Copy>>,
    /// memory to use again
    spare: Vec<Box<Copy>>,
    /// groups that each lane committed
    committed: [u32; 32],
}

impl AsyncCopies {
    pub(crate) fn clear(&mut self) {
        self.spare.append(&mut self.open);
        self.committed = [0; 32];
    }

    pub(crate) fn commit(&mut self, e: u32) {
        for lane in lanes(e) {
            self.committed[lane] += 1;
        }
    }
}

pub(crate) fn start(warp: &mut Warp, env: &mut Env, i: &Instr, bytes: usize, e: u32) -> Checked<()> {
    let mut copy = warp
        .copies
        .spare
        .pop()
        .unwrap_or_else(|| Box::new(Copy { lanes: 0, bytes: 0, group: [0; 32], to: [0; 32], data: [[0; 32]; 4] }));
    // a predicate that is true copies nothing but zeros
    let ignored = if i.c == NONE { 0 } else { warp.regs.pred(i.c) };
    let from_offset = env.kernel.lists[i.list as usize] as i32 as i64 as u64;
    let mut from = *warp.regs.long(i.a);
    for l in 0..32 {
        from[l] = from[l].wrapping_add(from_offset);
        copy.to[l] = warp.regs.word(i.d)[l].wrapping_add(i.imm as u32) as u64;
    }
    let mut whole = e & !ignored;
    if i.b != NONE || ignored != 0 {
        copy.data = [[0; 32]; 4];
    }
    if i.b != NONE {
        for lane in lanes(e & !ignored) {
            let size = warp.regs.word(i.b)[lane] as usize;
            if size > bytes {
                let message = format!("cp.async of {size} bytes from the source into {bytes}");
                return Err(Fault::new(Kind::OutOfBounds, Some(lane as u32), message));
            }
            if size < bytes {
                whole &= !(1 << lane);
                read_part(warp, env, lane, from[lane], size, &mut copy.data)?;
            }
        }
    }
    if whole != 0 {
        read(warp, env, Space::Global, &from, Request { e: whole, bytes, access: Access::Read }, &mut copy.data)?;
    }
    check_shared(warp, env, &copy.to, Request { e, bytes, access: Access::AsyncStart })?;
    (copy.lanes, copy.bytes, copy.group) = (e, bytes, warp.copies.committed);
    warp.copies.open.push(copy);
    Ok(())
}

/// The first `size` bytes of a source, a byte at a time.
fn read_part(warp: &mut Warp, env: &mut Env, lane: usize, from: u64, size: usize, data: &mut Lanes) -> Checked<()> {
    for k in 0..size {
        let mut at = [0; 32];
        at[lane] = from + k as u64;
        let mut byte = [[0; 32]; 4];
        read(warp, env, Space::Global, &at, Request { e: 1 << lane, bytes: 1, access: Access::Read }, &mut byte)?;
        data[k / 4][lane] |= byte[0][lane] << (k % 4 * 8);
    }
    Ok(())
}

/// `wait_group n`: all groups of a lane but its last `n` are done.
pub(crate) fn wait(warp: &mut Warp, env: &mut Env, n: u32, e: u32) {
    let copies = &mut warp.copies;
    for copy in &mut copies.open {
        let mut done = 0;
        for l in 0..32 {
            done |= ((copy.group[l] + n < copies.committed[l]) as u32) << l;
        }
        done &= copy.lanes & e;
        copy.lanes &= !done;
        for lane in lanes(done) {
            let start = copy.to[lane] as usize;
            to_slice([0, 1, 2, 3].map(|k| copy.data[k][lane]), &mut env.shared[start..start + copy.bytes]);
            if env.checks {
                let (pages, who) = env.shared_pages(warp.index, 0);
                let (page, offset) = (&mut pages[start / SHARED_PAGE], start % SHARED_PAGE);
                // ending a copy conflicts with nothing
                let _ = page.access::<true>(offset, copy.bytes, Access::AsyncEnd, &who, 1 << lane);
            }
        }
    }
    let mut at = 0;
    while at < copies.open.len() {
        if copies.open[at].lanes == 0 {
            let copy = copies.open.remove(at);
            copies.spare.push(copy);
        } else {
            at += 1;
        }
    }
}
