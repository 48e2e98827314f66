//! Operations on registers that are not worth compiling for vector instructions.

use super::convert;
use super::float::{self, Half, bits, d, f, half_fma};
use super::integer::s16;
use super::lanes::*;
use crate::isa::*;

/// The 16-bit float of a type and whether it is a pair.
fn half_of(ty: Type) -> (Half, bool) {
    match ty {
        Type::F16 => (Half::F16, false),
        Type::F16x2 => (Half::F16, true),
        Type::Bf16x2 => (Half::Bf16, true),
        _ => (Half::Bf16, false),
    }
}

/// Applies a function of 16-bit floats (as bits) to one or both halves of words.
fn halves(r: &mut Registers, i: &Instr, m: u32, pair: bool, op: impl Fn(u32, u32, u32) -> u32) {
    let read = |reg: u32| if reg == NONE { [0; 32] } else { *r.word(reg) };
    let (a, b, c) = (read(i.a), read(i.b), read(i.c));
    let mut out = [0; 32];
    for l in 0..32 {
        out[l] = op(a[l] & 0xffff, b[l] & 0xffff, c[l] & 0xffff);
        if pair {
            out[l] |= op(a[l] >> 16, b[l] >> 16, c[l] >> 16) << 16;
        }
    }
    r.set_word(i.dst, m, &out);
}

#[cold]
pub(super) fn half_arithmetic(i: &Instr, r: &mut Registers, m: u32, ty: Type) {
    let (h, pair) = half_of(ty);
    let one = h.put(1.0);
    let (negative, nan) = (0x8000, 0x7fff);
    let is_nan = |x: u32| h.get(x).is_nan();
    let saturate = |x: u32| {
        if i.sat && !(h.get(x) > 0.0) {
            0
        } else if i.sat && h.get(x) > 1.0 {
            one
        } else {
            x
        }
    };
    match i.op {
        // a + b is a*1 + b; a - b is b*(-1) + a; a * b is a*b + (-0)
        Op::Add(_) => halves(r, i, m, pair, |a, b, _| saturate(half_fma(h, a, one, b))),
        Op::Sub(_) => halves(r, i, m, pair, |a, b, _| saturate(half_fma(h, b, one ^ negative, a))),
        Op::Mul(_) => halves(r, i, m, pair, |a, b, _| saturate(half_fma(h, a, b, negative))),
        Op::Fma(_) => halves(r, i, m, pair, |a, b, c| saturate(half_fma(h, a, b, c))),
        Op::FmaRelu(_) => halves(r, i, m, pair, |a, b, c| {
            let x = half_fma(h, a, b, c);
            if is_nan(x) {
                nan
            } else if x & negative != 0 {
                0
            } else {
                x
            }
        }),
        Op::Abs(_) => halves(r, i, m, pair, |a, _, _| a & 0x7fff),
        Op::Neg(_) => halves(r, i, m, pair, |a, _, _| a ^ negative),
        Op::Min(_) => halves(r, i, m, pair, |a, b, _| h.put(f(float::min32(bits(h.get(a)), bits(h.get(b)))))),
        Op::Max(_) => halves(r, i, m, pair, |a, b, _| h.put(f(float::max32(bits(h.get(a)), bits(h.get(b)))))),
        Op::MinNan(_) => halves(r, i, m, pair, |a, b, _| {
            if is_nan(a) || is_nan(b) { nan } else { h.put(f(float::min32(bits(h.get(a)), bits(h.get(b))))) }
        }),
        Op::MaxNan(_) => halves(r, i, m, pair, |a, b, _| {
            if is_nan(a) || is_nan(b) { nan } else { h.put(f(float::max32(bits(h.get(a)), bits(h.get(b))))) }
        }),
        Op::Approx(function, _) => halves(r, i, m, pair, |a, _, _| h.put(float::approx(function, h.get(a)))),
        _ => unreachable!("{:?} is decoded for 32 and 64 bits alone", i.op),
    }
}

