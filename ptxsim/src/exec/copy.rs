//! Asynchronous copies.

use super::access::{Bytes, Checked, Request, SHARED_PAGE, check_shared, from_slice, lanes, read, to_slice};
use crate::block::Env;
use crate::checks::{Access, Who};
use crate::isa::*;
use crate::report::{Fault, Kind};
use crate::warp::Warp;

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

pub(crate) fn start(warp: &mut Warp, env: &mut Env, i: &Instr, bytes: usize, e: u32) -> Checked<()> {
    // a predicate that is true copies nothing but zeros
    let ignored = if i.c == NONE { 0 } else { warp.regs.pred(i.c) };
    let from_offset = env.kernel.lists[i.list as usize] as i32 as i64 as u64;
    let from = warp.regs.long(i.a).map(|a| a.wrapping_add(from_offset));
    let to = warp.regs.word(i.d).map(|a| a.wrapping_add(i.imm as u32) as u64);
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
pub(crate) fn wait(warp: &mut Warp, env: &mut Env, n: u32, e: u32) {
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
