//! Floating-point arithmetic and comparison.

use crate::harness::{Form, b, check, d, f, form};
use half::{bf16, f16};

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn saturate(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 }
}

/// The smaller, -0 below +0, a number before NaN.
fn min(x: f32, y: f32) -> f32 {
    if x.is_nan() || y.total_cmp(&x).is_lt() && !y.is_nan() { y } else { x }
}

fn max(x: f32, y: f32) -> f32 {
    if x.is_nan() || y.total_cmp(&x).is_gt() && !y.is_nan() { y } else { x }
}

fn min64(x: f64, y: f64) -> f64 {
    if x.is_nan() || y.total_cmp(&x).is_lt() && !y.is_nan() { y } else { x }
}

fn max64(x: f64, y: f64) -> f64 {
    if x.is_nan() || y.total_cmp(&x).is_gt() && !y.is_nan() { y } else { x }
}

fn h(x: u64) -> f64 {
    f16::from_bits(x as u16).to_f64()
}

fn to_h(x: f64) -> u64 {
    f16::from_f64(x).to_bits() as u64
}

fn g(x: u64) -> f64 {
    bf16::from_bits(x as u16).to_f64()
}

fn to_g(x: f64) -> u64 {
    bf16::from_f64(x).to_bits() as u64
}

/// Whether an f32 is on the wrong side of an exact value, which is what a directed rounding may not be.
fn directed(round: &str, near: f32, above_exact: bool, below_exact: bool, sign: f64) -> u64 {
    let down = match round {
        "rm" => true,
        "rp" => false,
        _ => sign > 0.0,
    };
    b(if above_exact && down {
        near.next_down()
    } else if below_exact && !down {
        near.next_up()
    } else {
        near
    })
}

/// f32 sums and products are exact in f64, or nearly: those that are not are compared by f64's own rounding.
fn rounded(round: &'static str, exact: f64) -> u64 {
    let near = exact as f32;
    if near.is_nan() || exact.is_infinite() {
        return b(near);
    }
    directed(round, near, near as f64 > exact, (near as f64) < exact, exact)
}

