//! Integer arithmetic, logic and comparison.

use crate::harness::{Form, b, check, f, form};

fn s32(x: u64) -> i32 {
    x as i32
}

fn s16(x: u64) -> i16 {
    x as i16
}

/// Forms of one opcode for all integer types: a name, and functions of that name on Rust's integers.
macro_rules! integers {
    ($forms:ident, $name:literal, |$a:ident, $b:ident| $value:expr) => {
        integers!(@one $forms, $name, "u16", u16, |$a, $b| $value);
        integers!(@one $forms, $name, "s16", i16, |$a, $b| $value);
        integers!(@one $forms, $name, "u32", u32, |$a, $b| $value);
        integers!(@one $forms, $name, "s32", i32, |$a, $b| $value);
        integers!(@one $forms, $name, "u64", u64, |$a, $b| $value);
        integers!(@one $forms, $name, "s64", i64, |$a, $b| $value);
    };
    (@one $forms:ident, $name:literal, $ty:literal, $rust:ty, |$a:ident, $b:ident| $value:expr) => {
        $forms.push(form(concat!($name, ".", $ty, " %d, %a, %b;"), concat!($ty, " ", $ty, " ", $ty), |x| {
            let ($a, $b) = (x[0] as $rust, x[1] as $rust);
            ($value) as u64
        }));
    };
}

macro_rules! comparisons {
    ($forms:ident, $ty:literal, $rust:ty) => {
        comparisons!(@one $forms, "eq", $ty, $rust, ==);
        comparisons!(@one $forms, "ne", $ty, $rust, !=);
        comparisons!(@one $forms, "lt", $ty, $rust, <);
        comparisons!(@one $forms, "le", $ty, $rust, <=);
        comparisons!(@one $forms, "gt", $ty, $rust, >);
        comparisons!(@one $forms, "ge", $ty, $rust, >=);
    };
    (@one $forms:ident, $name:literal, $ty:literal, $rust:ty, $op:tt) => {
        $forms.push(form(concat!("setp.", $name, ".", $ty, " %d, %a, %b;"), concat!("pred ", $ty, " ", $ty), |x| {
            ((x[0] as $rust) $op (x[1] as $rust)) as u64
        }));
    };
}

/// `bfe` as PTX defines it, bit by bit.
fn field(x: u64, pos: u64, len: u64, width: u64, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let bit = |i: u64| x >> i & 1;
    let sign = if !signed || len == 0 { 0 } else { bit((pos + len - 1).min(width - 1)) };
    (0..width).map(|i| (if i < len && pos + i < width { bit(pos + i) } else { sign }) << i).sum()
}

fn insert(value: u64, base: u64, pos: u64, len: u64, width: u64) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    (0..width).map(|i| (if i >= pos && i < pos + len { value >> (i - pos) & 1 } else { base >> i & 1 }) << i).sum()
}

fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let bytes = [(a as u32).to_le_bytes(), (b as u32).to_le_bytes()].concat();
    let pick = |k: usize| {
        let nibble = selector >> (4 * k) & 15;
        let byte = bytes[(nibble & 7) as usize];
        if nibble & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte }
    };
    u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)]) as u64
}

fn permute_bytes(a: u64, b: u64, picks: [usize; 4]) -> u64 {
    let bytes = [(a as u32).to_le_bytes(), (b as u32).to_le_bytes()].concat();
    u32::from_le_bytes(picks.map(|k| bytes[k])) as u64
}

fn low24(x: u64) -> i64 {
    ((x as i32) << 8 >> 8) as i64
}

