//! Operations on registers alone.

use super::float::{self, NAN32, bits, bits64, d, f, flush};
use super::integer::*;
use super::lanes::*;
use super::rare::{carry, general_convert, half_arithmetic, mul_high, mul24, testp};
use super::{convert, float64, matrix};
use crate::isa::*;

/// Executes one instruction for the lanes of a mask.
pub(crate) type Alu = fn(&Instr, &[u32], &mut Registers, u32);

/// The version for this machine.
pub(crate) fn select() -> Alu {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("bmi2") {
        // SAFETY: the features are there.
        return |i, lists, r, m| unsafe { with_avx2(i, lists, r, m) };
    }
    plain
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
fn with_avx2(i: &Instr, lists: &[u32], r: &mut Registers, m: u32) {
    execute(i, lists, r, m);
}

fn plain(i: &Instr, lists: &[u32], r: &mut Registers, m: u32) {
    execute(i, lists, r, m);
}

/// An f32 result with the instruction's modifiers.
#[inline(always)]
fn finish(i: &Instr, x: u32) -> u32 {
    let x = if i.ftz { flush(x) } else { x };
    if i.sat { float::saturate(x) } else { x }
}

#[inline(always)]
fn operand(i: &Instr, x: u32) -> u32 {
    if i.ftz { flush(x) } else { x }
}

/// Functions of f32 bits, with and without modifiers.
macro_rules! float1 {
    ($r:ident, $i:ident, $m:ident, $op:expr) => {
        if $i.ftz | $i.sat { w1($r, $i, $m, |a| finish($i, $op(operand($i, a)))) } else { w1($r, $i, $m, $op) }
    };
}
macro_rules! float2 {
    ($r:ident, $i:ident, $m:ident, $op:expr) => {
        if $i.ftz | $i.sat {
            w2($r, $i, $m, |a, b| finish($i, $op(operand($i, a), operand($i, b))))
        } else {
            w2($r, $i, $m, $op)
        }
    };
}
macro_rules! float3 {
    ($r:ident, $i:ident, $m:ident, $op:expr) => {
        if $i.ftz | $i.sat {
            w3($r, $i, $m, |a, b, c| finish($i, $op(operand($i, a), operand($i, b), operand($i, c))))
        } else {
            w3($r, $i, $m, $op)
        }
    };
}

/// A mask of the lanes where a comparison holds. `$get` gives an operand its type.
macro_rules! compare {
    ($loop:ident, $r:ident, $i:ident, $cmp:expr, $get:expr) => {
        match $cmp {
            Cmp::Eq => $loop($r, $i, |a, b| $get(a) == $get(b)),
            Cmp::Ne => $loop($r, $i, |a, b| $get(a) < $get(b) || $get(a) > $get(b)),
            Cmp::Lt => $loop($r, $i, |a, b| $get(a) < $get(b)),
            Cmp::Le => $loop($r, $i, |a, b| $get(a) <= $get(b)),
            Cmp::Gt => $loop($r, $i, |a, b| $get(a) > $get(b)),
            Cmp::Ge => $loop($r, $i, |a, b| $get(a) >= $get(b)),
            Cmp::EqU => $loop($r, $i, |a, b| !($get(a) < $get(b) || $get(a) > $get(b))),
            Cmp::NeU => $loop($r, $i, |a, b| $get(a) != $get(b)),
            Cmp::LtU => $loop($r, $i, |a, b| !($get(a) >= $get(b))),
            Cmp::LeU => $loop($r, $i, |a, b| !($get(a) > $get(b))),
            Cmp::GtU => $loop($r, $i, |a, b| !($get(a) <= $get(b))),
            Cmp::GeU => $loop($r, $i, |a, b| !($get(a) < $get(b))),
            Cmp::Num => $loop($r, $i, |a, b| $get(a) == $get(a) && $get(b) == $get(b)),
            Cmp::Nan => $loop($r, $i, |a, b| $get(a) != $get(a) || $get(b) != $get(b)),
        }
    };
}

#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord, clippy::eq_op)]
fn compared(r: &Registers, i: &Instr, cmp: Cmp, ty: Type) -> u32 {
    match ty.unsigned_bits() {
        Type::U32 => compare!(compare_words, r, i, cmp, |a: u32| a),
        Type::S32 => compare!(compare_words, r, i, cmp, |a: u32| a as i32),
        Type::U64 => compare!(compare_longs, r, i, cmp, |a: u64| a),
        Type::S64 => compare!(compare_longs, r, i, cmp, |a: u64| a as i64),
        Type::U16 => compare!(compare_words, r, i, cmp, |a: u32| a as u16),
        Type::S16 => compare!(compare_words, r, i, cmp, |a: u32| a as i16),
        Type::F32 if i.ftz => compare!(compare_words, r, i, cmp, |a: u32| f(flush(a))),
        Type::F32 => compare!(compare_words, r, i, cmp, f),
        Type::F64 => compare!(compare_longs, r, i, cmp, d),
        Type::F16 => compare!(compare_words, r, i, cmp, float::from_f16),
        _ => compare!(compare_words, r, i, cmp, float::from_bf16),
    }
}

fn combined(combine: Combine, x: u32, c: u32) -> u32 {
    match combine {
        Combine::None => x,
        Combine::And => x & c,
        Combine::Or => x | c,
        Combine::Xor => x ^ c,
    }
}

/// Division as a GPU does it: by zero all bits are set (the remainder is the dividend).
#[inline(always)]
fn divide(i: &Instr, r: &mut Registers, m: u32, ty: Type, remainder: bool) {
    macro_rules! run {
        ($loop:ident, $wide:ty, $narrow:ty) => {
            $loop(r, i, m, |a, b| {
                let (a, b) = (a as $narrow, b as $narrow);
                let result = match (remainder, b == 0) {
                    (false, true) => !0,
                    (true, true) => a,
                    (false, false) => a.wrapping_div(b),
                    (true, false) => a.wrapping_rem(b),
                };
                result as $wide
            })
        };
    }
    match ty {
        Type::U16 => run!(w2, u32, u16),
        Type::S16 => run!(w2, u32, i16),
        Type::U32 => run!(w2, u32, u32),
        Type::S32 => run!(w2, u32, i32),
        Type::U64 => run!(l2, u64, u64),
        _ => run!(l2, u64, i64),
    }
}

#[inline(always)]
fn execute(i: &Instr, lists: &[u32], r: &mut Registers, m: u32) {
    use Type::*;
    match i.op {
        // most frequent first in the text only; the match is a jump table
        Op::Mov(ty) => match ty {
            Pred => {
                let x = r.pred(i.a);
                r.set_pred(i.dst, m, x);
            }
            _ if ty.size() == 8 => l1(r, i, m, |a| a),
            _ => w1(r, i, m, |a| a),
        },
        Op::Add(ty) => match ty {
            F32 => float2!(r, i, m, |a, b| bits(f(a) + f(b))),
            F64 => l2(r, i, m, |a, b| bits64(d(a) + d(b))),
            U64 | S64 | B64 => l2(r, i, m, u64::wrapping_add),
            F16 | F16x2 | Bf16 | Bf16x2 => half_arithmetic(i, r, m, ty),
            _ => w2(r, i, m, u32::wrapping_add),
        },
        Op::Sub(ty) => match ty {
            F32 => float2!(r, i, m, |a, b| bits(f(a) - f(b))),
            F64 => l2(r, i, m, |a, b| bits64(d(a) - d(b))),
            U64 | S64 | B64 => l2(r, i, m, u64::wrapping_sub),
            F16 | F16x2 | Bf16 | Bf16x2 => half_arithmetic(i, r, m, ty),
            _ => w2(r, i, m, u32::wrapping_sub),
        },
        Op::Mul(ty) => match ty {
            F32 => float2!(r, i, m, |a, b| bits(f(a) * f(b))),
            F64 => l2(r, i, m, |a, b| bits64(d(a) * d(b))),
            U64 | S64 => l2(r, i, m, u64::wrapping_mul),
            F16 | F16x2 | Bf16 | Bf16x2 => half_arithmetic(i, r, m, ty),
            _ => w2(r, i, m, u32::wrapping_mul),
        },
        Op::Fma(ty) => match ty {
            F32 => float3!(r, i, m, |a, b, c| bits(f(a).mul_add(f(b), f(c)))),
            F64 => l3(r, i, m, |a, b, c| bits64(d(a).mul_add(d(b), d(c)))),
            _ => half_arithmetic(i, r, m, ty),
        },
        Op::FmaRelu(ty) => half_arithmetic(i, r, m, ty),
        Op::Mad(ty) => match ty {
            U64 | S64 => l3(r, i, m, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            _ => w3(r, i, m, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        },
        Op::MulWide(ty) => match ty {
            S32 => w2l(r, i, m, |a, b| (a as i32 as i64 * b as i32 as i64) as u64),
            U32 => w2l(r, i, m, |a, b| a as u64 * b as u64),
            S16 => w2(r, i, m, |a, b| s16(a).wrapping_mul(s16(b)) as u32),
            _ => w2(r, i, m, |a, b| (a & 0xffff).wrapping_mul(b & 0xffff)),
        },
        Op::MadWide(ty) => match ty {
            S32 => w2ll(r, i, m, |a, b, c| (a as i32 as i64 * b as i32 as i64).wrapping_add(c as i64) as u64),
            U32 => w2ll(r, i, m, |a, b, c| (a as u64 * b as u64).wrapping_add(c)),
            S16 => w3(r, i, m, |a, b, c| (s16(a).wrapping_mul(s16(b)) as u32).wrapping_add(c)),
            _ => w3(r, i, m, |a, b, c| (a & 0xffff).wrapping_mul(b & 0xffff).wrapping_add(c)),
        },
        Op::MulHi(ty) => match ty {
            U64 | S64 => l2(r, i, m, |a, b| mul_high(a, b, ty)),
            _ => w2(r, i, m, |a, b| mul_high(a as u64, b as u64, ty) as u32),
        },
        Op::MadHi(ty) => match ty {
            U64 | S64 => l3(r, i, m, |a, b, c| mul_high(a, b, ty).wrapping_add(c)),
            _ => w3(r, i, m, |a, b, c| (mul_high(a as u64, b as u64, ty) as u32).wrapping_add(c)),
        },
        Op::Mul24(ty, high) => w2(r, i, m, |a, b| mul24(a, b, ty, high)),
        Op::Mad24(ty, high) => w3(r, i, m, |a, b, c| mul24(a, b, ty, high).wrapping_add(c)),
        Op::AddSat => w2(r, i, m, |a, b| (a as i32).saturating_add(b as i32) as u32),
        Op::SubSat => w2(r, i, m, |a, b| (a as i32).saturating_sub(b as i32) as u32),
        Op::AddCarry(..) | Op::SubCarry(..) | Op::MadCarry(..) => carry(i, r, m),
        Op::Sad(ty) => match ty {
            U64 => l3(r, i, m, |a, b, c| a.abs_diff(b).wrapping_add(c)),
            S64 => l3(r, i, m, |a, b, c| (a as i64).abs_diff(b as i64).wrapping_add(c)),
            S32 => w3(r, i, m, |a, b, c| (a as i32).abs_diff(b as i32).wrapping_add(c)),
            S16 => w3(r, i, m, |a, b, c| s16(a).abs_diff(s16(b)).wrapping_add(c)),
            U16 => w3(r, i, m, |a, b, c| (a & 0xffff).abs_diff(b & 0xffff).wrapping_add(c)),
            _ => w3(r, i, m, |a, b, c| a.abs_diff(b).wrapping_add(c)),
        },
        Op::Div(ty) => match ty {
            F32 => float2!(r, i, m, |a, b| bits(f(a) / f(b))),
            F64 => l2(r, i, m, |a, b| bits64(d(a) / d(b))),
            _ => divide(i, r, m, ty, false),
        },
        Op::DivApprox => float2!(r, i, m, |a, b| bits(f(a) / f(b))),
        Op::Rem(ty) => divide(i, r, m, ty, true),
        Op::Min(ty) => match ty {
            F32 => float2!(r, i, m, float::min32),
            F64 => l2(r, i, m, |a, b| bits64(float::min64(d(a), d(b)))),
            S32 => w2(r, i, m, |a, b| (a as i32).min(b as i32) as u32),
            U32 => w2(r, i, m, u32::min),
            S64 => l2(r, i, m, |a, b| (a as i64).min(b as i64) as u64),
            U64 => l2(r, i, m, u64::min),
            S16 => w2(r, i, m, |a, b| s16(a).min(s16(b)) as u32),
            U16 => w2(r, i, m, |a, b| (a & 0xffff).min(b & 0xffff)),
            _ => half_arithmetic(i, r, m, ty),
        },
        Op::Max(ty) => match ty {
            F32 => float2!(r, i, m, float::max32),
            F64 => l2(r, i, m, |a, b| bits64(float::max64(d(a), d(b)))),
            S32 => w2(r, i, m, |a, b| (a as i32).max(b as i32) as u32),
            U32 => w2(r, i, m, u32::max),
            S64 => l2(r, i, m, |a, b| (a as i64).max(b as i64) as u64),
            U64 => l2(r, i, m, u64::max),
            S16 => w2(r, i, m, |a, b| s16(a).max(s16(b)) as u32),
            U16 => w2(r, i, m, |a, b| (a & 0xffff).max(b & 0xffff)),
            _ => half_arithmetic(i, r, m, ty),
        },
        Op::MinNan(ty) => match ty {
            F32 => float2!(r, i, m, |a, b| float::with_nan(a, b, float::min32(a, b))),
            _ => half_arithmetic(i, r, m, ty),
        },
        Op::MaxNan(ty) => match ty {
            F32 => float2!(r, i, m, |a, b| float::with_nan(a, b, float::max32(a, b))),
            _ => half_arithmetic(i, r, m, ty),
        },
        Op::Abs(ty) => match ty {
            F32 => float1!(r, i, m, |a| if f(a).is_nan() { NAN32 } else { a & 0x7fff_ffff }),
            F64 => l1(r, i, m, |a| a & !(1 << 63)),
            S64 => l1(r, i, m, |a| (a as i64).wrapping_abs() as u64),
            S32 => w1(r, i, m, |a| (a as i32).wrapping_abs() as u32),
            S16 => w1(r, i, m, |a| s16(a).wrapping_abs() as u32),
            _ => half_arithmetic(i, r, m, ty),
        },
        Op::Neg(ty) => match ty {
            F32 => float1!(r, i, m, |a| if f(a).is_nan() { NAN32 } else { a ^ 0x8000_0000 }),
            F64 => l1(r, i, m, |a| a ^ 1 << 63),
            S64 => l1(r, i, m, u64::wrapping_neg),
            S32 | S16 => w1(r, i, m, u32::wrapping_neg),
            _ => half_arithmetic(i, r, m, ty),
        },
        // the sign of a, the value of b
        Op::Copysign(ty) => match ty {
            F64 => l2(r, i, m, |a, b| (b & !(1 << 63)) | (a & 1 << 63)),
            _ => w2(r, i, m, |a, b| (b & 0x7fff_ffff) | (a & 0x8000_0000)),
        },
        // part of every expf
        Op::FmaR(F32, Round::Down) => {
            float3!(r, i, m, |a, b, c| bits(float64::fma32(f(a), f(b), f(c), Round::Down)))
        }
        Op::AddR(ty, _) | Op::SubR(ty, _) | Op::MulR(ty, _) | Op::FmaR(ty, _) | Op::DivR(ty, _) => {
            float64::directed(i, r, m, ty)
        }
        Op::RcpR(ty, round) => match (ty, round) {
            (F32, Round::Nearest) => float1!(r, i, m, |a| bits(1.0 / f(a))),
            (F64, Round::Nearest) => l1(r, i, m, |a| bits64(1.0 / d(a))),
            _ => float64::directed(i, r, m, ty),
        },
        Op::SqrtR(ty, round) => match (ty, round) {
            (F32, Round::Nearest) => float1!(r, i, m, |a| bits(f(a).sqrt())),
            (F64, Round::Nearest) => l1(r, i, m, |a| bits64(d(a).sqrt())),
            _ => float64::directed(i, r, m, ty),
        },
        Op::Approx(function, ty) => match ty {
            F32 => float1!(r, i, m, |a| bits(float::approx(function, f(a)))),
            F64 if function == Approx::Rcp => l1(r, i, m, |a| bits64(1.0 / d(a))),
            F64 => l1(r, i, m, |a| bits64(1.0 / d(a).sqrt())),
            _ => half_arithmetic(i, r, m, ty),
        },
        Op::Testp(ty, kind) => {
            let x = if ty == F64 {
                let a = r.long(i.a);
                mask_of(|l| testp(kind, ty, a[l]))
            } else {
                let a = r.word(i.a);
                mask_of(|l| testp(kind, ty, a[l] as u64))
            };
            r.set_pred(i.dst, m, x);
        }
        Op::And(ty) => match ty {
            Pred => {
                let x = r.pred(i.a) & r.pred(i.b);
                r.set_pred(i.dst, m, x);
            }
            B64 => l2(r, i, m, |a, b| a & b),
            _ => w2(r, i, m, |a, b| a & b),
        },
        Op::Or(ty) => match ty {
            Pred => {
                let x = r.pred(i.a) | r.pred(i.b);
                r.set_pred(i.dst, m, x);
            }
            B64 => l2(r, i, m, |a, b| a | b),
            _ => w2(r, i, m, |a, b| a | b),
        },
        Op::Xor(ty) => match ty {
            Pred => {
                let x = r.pred(i.a) ^ r.pred(i.b);
                r.set_pred(i.dst, m, x);
            }
            B64 => l2(r, i, m, |a, b| a ^ b),
            _ => w2(r, i, m, |a, b| a ^ b),
        },
        Op::Not(ty) => match ty {
            Pred => {
                let x = !r.pred(i.a);
                r.set_pred(i.dst, m, x);
            }
            B64 => l1(r, i, m, |a| !a),
            _ => w1(r, i, m, |a| !a),
        },
        Op::Cnot(ty) => match ty {
            B64 => l1(r, i, m, |a| (a == 0) as u64),
            B16 => w1(r, i, m, |a| (a & 0xffff == 0) as u32),
            _ => w1(r, i, m, |a| (a == 0) as u32),
        },
        Op::Lop3 => {
            let table = i.imm as u32;
            match table {
                // a ^ b ^ c, a & b | c and their like are what nvcc writes most
                0x96 => w3(r, i, m, |a, b, c| a ^ b ^ c),
                0xf8 => w3(r, i, m, |a, b, c| a | b & c),
                0xea => w3(r, i, m, |a, b, c| a & b | c),
                _ => w3(r, i, m, |a, b, c| lop3(a, b, c, table)),
            }
        }
        Op::Shl(ty) => match ty.size() {
            8 => lw(r, i, m, |a, b| if b > 63 { 0 } else { a << b }),
            4 => w2(r, i, m, |a, b| if b > 31 { 0 } else { a << b }),
            _ => w2(r, i, m, |a, b| if b > 15 { 0 } else { a << b }),
        },
        Op::Shr(ty) => match ty {
            S64 => lw(r, i, m, |a, b| (a as i64 >> b.min(63)) as u64),
            S32 => w2(r, i, m, |a, b| (a as i32 >> b.min(31)) as u32),
            S16 => w2(r, i, m, |a, b| (s16(a) >> b.min(15)) as u32),
            _ if ty.size() == 8 => lw(r, i, m, |a, b| if b > 63 { 0 } else { a >> b }),
            _ if ty.size() == 4 => w2(r, i, m, |a, b| if b > 31 { 0 } else { a >> b }),
            _ => w2(r, i, m, |a, b| if b > 15 { 0 } else { (a & 0xffff) >> b }),
        },
        Op::Shf(left, clamp) => w3(r, i, m, |a, b, c| shf(left, clamp, a, b, c)),
        Op::Prmt(mode) => w3(r, i, m, |a, b, c| prmt(mode, a, b, c)),
        Op::Bfe(ty) => match ty {
            U64 | S64 => {
                let (a, b, c) = (*r.long(i.a), *r.word(i.b), *r.word(i.c));
                let out = std::array::from_fn(|l| bfe(a[l], b[l], c[l], 64, ty == S64));
                r.set_long(i.dst, m, &out);
            }
            _ => w3(r, i, m, |a, b, c| {
                let x = if ty == S32 { a as i32 as u64 } else { a as u64 };
                bfe(x, b, c, 32, ty == S32) as u32
            }),
        },
        Op::Bfi(ty) => match ty.size() {
            8 => {
                let (a, b, c, n) = (*r.long(i.a), *r.long(i.b), *r.word(i.c), *r.word(i.d));
                let out = std::array::from_fn(|l| bfi(a[l], b[l], c[l], n[l], 64));
                r.set_long(i.dst, m, &out);
            }
            _ => w4(r, i, m, |a, b, c, n| bfi(a as u64, b as u64, c, n, 32) as u32),
        },
        Op::Bfind(ty, amount) => match ty {
            U64 | S64 => l1w(r, i, m, |a| bfind(a, 64, ty == S64, amount)),
            _ => w1(r, i, m, |a| bfind(a as u64, 32, ty == S32, amount)),
        },
        Op::Brev(ty) => match ty.size() {
            8 => l1(r, i, m, u64::reverse_bits),
            _ => w1(r, i, m, u32::reverse_bits),
        },
        Op::Clz(ty) => match ty.size() {
            8 => l1w(r, i, m, u64::leading_zeros),
            _ => w1(r, i, m, u32::leading_zeros),
        },
        Op::Popc(ty) => match ty.size() {
            8 => l1w(r, i, m, u64::count_ones),
            _ => w1(r, i, m, u32::count_ones),
        },
        Op::Fns => w3(r, i, m, fns),
        Op::Szext(ty, clamp) => w2(r, i, m, |a, b| szext(a, b, clamp, ty == S32)),
        Op::Bmsk(clamp) => w2(r, i, m, |a, b| bmsk(a, b, clamp)),
        Op::Dp4a(a_signed, b_signed) => w3(r, i, m, |a, b, c| dp4a(a, b, c, a_signed, b_signed)),
        Op::Setp(cmp, combine, ty) => {
            let x = compared(r, i, cmp, ty);
            if combine == Combine::None {
                r.set_pred(i.dst, m, x);
                if i.dst2 != NONE {
                    r.set_pred(i.dst2, m, !x);
                }
            } else {
                let c = r.condition(i);
                r.set_pred(i.dst, m, combined(combine, x, c));
                if i.dst2 != NONE {
                    r.set_pred(i.dst2, m, combined(combine, !x, c));
                }
            }
        }
        Op::Set(cmp, combine, to, ty) => {
            let c = if combine == Combine::None { 0 } else { r.condition(i) };
            let x = combined(combine, compared(r, i, cmp, ty), c);
            let yes = match to {
                F32 => 1f32.to_bits(),
                F16 => 0x3c00,
                Bf16 => 0x3f80,
                _ => u32::MAX,
            };
            let out = std::array::from_fn(|l| if x >> l & 1 != 0 { yes } else { 0 });
            r.set_word(i.dst, m, &out);
        }
        Op::Selp(ty) => {
            let c = r.condition(i);
            if ty.size() == 8 {
                let (a, b) = (*r.long(i.a), *r.long(i.b));
                let out = std::array::from_fn(|l| if c >> l & 1 != 0 { a[l] } else { b[l] });
                r.set_long(i.dst, m, &out);
            } else {
                let (a, b) = (*r.word(i.a), *r.word(i.b));
                let out = std::array::from_fn(|l| if c >> l & 1 != 0 { a[l] } else { b[l] });
                r.set_word(i.dst, m, &out);
            }
        }
        Op::Slct(ty, by) => {
            let c = *r.word(i.c);
            let c = match by {
                S32 => mask_of(|l| c[l] as i32 >= 0),
                _ => mask_of(|l| f(operand(i, c[l])) >= 0.0),
            };
            if ty.size() == 8 {
                let (a, b) = (*r.long(i.a), *r.long(i.b));
                let out = std::array::from_fn(|l| if c >> l & 1 != 0 { a[l] } else { b[l] });
                r.set_long(i.dst, m, &out);
            } else {
                let (a, b) = (*r.word(i.a), *r.word(i.b));
                let out = std::array::from_fn(|l| if c >> l & 1 != 0 { a[l] } else { b[l] });
                r.set_word(i.dst, m, &out);
            }
        }
        Op::Pack(n, size) => {
            let parts = &lists[i.list as usize..][..n as usize];
            match (size, n) {
                (2, 2) => {
                    let (a, b) = (*r.word(parts[0]), *r.word(parts[1]));
                    let out = std::array::from_fn(|l| a[l] & 0xffff | b[l] << 16);
                    r.set_word(i.dst, m, &out);
                }
                (4, 2) => {
                    let (a, b) = (*r.word(parts[0]), *r.word(parts[1]));
                    let out = std::array::from_fn(|l| a[l] as u64 | (b[l] as u64) << 32);
                    r.set_long(i.dst, m, &out);
                }
                _ => {
                    let width = 8 * size as u32;
                    let mask = (1u64 << width) - 1;
                    let mut out = [0u64; 32];
                    for (k, &part) in parts.iter().enumerate() {
                        let x = r.word(part);
                        for l in 0..32 {
                            out[l] |= (x[l] as u64 & mask) << (k as u32 * width);
                        }
                    }
                    if n * size == 8 {
                        r.set_long(i.dst, m, &out);
                    } else {
                        r.set_word(i.dst, m, &out.map(|x| x as u32));
                    }
                }
            }
        }
        Op::Unpack(n, size) => {
            let parts = &lists[i.list as usize..][..n as usize];
            let width = 8 * size as u32;
            let from: [u64; 32] =
                if n * size == 8 { *r.long(i.a) } else { std::array::from_fn(|l| r.word(i.a)[l] as u64) };
            let mask = ((1u64 << width) - 1) as u32;
            for (k, &part) in parts.iter().enumerate() {
                let out = std::array::from_fn(|l| (from[l] >> (k as u32 * width)) as u32 & mask);
                r.set_word(part, m, &out);
            }
        }
        Op::Cvt(to, from, round, flags) => match (to, from, flags.sat) {
            (S64, S32, false) if !flags.long_from => w1l(r, i, m, |a| a as i32 as u64),
            (U64 | S64, U32 | B32, false) if !flags.long_from => w1l(r, i, m, |a| a as u64),
            (U32 | S32, U64 | S64, false) if !flags.long_to => l1w(r, i, m, |a| a as u32),
            (U32 | S32 | U16 | S16, U16, false) if !(flags.long_to | flags.long_from) => w1(r, i, m, |a| a & 0xffff),
            (U16 | S16, U32 | S32, false) if !(flags.long_to | flags.long_from) => w1(r, i, m, |a| a & 0xffff),
            (F32, S32, false) if round == Round::Nearest => w1(r, i, m, |a| (a as i32 as f32).to_bits()),
            (F32, U32, false) if round == Round::Nearest => w1(r, i, m, |a| (a as f32).to_bits()),
            (S32, F32, false) if round == Round::Zero => {
                float1!(r, i, m, |a| f(if flags.ftz { flush(a) } else { a }) as i32 as u32)
            }
            (F32, F32, true) if !flags.integral && !flags.ftz => w1(r, i, m, float::saturate),
            (F32, U16, false) if round == Round::Nearest => w1(r, i, m, |a| (a as u16 as f32).to_bits()),
            (F32, F16, false) => w1(r, i, m, |a| bits(float::from_f16(a & 0xffff))),
            (Bf16, F32, false) if round == Round::Nearest && !flags.relu && !flags.ftz => {
                w1(r, i, m, |a| float::to_bf16(f(a)))
            }
            _ => general_convert(i, r, m),
        },
        Op::CvtPair(ty, round, flags) => match (ty, round) {
            (Bf16x2, Round::Nearest) if !flags.relu => {
                w2(r, i, m, |a, b| float::to_bf16(f(a)) << 16 | float::to_bf16(f(b)))
            }
            _ => {
                w2(r, i, m, |a, b| convert::to_half(ty, a, round, flags) << 16 | convert::to_half(ty, b, round, flags))
            }
        },
        Op::ToGeneric(space) => {
            let base = window(space);
            l1(r, i, m, |a| a | base);
        }
        Op::FromGeneric(space) => {
            let base = window(space);
            l1(r, i, m, |a| a & !base);
        }
        Op::IsSpace(space) => {
            let a = r.long(i.a);
            let x = mask_of(|l| match space {
                Space::Shared => a[l] & SHARED_WINDOW != 0,
                Space::Local => a[l] & LOCAL_WINDOW != 0,
                Space::Param => a[l] & PARAM_WINDOW != 0,
                _ => a[l] & (SHARED_WINDOW | LOCAL_WINDOW | PARAM_WINDOW) == 0,
            });
            r.set_pred(i.dst, m, x);
        }
        Op::Mma(shape, ty) => matrix::mma(shape, ty, &lists[i.list as usize..], r),
        Op::MmaHalf(shape) => matrix::mma_half(shape, &lists[i.list as usize..], r),
        _ => unreachable!("{:?} is executed elsewhere", i.op),
    }
}

fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        _ => 0,
    }
}
