//! `cvt` between all types.

use crate::harness::{Form, b, check, d, f, form};
use half::{bf16, f16};

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn h(x: u64) -> f32 {
    f16::from_bits(x as u16).to_f32()
}

fn to_h(x: f32) -> u64 {
    f16::from_f32(x).to_bits() as u64
}

fn to_g(x: f32) -> u64 {
    bf16::from_f32(x).to_bits() as u64
}

/// bf16 is the top of an f32; towards zero cuts the rest off.
fn truncated(x: f32) -> u64 {
    if x.is_nan() { 0x7fff } else { (x.to_bits() >> 16) as u64 }
}

fn tf32(x: f32) -> u64 {
    // to nearest, ties away from zero, 10 bits kept
    if !x.is_finite() { b(x) } else { (x.to_bits().wrapping_add(0x1000) & !0x1fff) as u64 }
}

macro_rules! all_integers {
    ($forms:ident, $to:literal, $rust:ty) => {
        all_integers!(@one $forms, $to, $rust, "u16", u16);
        all_integers!(@one $forms, $to, $rust, "s16", i16);
        all_integers!(@one $forms, $to, $rust, "u32", u32);
        all_integers!(@one $forms, $to, $rust, "s32", i32);
        all_integers!(@one $forms, $to, $rust, "u64", u64);
        all_integers!(@one $forms, $to, $rust, "s64", i64);
    };
    (@one $forms:ident, $to:literal, $rust:ty, $from:literal, $source:ty) => {
        $forms.push(form(concat!("cvt.", $to, ".", $from, " %d, %a;"), concat!($to, " ", $from), |x| {
            (x[0] as $source) as $rust as u64
        }));
        $forms.push(form(concat!("cvt.sat.", $to, ".", $from, " %d, %a;"), concat!($to, " ", $from), |x| {
            ((x[0] as $source) as i128).clamp(<$rust>::MIN as i128, <$rust>::MAX as i128) as u64
        }));
    };
}

macro_rules! to_float {
    ($forms:ident, $from:literal, $source:ty) => {
        $forms.push(form(concat!("cvt.rn.f32.", $from, " %d, %a;"), concat!("f32 ", $from), |x| {
            b((x[0] as $source) as f32)
        }));
        $forms.push(form(concat!("cvt.rn.f64.", $from, " %d, %a;"), concat!("f64 ", $from), |x| {
            ((x[0] as $source) as f64).to_bits()
        }));
    };
}

macro_rules! from_float {
    ($forms:ident, $to:literal, $rust:ty, $nan32:expr, $nan64:expr) => {
        $forms.push(form(concat!("cvt.rzi.", $to, ".f32 %d, %a;"), concat!($to, " f32"), |x| {
            if f(x[0]).is_nan() { $nan32 } else { f(x[0]) as $rust as u64 }
        }));
        $forms.push(form(concat!("cvt.rni.", $to, ".f32 %d, %a;"), concat!($to, " f32"), |x| {
            if f(x[0]).is_nan() { $nan32 } else { f(x[0]).round_ties_even() as $rust as u64 }
        }));
        $forms.push(form(concat!("cvt.rmi.", $to, ".f32 %d, %a;"), concat!($to, " f32"), |x| {
            if f(x[0]).is_nan() { $nan32 } else { f(x[0]).floor() as $rust as u64 }
        }));
        $forms.push(form(concat!("cvt.rpi.", $to, ".f32 %d, %a;"), concat!($to, " f32"), |x| {
            if f(x[0]).is_nan() { $nan32 } else { f(x[0]).ceil() as $rust as u64 }
        }));
        $forms.push(form(concat!("cvt.rzi.", $to, ".f64 %d, %a;"), concat!($to, " f64"), |x| {
            if d(x[0]).is_nan() { $nan64 } else { d(x[0]) as $rust as u64 }
        }));
    };
}

