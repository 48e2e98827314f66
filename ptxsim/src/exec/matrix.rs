//! Tensor-core products. A warp holds the fragments; lane `4g + t` has row or column `g`, elements `2t` and `2t + 1`
//! (tf32: element `t`) of each group of eight.
//!
//! Products are exact in f32 and summed in the order of k; a GPU's own order is not specified.

use super::float::{bits, f, from_f16, to_f16};
use super::lanes::Registers;
use crate::isa::{Shape, Type};

/// The two values of a register that holds two 16-bit elements.
#[inline(always)]
fn split_bf16(x: u32) -> [f32; 2] {
    [f(x << 16), f(x & 0xffff_0000)]
}

#[inline(always)]
fn split_f16(x: u32) -> [f32; 2] {
    [from_f16(x & 0xffff), from_f16(x >> 16)]
}

/// Multiplies fragments of 16-bit elements: `regs` are those of `a`, then of `b`. Register `q` of `a` has the rows from
/// `8 * (q & 1)` and the columns from `8 * (q >> 1)`; its lanes `4g..4g + 4` hold eight elements of a row in order.
#[inline(always)]
fn multiply<const K: usize>(r: &Registers, regs: &[u32], split: impl Fn(u32) -> [f32; 2], c: &mut [[f32; 8]; 16]) {
    // b by rows, a as it lies, even and odd elements apart
    let mut b = [[0f32; 8]; K];
    for q in 0..K / 8 {
        let x = r.word(regs[K / 4 + q]);
        for t in 0..4 {
            for n in 0..8 {
                [b[8 * q + 2 * t][n], b[8 * q + 2 * t + 1][n]] = split(x[4 * n + t]);
            }
        }
    }
    let (mut even, mut odd) = ([[0f32; 32]; 4], [[0f32; 32]; 4]);
    for q in 0..K / 4 {
        let x = r.word(regs[q]);
        for l in 0..32 {
            [even[q][l], odd[q][l]] = split(x[l]);
        }
    }
    for (row, sums) in c.iter_mut().enumerate() {
        let mut s = *sums;
        for q in 0..K / 8 {
            for t in 0..4 {
                let at = (row / 8 + 2 * q, row % 8 * 4 + t);
                let (x, y) = (even[at.0][at.1], odd[at.0][at.1]);
                for n in 0..8 {
                    s[n] = y.mul_add(b[8 * q + 2 * t + 1][n], x.mul_add(b[8 * q + 2 * t][n], s[n]));
                }
            }
        }
        *sums = s;
    }
}

/// The same for tf32 elements, one in a register, of which the low 13 bits do not count.
#[inline(always)]
fn multiply_tf32<const K: usize>(r: &Registers, regs: &[u32], c: &mut [[f32; 8]; 16]) {
    let get = |x: u32| f(x & !0x1fff);
    for k in 0..K {
        let b = r.word(regs[K / 2 + k / 4]);
        for (row, sums) in c.iter_mut().enumerate() {
            let x = get(r.word(regs[row / 8 + k / 4 * 2])[row % 8 * 4 + k % 4]);
            for n in 0..8 {
                sums[n] = x.mul_add(get(b[4 * n + k % 4]), sums[n]);
            }
        }
    }
}

#[inline(always)]
fn accumulators(r: &Registers, regs: &[u32]) -> [[f32; 8]; 16] {
    let mut c = [[0f32; 8]; 16];
    for half in 0..2 {
        let (even, odd) = (r.word(regs[2 * half]), r.word(regs[2 * half + 1]));
        for l in 0..32 {
            c[half * 8 + l / 4][l % 4 * 2] = f(even[l]);
            c[half * 8 + l / 4][l % 4 * 2 + 1] = f(odd[l]);
        }
    }
    c
}

#[inline(always)]
fn store(r: &mut Registers, regs: &[u32], c: &[[f32; 8]; 16]) {
    for half in 0..2 {
        for odd in 0..2 {
            let row = &mut r.words[regs[2 * half + odd] as usize].0;
            for l in 0..32 {
                row[l] = bits(c[half * 8 + l / 4][l % 4 * 2 + odd]);
            }
        }
    }
}

/// `mma` with f32 accumulators; `regs` are d, a, b, c.
#[inline(always)]
pub(crate) fn mma(shape: Shape, ty: Type, regs: &[u32], r: &mut Registers) {
    let c_at = if matches!((shape, ty), (Shape::M16n8k16, _) | (Shape::M16n8k8, Type::Tf32)) { 10 } else { 7 };
    let mut c = accumulators(r, &regs[c_at..]);
    let fragments = &regs[4..];
    match (shape, ty) {
        (Shape::M16n8k16, Type::Bf16) => multiply::<16>(r, fragments, split_bf16, &mut c),
        (Shape::M16n8k16, _) => multiply::<16>(r, fragments, split_f16, &mut c),
        (Shape::M16n8k8, Type::Bf16) => multiply::<8>(r, fragments, split_bf16, &mut c),
        (Shape::M16n8k8, Type::Tf32) => multiply_tf32::<8>(r, fragments, &mut c),
        (Shape::M16n8k8, _) => multiply::<8>(r, fragments, split_f16, &mut c),
        (Shape::M16n8k4, _) => multiply_tf32::<4>(r, fragments, &mut c),
    }
    store(r, &regs[..4], &c);
}

/// `mma` with f16 accumulators, two in a register; summed in f32 and rounded at the end.
#[inline(never)]
pub(crate) fn mma_half(shape: Shape, regs: &[u32], r: &mut Registers) {
    let c_at = if shape == Shape::M16n8k16 { 8 } else { 5 };
    let mut c = [[0f32; 8]; 16];
    for half in 0..2 {
        let x = r.word(regs[c_at + half]);
        for l in 0..32 {
            c[half * 8 + l / 4][l % 4 * 2] = from_f16(x[l] & 0xffff);
            c[half * 8 + l / 4][l % 4 * 2 + 1] = from_f16(x[l] >> 16);
        }
    }
    if shape == Shape::M16n8k16 {
        multiply::<16>(r, &regs[2..], split_f16, &mut c);
    } else {
        multiply::<8>(r, &regs[2..], split_f16, &mut c);
    }
    for half in 0..2 {
        let row = &mut r.words[regs[half] as usize].0;
        for l in 0..32 {
            let at = &c[half * 8 + l / 4];
            row[l] = to_f16(at[l % 4 * 2]) | to_f16(at[l % 4 * 2 + 1]) << 16;
        }
    }
}

/// `movmatrix`: the 8 × 8 matrix of 16-bit elements that a register of all lanes holds, transposed.
pub(crate) fn transpose(i: &crate::isa::Instr, r: &mut Registers) {
    let x = *r.word(i.a);
    let element = |row: usize, column: usize| x[row * 4 + column / 2] >> (column % 2 * 16) & 0xffff;
    let out = std::array::from_fn(|l| {
        let (row, column) = (l / 4, l % 4 * 2);
        element(column, row) | element(column + 1, row) << 16
    });
    r.set_word(i.dst, u32::MAX, &out);
}
