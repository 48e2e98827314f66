//! Directed rounding (`.rz`, `.rm`, `.rp`), a lane at a time: the result to nearest, its exact error, one step.

use super::float::{bits, bits64, d, f, flush, round32, round64, saturate};
use super::lanes::Registers;
use crate::isa::{Instr, Op, Round, Type};

/// `a + b` and what it lost.
#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let high = sum - a;
    (sum, (a - (sum - high)) + (b - high))
}

/// `a * b` and what it lost.
fn two_product(a: f64, b: f64) -> (f64, f64) {
    let product = a * b;
    (product, a.mul_add(b, -product))
}

/// The nearest f64 to an operation's exact result, and the sign and rough size of the rest.
fn exact(op: Op, a: f64, b: f64, c: f64) -> (f64, f64, Round) {
    match op {
        Op::AddR(_, round) => (two_sum(a, b).0, two_sum(a, b).1, round),
        Op::SubR(_, round) => (two_sum(a, -b).0, two_sum(a, -b).1, round),
        Op::MulR(_, round) => (two_product(a, b).0, two_product(a, b).1, round),
        Op::FmaR(_, round) => {
            let (product, low) = two_product(a, b);
            let (sum, rest) = two_sum(product, c);
            let (value, error) = two_sum(sum, low + rest);
            // when both small parts matter, their own rounding decides nothing but ties
            (value, error, round)
        }
        Op::DivR(_, round) => {
            let q = a / b;
            (q, q.mul_add(-b, a) / b, round)
        }
        Op::RcpR(_, round) => {
            let q = 1.0 / a;
            (q, q.mul_add(-a, 1.0) / a, round)
        }
        Op::SqrtR(_, round) => {
            let s = a.sqrt();
            (s, s.mul_add(-s, a) / (2.0 * s), round)
        }
        _ => unreachable!("{op:?} has no directed rounding"),
    }
}

/// `a * b + c` in f32, whose product is exact in f64.
#[inline(always)]
pub(crate) fn fma32(a: f32, b: f32, c: f32, round: Round) -> f32 {
    let (value, error) = two_sum(a as f64 * b as f64, c as f64);
    round32(value, if error.is_nan() { 0.0 } else { error }, round)
}

pub(crate) fn directed(i: &Instr, r: &mut Registers, m: u32, ty: Type) {
    let registers = [i.a, i.b, i.c];
    for l in (0..32).filter(|l| m >> l & 1 != 0) {
        let get = |k: usize| match (registers[k], ty) {
            (crate::isa::NONE, _) => 0.0,
            (reg, Type::F64) => d(r.long(reg)[l]),
            (reg, _) if i.ftz => f(flush(r.word(reg)[l])) as f64,
            (reg, _) => f(r.word(reg)[l]) as f64,
        };
        let (value, error, round) = exact(i.op, get(0), get(1), get(2));
        let error = if error.is_nan() { 0.0 } else { error };
        if ty == Type::F64 {
            r.longs[i.dst as usize][l] = bits64(round64(value, error, round));
        } else {
            let x = round32(value, error, round);
            let x = bits(x);
            let x = if i.ftz { flush(x) } else { x };
            r.words[i.dst as usize][l] = if i.sat { saturate(x) } else { x };
        }
    }
}
