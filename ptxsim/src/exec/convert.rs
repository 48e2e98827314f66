//! `cvt` of one value.

use crate::exec::float::{self, bits, bits64, d, f};
use crate::isa::{CvtFlags, Round, Type};

/// Rounded to an integral value in f64; exact for all narrower formats.
fn integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
        Round::Away => x.round(),
    }
}

/// The value of a float operand; exact in f64.
fn float_value(ty: Type, x: u64, ftz: bool) -> f64 {
    match ty {
        Type::F64 => d(x),
        Type::F32 if ftz => f(float::flush(x as u32)) as f64,
        Type::F32 => f(x as u32) as f64,
        Type::F16 => float::from_f16(x as u32) as f64,
        _ => float::from_bf16(x as u32) as f64,
    }
}

/// An integer operand as a wide integer.
fn integer_value(ty: Type, x: u64) -> i128 {
    match ty {
        Type::S8 => x as i8 as i128,
        Type::S16 => x as i16 as i128,
        Type::S32 => x as i32 as i128,
        Type::S64 => x as i64 as i128,
        _ => (x & mask(ty.size())) as i128,
    }
}

fn mask(size: usize) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (8 * size)) - 1 }
}

fn range(ty: Type) -> (i128, i128) {
    let width = 8 * ty.size() as u32;
    if ty.is_signed() { (-(1 << (width - 1)), (1 << (width - 1)) - 1) } else { (0, (1 << width) - 1) }
}

/// f32 rounded to 16 bits (`keep` mantissa bits fewer) in a direction, by its bits.
fn narrow(ty: Type, x: f64, round: Round) -> u32 {
    let half = if ty == Type::F16 { float::Half::F16 } else { float::Half::Bf16 };
    let near = half.put64(x);
    if x.is_nan() || x.is_infinite() || matches!(round, Round::Nearest | Round::Away) {
        return near;
    }
    let value = half.get(near) as f64;
    let down = match round {
        Round::Zero => x > 0.0,
        Round::Down => true,
        _ => false,
    };
    if value > x && down {
        step(near, false)
    } else if value < x && !down {
        step(near, true)
    } else {
        near
    }
}

/// The next 16-bit float up or down.
fn step(bits: u32, up: bool) -> u32 {
    match (bits & 0x7fff, bits >> 15 != 0) {
        (0, _) => 1 | if up { 0 } else { 0x8000 },
        (_, negative) if negative == up => bits - 1,
        _ => bits + 1,
    }
}

/// f32 to tf32: 10 bits of mantissa.
fn tf32(x: u32, round: Round) -> u32 {
    if f(x).is_nan() {
        return float::NAN32;
    }
    if f(x).is_infinite() {
        return x;
    }
    match round {
        Round::Zero => x & !0x1fff,
        Round::Nearest => x.wrapping_add(0xfff + (x >> 13 & 1)) & !0x1fff,
        _ => x.wrapping_add(0x1000) & !0x1fff,
    }
}

/// One value from a register to a register.
pub(crate) fn convert(to: Type, from: Type, round: Round, flags: CvtFlags, x: u64) -> u64 {
    let extend = |v: i128| {
        // a register wider than the type: sign- or zero-extended
        let bits = v as u64 & mask(to.size());
        let wide = if to.is_signed() { integer_value(to, bits) as u64 } else { bits };
        if flags.long_to { wide } else { wide & 0xffff_ffff }
    };
    match (to.is_float(), from.is_float()) {
        (false, false) => {
            let mut v = integer_value(from, x);
            if flags.sat {
                let (low, high) = range(to);
                v = v.clamp(low, high);
            }
            extend(v)
        }
        (false, true) => {
            let v = integral(float_value(from, x, flags.ftz), round);
            let (low, high) = range(to);
            // NaN to zero; but 64-bit and 32-bit from f64 give the top bit alone
            let v = if v.is_nan() {
                if to.size() == 8 {
                    1 << 63
                } else if from == Type::F64 {
                    if to.size() == 4 { 1 << 31 } else { 0 }
                } else {
                    0
                }
            } else {
                (v as i128).clamp(low, high)
            };
            extend(v)
        }
        (true, false) => {
            let v = integer_value(from, x);
            let out = match to {
                Type::F64 => bits64(round_integer64(v, round)),
                Type::F32 => bits(round_integer32(v, round)) as u64,
                _ => narrow_integer(to, v, round) as u64,
            };
            if flags.sat { saturate(to, out) } else { out }
        }
        (true, true) => {
            let mut v = float_value(from, x, flags.ftz);
            if to == Type::Tf32 {
                return tf32(x as u32, round) as u64;
            }
            if flags.integral {
                v = integral(v, round);
            }
            if flags.relu && v <= 0.0 {
                v = 0.0;
            }
            let same_bits = to == from && !flags.integral;
            let out = match to {
                Type::F64 => bits64(v),
                Type::F32 if same_bits => bits(v as f32) as u64,
                Type::F32 => bits(float::round32(v, 0.0, if flags.integral { Round::Nearest } else { round })) as u64,
                _ => narrow(to, v, if flags.integral { Round::Nearest } else { round }) as u64,
            };
            let out = if flags.ftz && to == Type::F32 { float::flush(out as u32) as u64 } else { out };
            if flags.sat { saturate(to, out) } else { out }
        }
    }
}

fn saturate(to: Type, x: u64) -> u64 {
    let v = float_value(to, x, false);
    if v > 0.0 {
        if v >= 1.0 {
            match to {
                Type::F64 => 1f64.to_bits(),
                Type::F32 => 1f32.to_bits() as u64,
                Type::F16 => 0x3c00,
                _ => 0x3f80,
            }
        } else {
            x
        }
    } else {
        0
    }
}

/// An integer to the nearest float of a direction: the nearest, then one step if it lies on the wrong side.
fn round_integer32(v: i128, round: Round) -> f32 {
    let near = v as f32;
    let error = near as i128 - v;
    match round {
        Round::Down if error > 0 => near.next_down(),
        Round::Up if error < 0 => near.next_up(),
        Round::Zero if error > 0 && v > 0 => near.next_down(),
        Round::Zero if error < 0 && v < 0 => near.next_up(),
        _ => near,
    }
}

fn round_integer64(v: i128, round: Round) -> f64 {
    let near = v as f64;
    let error = near as i128 - v;
    match round {
        Round::Down if error > 0 => near.next_down(),
        Round::Up if error < 0 => near.next_up(),
        Round::Zero if error > 0 && v > 0 => near.next_down(),
        Round::Zero if error < 0 && v < 0 => near.next_up(),
        _ => near,
    }
}

fn narrow_integer(to: Type, v: i128, round: Round) -> u32 {
    let near = v as f64;
    // more than 53 bits: the f64 is made odd, so that the rounding to 16 bits is right
    let odd = float::to_odd(near, (v - near as i128) as f64);
    narrow(to, odd, round)
}

/// f32 to a 16-bit float with the modifiers of `cvt`.
pub(crate) fn to_half(to: Type, x: u32, round: Round, flags: CvtFlags) -> u32 {
    let x = if flags.relu && !(f(x) > 0.0) && !f(x).is_nan() { 0 } else { x };
    match (to, round) {
        (Type::Bf16 | Type::Bf16x2, Round::Nearest) => float::to_bf16(f(x)),
        (Type::F16 | Type::F16x2, Round::Nearest) => float::to_f16(f(x)),
        (Type::Bf16 | Type::Bf16x2, _) => narrow(Type::Bf16, f(x) as f64, round),
        _ => narrow(Type::F16, f(x) as f64, round),
    }
}