/// The carry forms, a lane at a time.
#[cold]
pub(super) fn carry(i: &Instr, r: &mut Registers, m: u32) {
    let long = match i.op {
        Op::AddCarry(ty, ..) | Op::SubCarry(ty, ..) | Op::MadCarry(ty, ..) => ty.size() == 8,
        _ => unreachable!("carry operations alone"),
    };
    let width = if long { 64 } else { 32 };
    let get = |r: &Registers, reg: u32, l: usize| if long { r.long(reg)[l] } else { r.word(reg)[l] as u64 } as u128;
    for l in (0..32).filter(|l| m >> l & 1 != 0) {
        let (a, b) = (get(r, i.a, l), get(r, i.b, l));
        let carry_in = (r.carry >> l & 1) as u128;
        let (result, sets) = match i.op {
            Op::AddCarry(_, uses, sets) => (a + b + if uses { carry_in } else { 0 }, sets),
            // the carry of a subtraction is its borrow
            Op::SubCarry(_, uses, sets) => (a.wrapping_sub(b).wrapping_sub(if uses { carry_in } else { 0 }), sets),
            Op::MadCarry(ty, high, uses, sets) => {
                let product =
                    if high { mul_high(a as u64, b as u64, ty) as u128 } else { (a * b) & ((1 << width) - 1) };
                (product + get(r, i.c, l) + if uses { carry_in } else { 0 }, sets)
            }
            _ => unreachable!("carry operations alone"),
        };
        if sets {
            r.carry = (r.carry & !(1 << l)) | ((result >> width & 1) as u32) << l;
        }
        if long {
            r.longs[i.dst as usize][l] = result as u64;
        } else {
            r.words[i.dst as usize][l] = result as u32;
        }
    }
}

#[inline(always)]
pub(super) fn mul_high(a: u64, b: u64, ty: Type) -> u64 {
    match ty {
        Type::U16 => (a as u16 as u64 * b as u16 as u64) >> 16,
        Type::S16 => (s16(a as u32).wrapping_mul(s16(b as u32)) >> 16) as u32 as u64,
        Type::U32 => (a as u32 as u64 * b as u32 as u64) >> 32,
        Type::S32 => ((a as i32 as i64 * b as i32 as i64) >> 32) as u32 as u64,
        Type::U64 => ((a as u128 * b as u128) >> 64) as u64,
        _ => ((a as i64 as i128 * b as i64 as i128) >> 64) as u64,
    }
}

#[inline(always)]
pub(super) fn mul24(a: u32, b: u32, ty: Type, high: bool) -> u32 {
    let product = if ty == Type::S32 {
        (((a << 8) as i32 >> 8) as i64 * ((b << 8) as i32 >> 8) as i64) as u64
    } else {
        (a & 0xff_ffff) as u64 * (b & 0xff_ffff) as u64
    };
    if high { (product >> 16) as u32 } else { product as u32 }
}

pub(super) fn testp(kind: Testp, ty: Type, x: u64) -> bool {
    let class = if ty == Type::F64 { d(x).classify() } else { f(x as u32).classify() };
    use std::num::FpCategory::*;
    match kind {
        Testp::Finite => !matches!(class, Nan | Infinite),
        Testp::Infinite => class == Infinite,
        Testp::Number => class != Nan,
        Testp::NotANumber => class == Nan,
        Testp::Normal => class == Normal,
        Testp::Subnormal => class == Subnormal,
    }
}

/// Conversions that have no fast path.
pub(super) fn general_convert(i: &Instr, r: &mut Registers, m: u32) {
    let Op::Cvt(to, from, round, flags) = i.op else { unreachable!("conversions alone") };
    for l in (0..32).filter(|l| m >> l & 1 != 0) {
        let x = if flags.long_from { r.long(i.a)[l] } else { r.word(i.a)[l] as u64 };
        let y = convert::convert(to, from, round, flags, x);
        if flags.long_to {
            r.longs[i.dst as usize][l] = y;
        } else {
            r.words[i.dst as usize][l] = y as u32;
        }
    }
}
