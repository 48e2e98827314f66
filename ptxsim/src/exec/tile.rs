//! Loads and stores of 8 × 8 matrices.

use super::access::{Checked, Request, read, write};
use crate::block::Env;
use crate::checks::Access;
use crate::isa::*;
use crate::warp::Warp;

/// Rows of 8 × 8 matrices of 16-bit elements, their addresses from lanes 0-7, 8-15, ...
fn rows(warp: &Warp, i: &Instr) -> [u64; 32] {
    if i.wide {
        warp.regs.long(i.a).map(|a| a.wrapping_add(i.imm as u64) & !SHARED_WINDOW)
    } else {
        warp.regs.word(i.a).map(|a| a.wrapping_add(i.imm as u32) as u64)
    }
}

pub(crate) fn ldmatrix(warp: &mut Warp, env: &mut Env, i: &Instr, n: usize, trans: bool) -> Checked<()> {
    let at = rows(warp, i);
    let e = if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 };
    let mut raw = [[0u32; 32]; 4];
    read(warp, env, Space::Shared, &at, Request { e, bytes: 16, access: Access::WarpRead }, &mut raw)?;
    for q in 0..n {
        let mut out = [0; 32];
        for l in 0..32 {
            out[l] = if trans {
                let (column, row) = (l / 4, 8 * q + l % 4 * 2);
                let words = &raw[column / 2];
                let shift = column % 2 * 16;
                (words[row] >> shift & 0xffff) | (words[row + 1] >> shift & 0xffff) << 16
            } else {
                raw[l % 4][8 * q + l / 4]
            };
        }
        warp.regs.set_word(env.kernel.lists[i.list as usize + q], u32::MAX, &out);
    }
    Ok(())
}

pub(crate) fn stmatrix(warp: &mut Warp, env: &mut Env, i: &Instr, n: usize, trans: bool) -> Checked<()> {
    let at = rows(warp, i);
    let e = if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 };
    let mut raw = [[0u32; 32]; 4];
    for q in 0..n {
        let x = warp.regs.word(env.kernel.lists[i.list as usize + q]);
        for l in 0..32 {
            if trans {
                let (column, row) = (l / 4, l % 4 * 2);
                raw[column / 2][8 * q + row] |= (x[l] & 0xffff) << (column % 2 * 16);
                raw[column / 2][8 * q + row + 1] |= (x[l] >> 16) << (column % 2 * 16);
            } else {
                raw[l % 4][8 * q + l / 4] = x[l];
            }
        }
    }
    write(warp, env, Space::Shared, &at, Request { e, bytes: 16, access: Access::Write }, &raw)
}
