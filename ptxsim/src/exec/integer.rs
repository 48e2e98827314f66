//! Integer operations on one value that are more than an operator.

use crate::isa::Prmt;

/// Sign-extends the low 16 bits.
#[inline(always)]
pub(crate) fn s16(x: u32) -> i32 {
    x as u16 as i16 as i32
}

#[inline(always)]
pub(crate) fn lop3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut out = 0;
    for row in 0..8 {
        if table >> row & 1 != 0 {
            let pick = |x: u32, bit: u32| if row >> bit & 1 != 0 { x } else { !x };
            out |= pick(a, 2) & pick(b, 1) & pick(c, 0);
        }
    }
    out
}

#[inline(always)]
pub(crate) fn shf(left: bool, clamp: bool, low: u32, high: u32, by: u32) -> u32 {
    let by = if clamp { by.min(32) } else { by & 31 };
    let both = (high as u64) << 32 | low as u64;
    if left { (both << by >> 32) as u32 } else { (both >> by) as u32 }
}

pub(crate) fn prmt(mode: Prmt, a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (b as u64) << 32 | a as u64;
    let byte = |i: u32| (bytes >> (8 * (i & 7)) & 0xff) as u32;
    let s = selector & 3;
    let pick = |k: u32| match mode {
        Prmt::Index => {
            let nibble = selector >> (4 * k) & 15;
            let x = byte(nibble);
            if nibble & 8 != 0 { (x >> 7) * 0xff } else { x }
        }
        Prmt::F4e => byte(s + k),
        Prmt::B4e => byte((s + 8 - k) & 7),
        Prmt::Rc8 => byte(s),
        Prmt::Ecl => byte(s.max(k)),
        Prmt::Ecr => byte(s.min(k)),
        Prmt::Rc16 => byte((s & 1) * 2 + (k & 1)),
    };
    pick(0) | pick(1) << 8 | pick(2) << 16 | pick(3) << 24
}

/// Bit field of `len` bits at `pos`, sign- or zero-extended.
#[inline(always)]
pub(crate) fn bfe(x: u64, pos: u32, len: u32, width: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let sign_at = (pos + len).saturating_sub(1).min(width - 1);
    let sign = if signed && len > 0 { x >> sign_at & 1 } else { 0 };
    let fill = if sign != 0 { u64::MAX } else { 0 };
    let shifted = if pos >= width { fill } else { x >> pos | if pos > 0 { fill << (width - pos).min(63) } else { 0 } };
    if len >= 64 { shifted } else { (shifted & ((1 << len) - 1)) | (fill << len) }
}

#[inline(always)]
pub(crate) fn bfi(value: u64, base: u64, pos: u32, len: u32, width: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if pos >= width || len == 0 {
        return base;
    }
    let ones = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
    let mask = ones << pos;
    (value << pos & mask) | (base & !mask)
}

/// Position of the highest bit that differs from the sign; `u32::MAX` if there is none.
#[inline(always)]
pub(crate) fn bfind(x: u64, width: u32, signed: bool, amount: bool) -> u32 {
    let x = if signed && x >> (width - 1) & 1 != 0 { !x & (u64::MAX >> (64 - width)) } else { x };
    if x == 0 {
        return u32::MAX;
    }
    let at = 63 - x.leading_zeros();
    if amount { width - 1 - at } else { at }
}

/// The position of the n-th set bit from `base`; negative `offset` counts downwards.
pub(crate) fn fns(mask: u32, base: u32, offset: u32) -> u32 {
    let offset = offset as i32;
    let base = base as i64;
    if offset == 0 {
        return if base < 32 && mask >> base & 1 != 0 { base as u32 } else { u32::MAX };
    }
    let step: i64 = if offset > 0 { 1 } else { -1 };
    let mut left = offset.unsigned_abs();
    let mut at = base;
    while (0..32).contains(&at) {
        if mask >> at & 1 != 0 {
            left -= 1;
            if left == 0 {
                return at as u32;
            }
        }
        at += step;
    }
    u32::MAX
}

pub(crate) fn szext(x: u32, bits: u32, clamp: bool, signed: bool) -> u32 {
    let n = if clamp { bits.min(32) } else { bits & 31 };
    match n {
        0 => 0,
        32 => x,
        n if signed => ((x << (32 - n)) as i32 >> (32 - n)) as u32,
        n => x & ((1 << n) - 1),
    }
}

pub(crate) fn bmsk(start: u32, len: u32, clamp: bool) -> u32 {
    let (start, len) = if clamp { (start.min(32), len.min(32)) } else { (start & 31, len & 31) };
    ((((1u64 << len) - 1) << start) & 0xffff_ffff) as u32
}

pub(crate) fn dp4a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let byte = |x: u32, k: u32, signed: bool| {
        let v = (x >> (8 * k)) as u8;
        if signed { v as i8 as i32 } else { v as i32 }
    };
    (0..4).fold(c, |sum, k| sum.wrapping_add((byte(a, k, a_signed) * byte(b, k, b_signed)) as u32))
}