pub(crate) fn forms() -> Vec<Form> {
    let mut all = vec![];
    all_integers!(all, "u16", u16);
    all_integers!(all, "s16", i16);
    all_integers!(all, "u32", u32);
    all_integers!(all, "s32", i32);
    all_integers!(all, "u64", u64);
    all_integers!(all, "s64", i64);
    to_float!(all, "u16", u16);
    to_float!(all, "s16", i16);
    to_float!(all, "u32", u32);
    to_float!(all, "s32", i32);
    to_float!(all, "u64", u64);
    to_float!(all, "s64", i64);
    // what NaN becomes is what the hardware does
    from_float!(all, "u16", u16, 0, 0);
    from_float!(all, "s16", i16, 0, 0);
    from_float!(all, "u32", u32, 0, 1 << 31);
    from_float!(all, "s32", i32, 0, 1 << 31);
    from_float!(all, "u64", u64, 1 << 63, 1 << 63);
    from_float!(all, "s64", i64, 1 << 63, 1 << 63);
    all.extend([
        // bytes in wider registers
        form("cvt.s32.s8 %d, %a;", "s32 b32", |x| x[0] as i8 as u64),
        form("cvt.u32.u8 %d, %a;", "u32 b32", |x| x[0] as u8 as u64),
        form("cvt.u16.u8 %d, %a;", "u16 b16", |x| x[0] as u8 as u64),
        form("cvt.s16.s8 %d, %a;", "s16 b16", |x| x[0] as i8 as u64),
        form("cvt.u8.u32 %d, %a;", "b16 b32", |x| x[0] & 0xff),
        form("cvt.sat.u8.s32 %d, %a;", "b16 s32", |x| (x[0] as i32).clamp(0, 255) as u64),
        form("cvt.s64.s8 %d, %a;", "s64 b64", |x| x[0] as i8 as u64),
        form("cvt.rn.f32.u8 %d, %a;", "f32 b32", |x| b(x[0] as u8 as f32)),
        form("cvt.rn.f32.s8 %d, %a;", "f32 b16", |x| b(x[0] as i8 as f32)),
        // floats
        form("cvt.f32.f32 %d, %a;", "f32 f32", |x| x[0]),
        form("cvt.ftz.f32.f32 %d, %a;", "f32 f32", |x| b(flush(f(x[0])))),
        form("cvt.sat.f32.f32 %d, %a;", "f32 f32", |x| {
            b(if f(x[0]).is_nan() { 0.0 } else { f(x[0]).clamp(0.0, 1.0) + 0.0 })
        }),
        form("cvt.rzi.f32.f32 %d, %a;", "f32 f32", |x| b(f(x[0]).trunc())),
        form("cvt.rni.f32.f32 %d, %a;", "f32 f32", |x| b(f(x[0]).round_ties_even())),
        form("cvt.rmi.f32.f32 %d, %a;", "f32 f32", |x| b(f(x[0]).floor())),
        form("cvt.rpi.f32.f32 %d, %a;", "f32 f32", |x| b(f(x[0]).ceil())),
        form("cvt.rmi.f64.f64 %d, %a;", "f64 f64", |x| d(x[0]).floor().to_bits()),
        form("cvt.f64.f32 %d, %a;", "f64 f32", |x| (f(x[0]) as f64).to_bits()),
        form("cvt.rn.f32.f64 %d, %a;", "f32 f64", |x| b(d(x[0]) as f32)),
        form("cvt.rz.f32.f64 %d, %a;", "f32 f64", |x| {
            let near = d(x[0]) as f32;
            let beyond = (near as f64).abs() > d(x[0]).abs();
            b(if beyond { near.signum() * near.abs().next_down() } else { near })
        }),
        form("cvt.rp.f32.f64 %d, %a;", "f32 f64", |x| {
            let near = d(x[0]) as f32;
            b(if (near as f64) < d(x[0]) { near.next_up() } else { near })
        }),
        form("cvt.rm.f32.s32 %d, %a;", "f32 s32", |x| {
            let near = x[0] as i32 as f32;
            b(if near as f64 > x[0] as i32 as f64 { near.next_down() } else { near })
        }),
        form("cvt.rz.f32.u64 %d, %a;", "f32 u64", |x| {
            let near = x[0] as f32;
            b(if near as u128 > x[0] as u128 { near.next_down() } else { near })
        }),
        form("cvt.f32.f16 %d, %a;", "f32 f16", |x| b(h(x[0]))),
        form("cvt.rn.f16.f32 %d, %a;", "f16 f32", |x| to_h(f(x[0]))),
        form("cvt.rn.f16.f64 %d, %a;", "f16 f64", |x| f16::from_f64(d(x[0])).to_bits() as u64),
        form("cvt.f64.f16 %d, %a;", "f64 f16", |x| (h(x[0]) as f64).to_bits()),
        form("cvt.rz.f16.f32 %d, %a;", "f16 f32", |x| {
            let near = f16::from_f32(f(x[0]));
            let beyond = near.to_f32().abs() > f(x[0]).abs();
            near.to_bits() as u64 - beyond as u64
        }),
        form("cvt.rn.f16.s32 %d, %a;", "f16 s32", |x| f16::from_f64(x[0] as i32 as f64).to_bits() as u64),
        form("cvt.rzi.s32.f16 %d, %a;", "s32 f16", |x| h(x[0]) as i32 as u64),
        form("cvt.f32.bf16 %d, %a;", "f32 bf16", |x| x[0] << 16),
        form("cvt.rn.bf16.f32 %d, %a;", "bf16 f32", |x| to_g(f(x[0]))),
        form("cvt.rz.bf16.f32 %d, %a;", "bf16 f32", |x| truncated(f(x[0]))),
        form("cvt.rn.relu.bf16.f32 %d, %a;", "bf16 f32", |x| to_g(if f(x[0]) <= 0.0 { 0.0 } else { f(x[0]) })),
        form("cvt.rn.bf16x2.f32 %d, %a, %b;", "bf16x2 f32 f32", |x| to_g(f(x[0])) << 16 | to_g(f(x[1]))),
        form("cvt.rz.bf16x2.f32 %d, %a, %b;", "bf16x2 f32 f32", |x| truncated(f(x[0])) << 16 | truncated(f(x[1]))),
        form("cvt.rn.f16x2.f32 %d, %a, %b;", "f16x2 f32 f32", |x| to_h(f(x[0])) << 16 | to_h(f(x[1]))),
        form("cvt.rn.relu.f16x2.f32 %d, %a, %b;", "f16x2 f32 f32", |x| {
            let relu = |x: f32| to_h(if x <= 0.0 { 0.0 } else { x });
            relu(f(x[0])) << 16 | relu(f(x[1]))
        }),
        form("cvt.rna.tf32.f32 %d, %a;", "tf32 f32", |x| if f(x[0]).is_nan() { 0x7fff_ffff } else { tf32(f(x[0])) }),
    ]);
    all
}

#[test]
fn conversions() {
    for form in forms() {
        check(&form);
    }
}
