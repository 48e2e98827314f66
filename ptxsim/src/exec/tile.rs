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