pub(crate) fn forms() -> Vec<Form> {
    let mut all = vec![];
    integers!(all, "add", |a, b| a.wrapping_add(b));
    integers!(all, "sub", |a, b| a.wrapping_sub(b));
    integers!(all, "mul.lo", |a, b| a.wrapping_mul(b));
    integers!(all, "mul.hi", |a, b| (a as i128).wrapping_mul(b as i128) >> (8 * size_of_val(&a)));
    integers!(all, "div", |a, b| a.checked_div(b).unwrap_or(if b == 0 { !0 } else { a }));
    integers!(all, "rem", |a, b| a.checked_rem(b).unwrap_or(if b == 0 { a } else { 0 }));
    integers!(all, "min", |a, b| a.min(b));
    integers!(all, "max", |a, b| a.max(b));
    comparisons!(all, "u16", u16);
    comparisons!(all, "s16", i16);
    comparisons!(all, "u32", u32);
    comparisons!(all, "s32", i32);
    comparisons!(all, "u64", u64);
    comparisons!(all, "s64", i64);
    all.extend([
        form("setp.lo.u32 %d, %a, %b;", "pred u32 u32", |x| (x[0] < x[1]) as u64),
        form("setp.hs.u32 %d, %a, %b;", "pred u32 u32", |x| (x[0] >= x[1]) as u64),
        form("setp.ls.u32 %d, %a, %b;", "pred u32 u32", |x| (x[0] <= x[1]) as u64),
        form("setp.hi.u32 %d, %a, %b;", "pred u32 u32", |x| (x[0] > x[1]) as u64),
        form("setp.eq.b64 %d, %a, %b;", "pred b64 b64", |x| (x[0] == x[1]) as u64),
        form("setp.lt.and.s32 %d, %a, %b, %c;", "pred s32 s32 pred", |x| (s32(x[0]) < s32(x[1])) as u64 & x[2]),
        form("setp.lt.or.s32 %d, %a, %b, %c;", "pred s32 s32 pred", |x| (s32(x[0]) < s32(x[1])) as u64 | x[2]),
        form("setp.lt.xor.s32 %d, %a, %b, !%c;", "pred s32 s32 pred", |x| (s32(x[0]) < s32(x[1])) as u64 ^ x[2] ^ 1),
        // the second result is the opposite, combined in the same way
        form("setp.lt.and.s32 %p7|%d, %a, %b, %c;", "pred s32 s32 pred", |x| (s32(x[0]) >= s32(x[1])) as u64 & x[2]),
        form("set.lt.u32.s32 %d, %a, %b;", "u32 s32 s32", |x| if s32(x[0]) < s32(x[1]) { u64::MAX } else { 0 }),
        form("set.ge.f32.u32 %d, %a, %b;", "f32 u32 u32", |x| if x[0] >= x[1] { b(1.0) } else { 0 }),
        form("set.eq.and.u32.f32 %d, %a, %b, %c;", "u32 f32 f32 pred", |x| {
            if f(x[0]) == f(x[1]) && x[2] != 0 { u64::MAX } else { 0 }
        }),
        form("selp.b16 %d, %a, %b, %c;", "b16 b16 b16 pred", |x| if x[2] != 0 { x[0] } else { x[1] }),
        form("selp.b32 %d, %a, %b, %c;", "b32 b32 b32 pred", |x| if x[2] != 0 { x[0] } else { x[1] }),
        form("selp.f32 %d, %a, %b, %c;", "f32 f32 f32 pred", |x| if x[2] != 0 { x[0] } else { x[1] }),
        form("selp.b64 %d, %a, %b, %c;", "b64 b64 b64 pred", |x| if x[2] != 0 { x[0] } else { x[1] }),
        form("slct.u32.s32 %d, %a, %b, %c;", "u32 u32 u32 s32", |x| if s32(x[2]) >= 0 { x[0] } else { x[1] }),
        form("slct.u64.f32 %d, %a, %b, %c;", "u64 u64 u64 f32", |x| if f(x[2]) >= 0.0 { x[0] } else { x[1] }),
        form("add.sat.s32 %d, %a, %b;", "s32 s32 s32", |x| s32(x[0]).saturating_add(s32(x[1])) as u64),
        form("sub.sat.s32 %d, %a, %b;", "s32 s32 s32", |x| s32(x[0]).saturating_sub(s32(x[1])) as u64),
        form("mul.wide.u16 %d, %a, %b;", "u32 u16 u16", |x| x[0] * x[1]),
        form("mul.wide.s16 %d, %a, %b;", "s32 s16 s16", |x| (s16(x[0]) as i32 * s16(x[1]) as i32) as u64),
        form("mul.wide.u32 %d, %a, %b;", "u64 u32 u32", |x| x[0] * x[1]),
        form("mul.wide.s32 %d, %a, %b;", "s64 s32 s32", |x| (s32(x[0]) as i64 * s32(x[1]) as i64) as u64),
        form("mad.wide.u32 %d, %a, %b, %c;", "u64 u32 u32 u64", |x| (x[0] * x[1]).wrapping_add(x[2])),
        form("mad.wide.s32 %d, %a, %b, %c;", "s64 s32 s32 s64", |x| {
            ((s32(x[0]) as i64 * s32(x[1]) as i64) as u64).wrapping_add(x[2])
        }),
        form("mad.wide.u16 %d, %a, %b, %c;", "u32 u16 u16 u32", |x| (x[0] * x[1]).wrapping_add(x[2])),
        form("mad.wide.s16 %d, %a, %b, %c;", "s32 s16 s16 s32", |x| {
            ((s16(x[0]) as i32 * s16(x[1]) as i32) as u64).wrapping_add(x[2])
        }),
        form("mad.lo.s16 %d, %a, %b, %c;", "s16 s16 s16 s16", |x| {
            s16(x[0]).wrapping_mul(s16(x[1])).wrapping_add(s16(x[2])) as u64
        }),
        form("mad.lo.s32 %d, %a, %b, %c;", "s32 s32 s32 s32", |x| {
            s32(x[0]).wrapping_mul(s32(x[1])).wrapping_add(s32(x[2])) as u64
        }),
        form("mad.lo.u64 %d, %a, %b, %c;", "u64 u64 u64 u64", |x| x[0].wrapping_mul(x[1]).wrapping_add(x[2])),
        form("mad.hi.u32 %d, %a, %b, %c;", "u32 u32 u32 u32", |x| ((x[0] * x[1]) >> 32).wrapping_add(x[2])),
        form("mad.hi.s64 %d, %a, %b, %c;", "s64 s64 s64 s64", |x| {
            (((x[0] as i64 as i128 * x[1] as i64 as i128) >> 64) as u64).wrapping_add(x[2])
        }),
        form("mul24.lo.s32 %d, %a, %b;", "s32 s32 s32", |x| (low24(x[0]) * low24(x[1])) as u64),
        form("mul24.hi.s32 %d, %a, %b;", "s32 s32 s32", |x| ((low24(x[0]) * low24(x[1])) >> 16) as u64),
        form("mul24.lo.u32 %d, %a, %b;", "u32 u32 u32", |x| (x[0] & 0xff_ffff) * (x[1] & 0xff_ffff)),
        form("mad24.lo.u32 %d, %a, %b, %c;", "u32 u32 u32 u32", |x| {
            ((x[0] & 0xff_ffff) * (x[1] & 0xff_ffff)).wrapping_add(x[2])
        }),
        form("mad24.hi.u32 %d, %a, %b, %c;", "u32 u32 u32 u32", |x| {
            (((x[0] & 0xff_ffff) * (x[1] & 0xff_ffff)) >> 16).wrapping_add(x[2])
        }),
        form("sad.u16 %d, %a, %b, %c;", "u16 u16 u16 u16", |x| x[0].abs_diff(x[1]).wrapping_add(x[2])),
        form("sad.s16 %d, %a, %b, %c;", "s16 s16 s16 s16", |x| {
            (s16(x[0]).abs_diff(s16(x[1])) as u64).wrapping_add(x[2])
        }),
        form("sad.u32 %d, %a, %b, %c;", "u32 u32 u32 u32", |x| x[0].abs_diff(x[1]).wrapping_add(x[2])),
        form("sad.s32 %d, %a, %b, %c;", "s32 s32 s32 s32", |x| {
            (s32(x[0]).abs_diff(s32(x[1])) as u64).wrapping_add(x[2])
        }),
        form("sad.s64 %d, %a, %b, %c;", "s64 s64 s64 s64", |x| (x[0] as i64).abs_diff(x[1] as i64).wrapping_add(x[2])),
        form("sad.u64 %d, %a, %b, %c;", "u64 u64 u64 u64", |x| x[0].abs_diff(x[1]).wrapping_add(x[2])),
        form("abs.s16 %d, %a;", "s16 s16", |x| s16(x[0]).wrapping_abs() as u64),
        form("abs.s32 %d, %a;", "s32 s32", |x| s32(x[0]).wrapping_abs() as u64),
        form("abs.s64 %d, %a;", "s64 s64", |x| (x[0] as i64).wrapping_abs() as u64),
        form("neg.s16 %d, %a;", "s16 s16", |x| s16(x[0]).wrapping_neg() as u64),
        form("neg.s32 %d, %a;", "s32 s32", |x| s32(x[0]).wrapping_neg() as u64),
        form("neg.s64 %d, %a;", "s64 s64", |x| (x[0] as i64).wrapping_neg() as u64),
        form("and.b16 %d, %a, %b;", "b16 b16 b16", |x| x[0] & x[1]),
        form("and.b32 %d, %a, %b;", "b32 b32 b32", |x| x[0] & x[1]),
        form("and.b64 %d, %a, %b;", "b64 b64 b64", |x| x[0] & x[1]),
        form("and.pred %d, %a, %b;", "pred pred pred", |x| x[0] & x[1]),
        form("or.b16 %d, %a, %b;", "b16 b16 b16", |x| x[0] | x[1]),
        form("or.b32 %d, %a, %b;", "b32 b32 b32", |x| x[0] | x[1]),
        form("or.b64 %d, %a, %b;", "b64 b64 b64", |x| x[0] | x[1]),
        form("or.pred %d, %a, %b;", "pred pred pred", |x| x[0] | x[1]),
        form("xor.b16 %d, %a, %b;", "b16 b16 b16", |x| x[0] ^ x[1]),
        form("xor.b32 %d, %a, %b;", "b32 b32 b32", |x| x[0] ^ x[1]),
        form("xor.b64 %d, %a, %b;", "b64 b64 b64", |x| x[0] ^ x[1]),
        form("xor.pred %d, %a, %b;", "pred pred pred", |x| x[0] ^ x[1]),
        form("not.b16 %d, %a;", "b16 b16", |x| !x[0]),
        form("not.b32 %d, %a;", "b32 b32", |x| !x[0]),
        form("not.b64 %d, %a;", "b64 b64", |x| !x[0]),
        form("not.pred %d, %a;", "pred pred", |x| x[0] ^ 1),
        form("cnot.b16 %d, %a;", "b16 b16", |x| (x[0] == 0) as u64),
        form("cnot.b32 %d, %a;", "b32 b32", |x| (x[0] == 0) as u64),
        form("cnot.b64 %d, %a;", "b64 b64", |x| (x[0] == 0) as u64),
        form("lop3.b32 %d, %a, %b, %c, 0x96;", "b32 b32 b32 b32", |x| x[0] ^ x[1] ^ x[2]),
        form("lop3.b32 %d, %a, %b, %c, 0xf8;", "b32 b32 b32 b32", |x| x[0] | (x[1] & x[2])),
        form("lop3.b32 %d, %a, %b, %c, 0xea;", "b32 b32 b32 b32", |x| (x[0] & x[1]) | x[2]),
        form("lop3.b32 %d, %a, %b, %c, 0xca;", "b32 b32 b32 b32", |x| (x[0] & x[1]) | (!x[0] & x[2])),
        form("lop3.b32 %d, %a, %b, %c, 0x40;", "b32 b32 b32 b32", |x| x[0] & x[1] & !x[2]),
        form("shl.b16 %d, %a, %b;", "b16 b16 u32", |x| if x[1] > 15 { 0 } else { x[0] << x[1] }),
        form("shl.b32 %d, %a, %b;", "b32 b32 u32", |x| if x[1] > 31 { 0 } else { x[0] << x[1] }),
        form("shl.b64 %d, %a, %b;", "b64 b64 u32", |x| if x[1] > 63 { 0 } else { x[0] << x[1] }),
        form("shr.u16 %d, %a, %b;", "u16 u16 u32", |x| if x[1] > 15 { 0 } else { x[0] >> x[1] }),
        form("shr.s16 %d, %a, %b;", "s16 s16 u32", |x| (s16(x[0]) >> x[1].min(15)) as u64),
        form("shr.u32 %d, %a, %b;", "u32 u32 u32", |x| if x[1] > 31 { 0 } else { x[0] >> x[1] }),
        form("shr.s32 %d, %a, %b;", "s32 s32 u32", |x| (s32(x[0]) >> x[1].min(31)) as u64),
        form("shr.b64 %d, %a, %b;", "b64 b64 u32", |x| if x[1] > 63 { 0 } else { x[0] >> x[1] }),
        form("shr.s64 %d, %a, %b;", "s64 s64 u32", |x| (x[0] as i64 >> x[1].min(63)) as u64),
        form("shf.l.wrap.b32 %d, %a, %b, %c;", "b32 b32 b32 u32", |x| ((x[1] << 32 | x[0]) << (x[2] & 31)) >> 32),
        form("shf.r.wrap.b32 %d, %a, %b, %c;", "b32 b32 b32 u32", |x| (x[1] << 32 | x[0]) >> (x[2] & 31)),
        form("shf.l.clamp.b32 %d, %a, %b, %c;", "b32 b32 b32 u32", |x| {
            if x[2] > 31 { x[0] } else { ((x[1] << 32 | x[0]) << x[2]) >> 32 }
        }),
        form("shf.r.clamp.b32 %d, %a, %b, %c;", "b32 b32 b32 u32", |x| {
            if x[2] > 31 { x[1] } else { (x[1] << 32 | x[0]) >> x[2] }
        }),
        form("prmt.b32 %d, %a, %b, %c;", "b32 b32 b32 b32", |x| permute(x[0], x[1], x[2])),
        form("prmt.b32 %d, %a, %b, 0x7604;", "b32 b32 b32", |x| permute(x[0], x[1], 0x7604)),
        form("prmt.b32.f4e %d, %a, %b, 1;", "b32 b32 b32", |x| permute_bytes(x[0], x[1], [1, 2, 3, 4])),
        form("prmt.b32.b4e %d, %a, %b, 1;", "b32 b32 b32", |x| permute_bytes(x[0], x[1], [1, 0, 7, 6])),
        form("prmt.b32.rc8 %d, %a, %b, 2;", "b32 b32 b32", |x| permute_bytes(x[0], x[1], [2, 2, 2, 2])),
        form("prmt.b32.ecl %d, %a, %b, 2;", "b32 b32 b32", |x| permute_bytes(x[0], x[1], [2, 2, 2, 3])),
        form("prmt.b32.ecr %d, %a, %b, 2;", "b32 b32 b32", |x| permute_bytes(x[0], x[1], [0, 1, 2, 2])),
        form("prmt.b32.rc16 %d, %a, %b, 1;", "b32 b32 b32", |x| permute_bytes(x[0], x[1], [2, 3, 2, 3])),
        form("bfe.u32 %d, %a, %b, %c;", "u32 u32 u32 u32", |x| field(x[0], x[1], x[2], 32, false)),
        form("bfe.u64 %d, %a, %b, %c;", "u64 u64 u32 u32", |x| field(x[0], x[1], x[2], 64, false)),
        form("bfe.s32 %d, %a, %b, %c;", "s32 s32 u32 u32", |x| field(x[0], x[1], x[2], 32, true)),
        form("bfe.s64 %d, %a, %b, %c;", "s64 s64 u32 u32", |x| field(x[0], x[1], x[2], 64, true)),
        form("bfi.b32 %d, %a, %b, %c, %e;", "b32 b32 b32 u32 u32", |x| insert(x[0], x[1], x[2], x[3], 32)),
        form("bfi.b64 %d, %a, %b, %c, %e;", "b64 b64 b64 u32 u32", |x| insert(x[0], x[1], x[2], x[3], 64)),
        form("bfind.u32 %d, %a;", "u32 u32", |x| if x[0] == 0 { u64::MAX } else { x[0].ilog2() as u64 }),
        form("bfind.s32 %d, %a;", "u32 s32", |x| {
            let y = if s32(x[0]) < 0 { !(x[0] as u32) } else { x[0] as u32 };
            if y == 0 { u64::MAX } else { y.ilog2() as u64 }
        }),
        form("bfind.u64 %d, %a;", "u32 u64", |x| if x[0] == 0 { u64::MAX } else { x[0].ilog2() as u64 }),
        form("bfind.shiftamt.u32 %d, %a;", "u32 u32", |x| if x[0] == 0 { u64::MAX } else { 31 - x[0].ilog2() as u64 }),
        form("brev.b32 %d, %a;", "b32 b32", |x| (x[0] as u32).reverse_bits() as u64),
        form("brev.b64 %d, %a;", "b64 b64", |x| x[0].reverse_bits()),
        form("clz.b32 %d, %a;", "u32 b32", |x| (x[0] as u32).leading_zeros() as u64),
        form("clz.b64 %d, %a;", "u32 b64", |x| x[0].leading_zeros() as u64),
        form("popc.b32 %d, %a;", "u32 b32", |x| x[0].count_ones() as u64),
        form("popc.b64 %d, %a;", "u32 b64", |x| x[0].count_ones() as u64),
        form("fns.b32 %d, %a, 3, 2;", "b32 b32", |x| {
            (3..32).filter(|i| x[0] >> i & 1 != 0).nth(1).map_or(u64::MAX, |i| i)
        }),
        form("fns.b32 %d, %a, 20, -1;", "b32 b32", |x| (0..=20).rev().find(|i| x[0] >> i & 1 != 0).unwrap_or(u64::MAX)),
        form("szext.clamp.s32 %d, %a, %b;", "s32 s32 u32", |x| match x[1] {
            0 => 0,
            n if n >= 32 => x[0],
            n => (s32(x[0]) << (32 - n) >> (32 - n)) as u64,
        }),
        form("szext.wrap.u32 %d, %a, %b;", "u32 u32 u32", |x| x[0] & ((1 << (x[1] & 31)) - 1)),
        form("bmsk.clamp.b32 %d, %a, %b;", "b32 b32 b32", |x| (((1u128 << x[1].min(32)) - 1) << x[0].min(32)) as u64),
        form("bmsk.wrap.b32 %d, %a, %b;", "b32 b32 b32", |x| ((1 << (x[1] & 31)) - 1) << (x[0] & 31)),
        form("dp4a.s32.s32 %d, %a, %b, %c;", "s32 b32 b32 s32", |x| {
            (0..4).fold(x[2] as u32, |s, k| {
                s.wrapping_add(((x[0] >> (8 * k)) as i8 as i32 * (x[1] >> (8 * k)) as i8 as i32) as u32)
            }) as u64
        }),
        form("dp4a.u32.s32 %d, %a, %b, %c;", "s32 b32 b32 s32", |x| {
            (0..4).fold(x[2] as u32, |s, k| {
                s.wrapping_add(((x[0] >> (8 * k)) as u8 as i32 * (x[1] >> (8 * k)) as i8 as i32) as u32)
            }) as u64
        }),
        // 64-bit sums, differences and products of halves with a carry
        form(
            "{ .reg .b32 %l<9>; mov.b64 {%l0, %l1}, %a; mov.b64 {%l2, %l3}, %b;
               add.cc.u32 %l4, %l0, %l2; addc.u32 %l5, %l1, %l3; mov.b64 %d, {%l4, %l5}; }",
            "u64 u64 u64",
            |x| x[0].wrapping_add(x[1]),
        ),
        form(
            "{ .reg .b32 %l<9>; mov.b64 {%l0, %l1}, %a; mov.b64 {%l2, %l3}, %b;
               sub.cc.u32 %l4, %l0, %l2; subc.u32 %l5, %l1, %l3; mov.b64 %d, {%l4, %l5}; }",
            "u64 u64 u64",
            |x| x[0].wrapping_sub(x[1]),
        ),
        form(
            "{ .reg .b32 %l<9>; mov.b64 {%l0, %l1}, %c;
               mad.lo.cc.u32 %l4, %a, %b, %l0; madc.hi.u32 %l5, %a, %b, %l1; mov.b64 %d, {%l4, %l5}; }",
            "u64 u32 u32 u64",
            |x| (x[0] * x[1]).wrapping_add(x[2]),
        ),
        form("{ .reg .u64 %t<3>; add.cc.u64 %t0, %a, %b; addc.u64 %d, 0, 0; }", "u64 u64 u64", |x| {
            x[0].checked_add(x[1]).is_none() as u64
        }),
        // moves
        form("mov.b16 %d, %a;", "b16 b16", |x| x[0]),
        form("mov.u32 %d, %a;", "u32 u32", |x| x[0]),
        form("mov.f64 %d, %a;", "f64 f64", |x| x[0]),
        form("mov.pred %d, %a;", "pred pred", |x| x[0]),
        form("mov.pred %d, 1;", "pred pred", |_| 1),
        form("mov.u32 %d, -7;", "u32 u32", |_| -7i64 as u64),
        form("mov.f32 %d, 0f3FC00000;", "f32 f32", |_| b(1.5)),
        form("mov.f64 %d, 0d3FF8000000000000;", "f64 f64", |_| 1.5f64.to_bits()),
        form("mov.b32 %d, {%a, %b};", "b32 b16 b16", |x| x[0] | x[1] << 16),
        form("mov.b64 %d, {%a, %b};", "b64 b32 b32", |x| x[0] | x[1] << 32),
        form("mov.b64 %d, {%a, %b, %a, %b};", "b64 b16 b16", |x| x[0] | x[1] << 16 | x[0] << 32 | x[1] << 48),
        form("{ .reg .b16 %l; mov.b32 {%l, %d}, %a; }", "b16 b32", |x| x[0] >> 16),
        form("{ .reg .b16 %l<4>; mov.b64 {%l0, %d, %l1, %l2}, %a; }", "b16 b64", |x| x[0] >> 16),
        form("{ .reg .b32 %l; mov.b64 {%l, %d}, %a; }", "b32 b64", |x| x[0] >> 32),
        form("{ .reg .b16 %l<4>; mov.b32 {%l0, %l1}, %a; mov.b32 %d, {%l1, %l0}; }", "b32 b32", |x| {
            x[0] >> 16 | x[0] << 16
        }),
    ]);
    all
}

#[test]
fn integers_and_logic() {
    for form in forms() {
        check(&form);
    }
}