pub(crate) fn forms() -> Vec<Form> {
    let mut all = vec![
        form("add.f32 %d, %a, %b;", "f32 f32 f32", |x| b(f(x[0]) + f(x[1]))),
        form("add.rn.f32 %d, %a, %b;", "f32 f32 f32", |x| b(f(x[0]) + f(x[1]))),
        form("add.ftz.f32 %d, %a, %b;", "f32 f32 f32", |x| b(flush(flush(f(x[0])) + flush(f(x[1]))))),
        form("add.sat.f32 %d, %a, %b;", "f32 f32 f32", |x| b(saturate(f(x[0]) + f(x[1])))),
        form("sub.f32 %d, %a, %b;", "f32 f32 f32", |x| b(f(x[0]) - f(x[1]))),
        form("mul.f32 %d, %a, %b;", "f32 f32 f32", |x| b(f(x[0]) * f(x[1]))),
        form("mul.ftz.f32 %d, %a, %b;", "f32 f32 f32", |x| b(flush(flush(f(x[0])) * flush(f(x[1]))))),
        form("mul.rz.f32 %d, %a, %b;", "f32 f32 f32", |x| rounded("rz", f(x[0]) as f64 * f(x[1]) as f64)),
        form("mul.rm.f32 %d, %a, %b;", "f32 f32 f32", |x| rounded("rm", f(x[0]) as f64 * f(x[1]) as f64)),
        form("mul.rp.f32 %d, %a, %b;", "f32 f32 f32", |x| rounded("rp", f(x[0]) as f64 * f(x[1]) as f64)),
        form("fma.rn.f32 %d, %a, %b, %c;", "f32 f32 f32 f32", |x| b(f(x[0]).mul_add(f(x[1]), f(x[2])))),
        form("fma.rn.ftz.f32 %d, %a, %b, %c;", "f32 f32 f32 f32", |x| {
            b(flush(flush(f(x[0])).mul_add(flush(f(x[1])), flush(f(x[2])))))
        }),
        form("fma.rn.sat.f32 %d, %a, %b, %c;", "f32 f32 f32 f32", |x| b(saturate(f(x[0]).mul_add(f(x[1]), f(x[2]))))),
        form("mad.rn.f32 %d, %a, %b, %c;", "f32 f32 f32 f32", |x| b(f(x[0]).mul_add(f(x[1]), f(x[2])))),
        form("div.rn.f32 %d, %a, %b;", "f32 f32 f32", |x| b(f(x[0]) / f(x[1]))),
        form("div.full.f32 %d, %a, %b;", "f32 f32 f32", |x| b(f(x[0]) / f(x[1]))),
        form("div.approx.f32 %d, %a, %b;", "f32 f32 f32", |x| b(f(x[0]) / f(x[1]))),
        form("div.rn.ftz.f32 %d, %a, %b;", "f32 f32 f32", |x| b(flush(flush(f(x[0])) / flush(f(x[1]))))),
        form("min.f32 %d, %a, %b;", "f32 f32 f32", |x| b(min(f(x[0]), f(x[1])))),
        form("max.f32 %d, %a, %b;", "f32 f32 f32", |x| b(max(f(x[0]), f(x[1])))),
        form("min.NaN.f32 %d, %a, %b;", "f32 f32 f32", |x| {
            if f(x[0]).is_nan() || f(x[1]).is_nan() { b(f32::NAN) } else { b(min(f(x[0]), f(x[1]))) }
        }),
        form("max.NaN.f32 %d, %a, %b;", "f32 f32 f32", |x| {
            if f(x[0]).is_nan() || f(x[1]).is_nan() { b(f32::NAN) } else { b(max(f(x[0]), f(x[1]))) }
        }),
        form("abs.f32 %d, %a;", "f32 f32", |x| b(f(x[0]).abs())),
        form("abs.ftz.f32 %d, %a;", "f32 f32", |x| b(flush(f(x[0])).abs())),
        form("neg.f32 %d, %a;", "f32 f32", |x| b(-f(x[0]))),
        form("copysign.f32 %d, %a, %b;", "f32 f32 f32", |x| b(f(x[1]).copysign(f(x[0])))),
        form("copysign.f64 %d, %a, %b;", "f64 f64 f64", |x| d(x[1]).copysign(d(x[0])).to_bits()),
        form("rcp.rn.f32 %d, %a;", "f32 f32", |x| b(1.0 / f(x[0]))),
        form("rcp.approx.ftz.f32 %d, %a;", "f32 f32", |x| b(flush(1.0 / flush(f(x[0]))))),
        form("rcp.rn.f64 %d, %a;", "f64 f64", |x| (1.0 / d(x[0])).to_bits()),
        form("rcp.approx.ftz.f64 %d, %a;", "f64 f64", |x| (1.0 / d(x[0])).to_bits()),
        form("sqrt.rn.f32 %d, %a;", "f32 f32", |x| b(f(x[0]).sqrt())),
        form("sqrt.approx.f32 %d, %a;", "f32 f32", |x| b(f(x[0]).sqrt())),
        form("sqrt.rn.f64 %d, %a;", "f64 f64", |x| d(x[0]).sqrt().to_bits()),
        form("rsqrt.approx.f32 %d, %a;", "f32 f32", |x| b((1.0 / (f(x[0]) as f64).sqrt()) as f32)),
        form("rsqrt.approx.f64 %d, %a;", "f64 f64", |x| (1.0 / d(x[0]).sqrt()).to_bits()),
        form("sin.approx.f32 %d, %a;", "f32 f32", |x| b((f(x[0]) as f64).sin() as f32)),
        form("cos.approx.f32 %d, %a;", "f32 f32", |x| b((f(x[0]) as f64).cos() as f32)),
        form("ex2.approx.f32 %d, %a;", "f32 f32", |x| b((f(x[0]) as f64).exp2() as f32)),
        form("ex2.approx.ftz.f32 %d, %a;", "f32 f32", |x| b(flush((flush(f(x[0])) as f64).exp2() as f32))),
        form("lg2.approx.f32 %d, %a;", "f32 f32", |x| b((f(x[0]) as f64).log2() as f32)),
        form("lg2.approx.ftz.f32 %d, %a;", "f32 f32", |x| b(flush((flush(f(x[0])) as f64).log2() as f32))),
        form("tanh.approx.f32 %d, %a;", "f32 f32", |x| b((f(x[0]) as f64).tanh() as f32)),
        form("testp.finite.f32 %d, %a;", "pred f32", |x| f(x[0]).is_finite() as u64),
        form("testp.infinite.f32 %d, %a;", "pred f32", |x| f(x[0]).is_infinite() as u64),
        form("testp.number.f32 %d, %a;", "pred f32", |x| !f(x[0]).is_nan() as u64),
        form("testp.notanumber.f64 %d, %a;", "pred f64", |x| d(x[0]).is_nan() as u64),
        form("testp.normal.f32 %d, %a;", "pred f32", |x| f(x[0]).is_normal() as u64),
        form("testp.subnormal.f32 %d, %a;", "pred f32", |x| f(x[0]).is_subnormal() as u64),
        form("add.f64 %d, %a, %b;", "f64 f64 f64", |x| (d(x[0]) + d(x[1])).to_bits()),
        form("sub.f64 %d, %a, %b;", "f64 f64 f64", |x| (d(x[0]) - d(x[1])).to_bits()),
        form("mul.f64 %d, %a, %b;", "f64 f64 f64", |x| (d(x[0]) * d(x[1])).to_bits()),
        form("fma.rn.f64 %d, %a, %b, %c;", "f64 f64 f64 f64", |x| d(x[0]).mul_add(d(x[1]), d(x[2])).to_bits()),
        form("div.rn.f64 %d, %a, %b;", "f64 f64 f64", |x| (d(x[0]) / d(x[1])).to_bits()),
        form("min.f64 %d, %a, %b;", "f64 f64 f64", |x| min64(d(x[0]), d(x[1])).to_bits()),
        form("max.f64 %d, %a, %b;", "f64 f64 f64", |x| max64(d(x[0]), d(x[1])).to_bits()),
        form("abs.f64 %d, %a;", "f64 f64", |x| d(x[0]).abs().to_bits()),
        form("neg.f64 %d, %a;", "f64 f64", |x| (-d(x[0])).to_bits()),
        form("setp.lt.f64 %d, %a, %b;", "pred f64 f64", |x| (d(x[0]) < d(x[1])) as u64),
        form("setp.lt.f16 %d, %a, %b;", "pred f16 f16", |x| (h(x[0]) < h(x[1])) as u64),
        form("setp.ge.bf16 %d, %a, %b;", "pred bf16 bf16", |x| (g(x[0]) >= g(x[1])) as u64),
        form("setp.eq.ftz.f32 %d, %a, %b;", "pred f32 f32", |x| (flush(f(x[0])) == flush(f(x[1]))) as u64),
        // 16-bit floats: rounded once
        form("add.rn.f16 %d, %a, %b;", "f16 f16 f16", |x| to_h(h(x[0]) + h(x[1]))),
        form("sub.f16 %d, %a, %b;", "f16 f16 f16", |x| to_h(h(x[0]) - h(x[1]))),
        form("mul.f16 %d, %a, %b;", "f16 f16 f16", |x| to_h(h(x[0]) * h(x[1]))),
        form("fma.rn.f16 %d, %a, %b, %c;", "f16 f16 f16 f16", |x| to_h(h(x[0]).mul_add(h(x[1]), h(x[2])))),
        form("fma.rn.relu.f16 %d, %a, %b, %c;", "f16 f16 f16 f16", |x| {
            let y = h(x[0]).mul_add(h(x[1]), h(x[2]));
            to_h(if y <= 0.0 { 0.0 } else { y })
        }),
        form("min.f16 %d, %a, %b;", "f16 f16 f16", |x| to_h(min64(h(x[0]), h(x[1])))),
        form("max.f16 %d, %a, %b;", "f16 f16 f16", |x| to_h(max64(h(x[0]), h(x[1])))),
        form("max.NaN.f16 %d, %a, %b;", "f16 f16 f16", |x| {
            to_h(if h(x[0]).is_nan() || h(x[1]).is_nan() { f64::NAN } else { max64(h(x[0]), h(x[1])) })
        }),
        form("abs.f16 %d, %a;", "f16 f16", |x| x[0] & 0x7fff),
        form("neg.f16 %d, %a;", "f16 f16", |x| x[0] ^ 0x8000),
        form("ex2.approx.f16 %d, %a;", "f16 f16", |x| to_h(h(x[0]).exp2())),
        form("tanh.approx.bf16 %d, %a;", "bf16 bf16", |x| to_g(g(x[0]).tanh() as f32 as f64)),
        form("fma.rn.bf16 %d, %a, %b, %c;", "bf16 bf16 bf16 bf16", |x| to_g_exact(g(x[0]), g(x[1]), g(x[2]))),
        form("add.rn.bf16 %d, %a, %b;", "bf16 bf16 bf16", |x| to_g_exact(g(x[0]), 1.0, g(x[1]))),
        form("mul.rn.bf16 %d, %a, %b;", "bf16 bf16 bf16", |x| to_g(g(x[0]) * g(x[1]))),
        form("min.bf16 %d, %a, %b;", "bf16 bf16 bf16", |x| to_g(min64(g(x[0]), g(x[1])))),
        form("max.bf16 %d, %a, %b;", "bf16 bf16 bf16", |x| to_g(max64(g(x[0]), g(x[1])))),
        form("min.NaN.bf16 %d, %a, %b;", "bf16 bf16 bf16", |x| {
            to_g(if g(x[0]).is_nan() || g(x[1]).is_nan() { f64::NAN } else { min64(g(x[0]), g(x[1])) })
        }),
        form("abs.bf16 %d, %a;", "bf16 bf16", |x| x[0] & 0x7fff),
        form("neg.bf16 %d, %a;", "bf16 bf16", |x| x[0] ^ 0x8000),
        form("add.f16x2 %d, %a, %b;", "f16x2 f16x2 f16x2", |x| pair(x, |x| to_h(h(x[0]) + h(x[1])))),
        form("fma.rn.f16x2 %d, %a, %b, %c;", "f16x2 f16x2 f16x2 f16x2", |x| {
            pair(x, |x| to_h(h(x[0]).mul_add(h(x[1]), h(x[2]))))
        }),
        form("fma.rn.bf16x2 %d, %a, %b, %c;", "bf16x2 bf16x2 bf16x2 bf16x2", |x| {
            pair(x, |x| to_g_exact(g(x[0]), g(x[1]), g(x[2])))
        }),
        form("max.bf16x2 %d, %a, %b;", "bf16x2 bf16x2 bf16x2", |x| pair(x, |x| to_g(max64(g(x[0]), g(x[1]))))),
        form("neg.bf16x2 %d, %a;", "bf16x2 bf16x2", |x| x[0] ^ 0x8000_8000),
    ];
    type Test = fn(f32, f32) -> bool;
    let comparisons: [(&'static str, Test); 14] = [
        ("setp.eq.f32 %d, %a, %b;", |x, y| x == y),
        ("setp.ne.f32 %d, %a, %b;", |x, y| x != y && !x.is_nan() && !y.is_nan()),
        ("setp.lt.f32 %d, %a, %b;", |x, y| x < y),
        ("setp.le.f32 %d, %a, %b;", |x, y| x <= y),
        ("setp.gt.f32 %d, %a, %b;", |x, y| x > y),
        ("setp.ge.f32 %d, %a, %b;", |x, y| x >= y),
        ("setp.equ.f32 %d, %a, %b;", |x, y| x == y || x.is_nan() || y.is_nan()),
        ("setp.neu.f32 %d, %a, %b;", |x, y| x != y),
        ("setp.ltu.f32 %d, %a, %b;", |x, y| x < y || x.is_nan() || y.is_nan()),
        ("setp.leu.f32 %d, %a, %b;", |x, y| x <= y || x.is_nan() || y.is_nan()),
        ("setp.gtu.f32 %d, %a, %b;", |x, y| x > y || x.is_nan() || y.is_nan()),
        ("setp.geu.f32 %d, %a, %b;", |x, y| x >= y || x.is_nan() || y.is_nan()),
        ("setp.num.f32 %d, %a, %b;", |x, y| !x.is_nan() && !y.is_nan()),
        ("setp.nan.f32 %d, %a, %b;", |x, y| x.is_nan() || y.is_nan()),
    ];
    for (text, test) in comparisons {
        all.push(form(text, "pred f32 f32", move |x| test(f(x[0]), f(x[1])) as u64));
    }
    all
}

/// `a * b + c` as bf16: the f64 sum may be inexact, so it is made odd before it is rounded.
fn to_g_exact(a: f64, b: f64, c: f64) -> u64 {
    let sum = a.mul_add(b, c);
    if sum.is_finite() && sum.to_bits() & 1 == 0 {
        let product = a * b;
        let high = sum - product;
        let error = (product - (sum - high)) + (c - high);
        if error != 0.0 {
            return to_g(if (error > 0.0) == (sum > 0.0) { sum.next_up_in_size() } else { sum.next_down_in_size() });
        }
    }
    to_g(sum)
}

trait Size {
    fn next_up_in_size(self) -> f64;
    fn next_down_in_size(self) -> f64;
}

impl Size for f64 {
    fn next_up_in_size(self) -> f64 {
        f64::from_bits(self.to_bits() + 1)
    }
    fn next_down_in_size(self) -> f64 {
        f64::from_bits(self.to_bits() - 1)
    }
}

/// A function of 16-bit values for both halves.
fn pair(x: &[u64], f: impl Fn(&[u64]) -> u64) -> u64 {
    let low: Vec<u64> = x.iter().map(|v| v & 0xffff).collect();
    let high: Vec<u64> = x.iter().map(|v| v >> 16 & 0xffff).collect();
    f(&low) | f(&high) << 16
}

#[test]
fn floats() {
    for form in forms() {
        check(&form);
    }
}

/// Directed rounding brackets the nearest value, and is exact where the result is.
#[test]
fn directed_rounding() {
    for (op, exact) in [
        ("add", (|a, b| a + b) as fn(f64, f64) -> f64),
        ("sub", |a, b| a - b),
        ("mul", |a, b| a * b),
        ("div", |a, b| a / b),
    ] {
        for round in ["rz", "rm", "rp"] {
            let text = format!("{op}.{round}.f32 %d, %a, %b;").leak();
            check(&form(text, "f32 f32 f32", move |x| {
                let (x, y) = (f(x[0]) as f64, f(x[1]) as f64);
                let near = exact(x, y);
                if !near.is_finite() {
                    return b(near as f32);
                }
                // the sign of what the f64 lost
                let lost = match op {
                    "add" => sum_error(x, y),
                    "sub" => sum_error(x, -y),
                    "mul" => 0.0,
                    _ => near.mul_add(-y, x) / y,
                };
                let single = near as f32;
                let wide = single as f64;
                let above = wide > near || wide == near && lost < 0.0;
                let below = wide < near || wide == near && lost > 0.0;
                directed(round, single, above, below, if near == 0.0 { lost } else { near })
            }));
        }
    }
}

fn sum_error(x: f64, y: f64) -> f64 {
    let sum = x + y;
    let high = sum - x;
    (x - (sum - high)) + (y - high)
}
