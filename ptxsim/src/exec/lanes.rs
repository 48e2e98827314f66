//! A warp's registers, and loops over its 32 lanes.
//!
//! All functions are inlined into callers compiled for the vector instructions of the machine. They compute all lanes
//! and keep the results of active ones, which is faster than to skip.

use crate::isa::Instr;

/// One register of all lanes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Row<T>(pub(crate) [T; 32]);

impl<T> std::ops::Deref for Row<T> {
    type Target = [T; 32];
    fn deref(&self) -> &[T; 32] {
        &self.0
    }
}

impl<T> std::ops::DerefMut for Row<T> {
    fn deref_mut(&mut self) -> &mut [T; 32] {
        &mut self.0
    }
}

/// The register files of a warp. 8-, 16- and 32-bit values are words; what is above a narrower value is not
/// specified, so operations of narrow types look at its own bits alone. A predicate is a mask of lanes.
pub(crate) struct Registers {
    pub(crate) words: Vec<Row<u32>>,
    pub(crate) longs: Vec<Row<u64>>,
    pub(crate) preds: Vec<u32>,
    /// the carry flag of each lane
    pub(crate) carry: u32,
}

impl Registers {
    #[inline(always)]
    pub(crate) fn word(&self, i: u32) -> &[u32; 32] {
        &self.words[i as usize].0
    }

    #[inline(always)]
    pub(crate) fn long(&self, i: u32) -> &[u64; 32] {
        &self.longs[i as usize].0
    }

    #[inline(always)]
    pub(crate) fn pred(&self, i: u32) -> u32 {
        self.preds[i as usize]
    }

    #[inline(always)]
    pub(crate) fn set_pred(&mut self, i: u32, mask: u32, value: u32) {
        let p = &mut self.preds[i as usize];
        *p = (*p & !mask) | (value & mask);
    }

    #[inline(always)]
    pub(crate) fn set_word(&mut self, i: u32, mask: u32, value: &[u32; 32]) {
        put(&mut self.words[i as usize].0, mask, value);
    }

    #[inline(always)]
    pub(crate) fn set_long(&mut self, i: u32, mask: u32, value: &[u64; 32]) {
        put(&mut self.longs[i as usize].0, mask, value);
    }

    /// The predicate operand `c`, negated if the instruction says so.
    #[inline(always)]
    pub(crate) fn condition(&self, i: &Instr) -> u32 {
        self.pred(i.c) ^ if i.not_c { u32::MAX } else { 0 }
    }
}

#[inline(always)]
fn put<T: Copy>(to: &mut [T; 32], mask: u32, value: &[T; 32]) {
    if mask == u32::MAX {
        *to = *value;
    } else {
        for l in 0..32 {
            if mask >> l & 1 != 0 {
                to[l] = value[l];
            }
        }
    }
}

#[inline(always)]
fn all<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; 32] {
    let mut out = [T::default(); 32];
    for l in 0..32 {
        out[l] = f(l);
    }
    out
}

/// A mask of the lanes where `f` holds.
#[inline(always)]
pub(crate) fn mask_of(f: impl Fn(usize) -> bool) -> u32 {
    let mut out = 0;
    for l in 0..32 {
        out |= (f(l) as u32) << l;
    }
    out
}

/// word → word
#[inline(always)]
pub(crate) fn w1(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u32) -> u32) {
    let a = r.word(i.a);
    let out = all(|l| f(a[l]));
    r.set_word(i.dst, m, &out);
}

/// word, word → word
#[inline(always)]
pub(crate) fn w2(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u32, u32) -> u32) {
    let (a, b) = (r.word(i.a), r.word(i.b));
    let out = all(|l| f(a[l], b[l]));
    r.set_word(i.dst, m, &out);
}

/// word, word, word → word
#[inline(always)]
pub(crate) fn w3(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u32, u32, u32) -> u32) {
    let (a, b, c) = (r.word(i.a), r.word(i.b), r.word(i.c));
    let out = all(|l| f(a[l], b[l], c[l]));
    r.set_word(i.dst, m, &out);
}

/// four words → word
#[inline(always)]
pub(crate) fn w4(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u32, u32, u32, u32) -> u32) {
    let (a, b, c, d) = (r.word(i.a), r.word(i.b), r.word(i.c), r.word(i.d));
    let out = all(|l| f(a[l], b[l], c[l], d[l]));
    r.set_word(i.dst, m, &out);
}

/// long → long
#[inline(always)]
pub(crate) fn l1(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u64) -> u64) {
    let a = r.long(i.a);
    let out = all(|l| f(a[l]));
    r.set_long(i.dst, m, &out);
}

/// long, long → long
#[inline(always)]
pub(crate) fn l2(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u64, u64) -> u64) {
    let (a, b) = (r.long(i.a), r.long(i.b));
    let out = all(|l| f(a[l], b[l]));
    r.set_long(i.dst, m, &out);
}

/// long, long, long → long
#[inline(always)]
pub(crate) fn l3(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u64, u64, u64) -> u64) {
    let (a, b, c) = (r.long(i.a), r.long(i.b), r.long(i.c));
    let out = all(|l| f(a[l], b[l], c[l]));
    r.set_long(i.dst, m, &out);
}

/// long, word → long: shifts
#[inline(always)]
pub(crate) fn lw(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u64, u32) -> u64) {
    let (a, b) = (r.long(i.a), r.word(i.b));
    let out = all(|l| f(a[l], b[l]));
    r.set_long(i.dst, m, &out);
}

/// long → word
#[inline(always)]
pub(crate) fn l1w(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u64) -> u32) {
    let a = r.long(i.a);
    let out = all(|l| f(a[l]));
    r.set_word(i.dst, m, &out);
}

/// word → long
#[inline(always)]
pub(crate) fn w1l(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u32) -> u64) {
    let a = r.word(i.a);
    let out = all(|l| f(a[l]));
    r.set_long(i.dst, m, &out);
}

/// word, word → long: wide products
#[inline(always)]
pub(crate) fn w2l(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u32, u32) -> u64) {
    let (a, b) = (r.word(i.a), r.word(i.b));
    let out = all(|l| f(a[l], b[l]));
    r.set_long(i.dst, m, &out);
}

/// word, word, long → long: wide products and a sum
#[inline(always)]
pub(crate) fn w2ll(r: &mut Registers, i: &Instr, m: u32, f: impl Fn(u32, u32, u64) -> u64) {
    let (a, b, c) = (r.word(i.a), r.word(i.b), r.long(i.c));
    let out = all(|l| f(a[l], b[l], c[l]));
    r.set_long(i.dst, m, &out);
}

/// A comparison of words, as a mask.
#[inline(always)]
pub(crate) fn compare_words(r: &Registers, i: &Instr, f: impl Fn(u32, u32) -> bool) -> u32 {
    let (a, b) = (r.word(i.a), r.word(i.b));
    mask_of(|l| f(a[l], b[l]))
}

/// A comparison of longs, as a mask.
#[inline(always)]
pub(crate) fn compare_longs(r: &Registers, i: &Instr, f: impl Fn(u64, u64) -> bool) -> u32 {
    let (a, b) = (r.long(i.a), r.long(i.b));
    mask_of(|l| f(a[l], b[l]))
}
