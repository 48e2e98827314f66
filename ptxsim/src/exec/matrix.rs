//! Tensor-core products. A warp holds the fragments; lane `4g + t` has row or column `g`, elements `2t` and `2t + 1`
//! (tf32: element `t`) of each group of eight.
//!
//! Products are exact in f32 and summed in the order of k; a GPU's own order is not specified.

use super::float::{bits, f, from_bf16, from_f16, to_f16};
use super::lanes::Registers;
use crate::isa::{Shape, Type};

/// Multiplies the fragments: `a` is 16 × k by rows, `b` is 8 × k by columns, `c` is 16 × 8.
#[inline(always)]
fn multiply<const K: usize>(a: &[[f32; K]; 16], b: &[[f32; 8]; K], c: &mut [[f32; 8]; 16]) {
    for (row, sums) in a.iter().zip(c.iter_mut()) {
        let mut s = *sums;
        for k in 0..K {
            for n in 0..8 {
                s[n] = row[k].mul_add(b[k][n], s[n]);
            }
        }
        *sums = s;
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

/// Fragments of 16-bit elements: register `q` of `a` has rows `8 * (q & 1)` on, columns `8 * (q >> 1)` on.
#[inline(always)]
fn halves<const K: usize>(
    r: &Registers,
    regs: &[u32],
    get: impl Fn(u32) -> f32 + Copy,
) -> ([[f32; K]; 16], [[f32; 8]; K]) {
    let (mut a, mut b) = ([[0f32; K]; 16], [[0f32; 8]; K]);
    for q in 0..K / 4 {
        let x = r.word(regs[q]);
        let (row, column) = (8 * (q & 1), 8 * (q >> 1));
        for l in 0..32 {
            a[row + l / 4][column + l % 4 * 2] = get(x[l] & 0xffff);
            a[row + l / 4][column + l % 4 * 2 + 1] = get(x[l] >> 16);
        }
    }
    for q in 0..K / 8 {
        let x = r.word(regs[K / 4 + q]);
        for l in 0..32 {
            b[8 * q + l % 4 * 2][l / 4] = get(x[l] & 0xffff);
            b[8 * q + l % 4 * 2 + 1][l / 4] = get(x[l] >> 16);
        }
    }
    (a, b)
}

/// Fragments of tf32 elements, of which the low 13 bits do not count.
#[inline(always)]
fn tf32<const K: usize>(r: &Registers, regs: &[u32]) -> ([[f32; K]; 16], [[f32; 8]; K]) {
    let get = |x: u32| f(x & !0x1fff);
    let (mut a, mut b) = ([[0f32; K]; 16], [[0f32; 8]; K]);
    for q in 0..K / 2 {
        let x = r.word(regs[q]);
        let (row, column) = (8 * (q & 1), 4 * (q >> 1));
        for l in 0..32 {
            a[row + l / 4][column + l % 4] = get(x[l]);
        }
    }
    for q in 0..K / 4 {
        let x = r.word(regs[K / 2 + q]);
        for l in 0..32 {
            b[4 * q + l % 4][l / 4] = get(x[l]);
        }
    }
    (a, b)
}

/// `mma` with f32 accumulators; `regs` are d, a, b, c.
#[inline(always)]
pub(crate) fn mma(shape: Shape, ty: Type, regs: &[u32], r: &mut Registers) {
    macro_rules! run {
        ($fragments:expr, $b_end:expr) => {{
            let (a, b) = $fragments;
            let mut c = accumulators(r, &regs[$b_end..$b_end + 4]);
            multiply(&a, &b, &mut c);
            store(r, &regs[..4], &c);
        }};
    }
    match (shape, ty) {
        (Shape::M16n8k16, Type::Bf16) => run!(halves::<16>(r, &regs[4..], from_bf16), 10),
        (Shape::M16n8k16, _) => run!(halves::<16>(r, &regs[4..], from_f16), 10),
        (Shape::M16n8k8, Type::Bf16) => run!(halves::<8>(r, &regs[4..], from_bf16), 7),
        (Shape::M16n8k8, Type::Tf32) => run!(tf32::<8>(r, &regs[4..]), 10),
        (Shape::M16n8k8, _) => run!(halves::<8>(r, &regs[4..], from_f16), 7),
        (Shape::M16n8k4, _) => run!(tf32::<4>(r, &regs[4..]), 7),
    }
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
        let (a, b) = halves::<16>(r, &regs[2..], from_f16);
        multiply(&a, &b, &mut c);
    } else {
        let (a, b) = halves::<8>(r, &regs[2..], from_f16);
        multiply(&a, &b, &mut c);
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
