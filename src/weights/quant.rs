//! The stored formats and how each becomes numbers again.
//!
//! A weight's value is what its format's formula gives in f32, whatever type is computed in: a model in f64 has the
//! same weights as in f32. Scales are f16, bytes little-endian, and every product below is exact in f32, so a sum is
//! rounded once and the result is the same with and without fused multiply-add.

use super::Format;
use crate::dtype::{DType, Element};
use half::f16;
use half::slice::HalfFloatSliceExt;
use pulp::Arch;

/// Writes the elements stored in `bytes` to `out`, in storage order.
///
/// `bytes` holds exactly `out.len() / block_len` blocks; whatever is missing on either side is left out.
pub(super) fn widen<E: Element>(format: Format, bytes: &[u8], out: &mut [E]) {
    if E::DTYPE == DType::F32 {
        widen_f32(format, bytes, bytemuck::cast_slice_mut(out));
    } else {
        widen_f64(format, bytes, bytemuck::cast_slice_mut(out));
    }
}

fn widen_f64(format: Format, bytes: &[u8], out: &mut [f64]) {
    if format == Format::F64 {
        return Arch::new()
            .dispatch(|| each_block(bytes, out, |b: &[u8; 8], o: &mut [f64; 1]| o[0] = f64::from_le_bytes(*b)));
    }
    // A multiple of every block length, small enough for the first-level cache.
    const STEP: usize = 1024;
    let mut narrow = [0f32; STEP];
    let step_bytes = STEP / format.block_len() * format.block_bytes();
    for (bytes, out) in bytes.chunks(step_bytes).zip(out.chunks_mut(STEP)) {
        let narrow = &mut narrow[..out.len()];
        widen_f32(format, bytes, narrow);
        out.iter_mut().zip(narrow).for_each(|(o, x)| *o = f64::from(*x));
    }
}

fn widen_f32(format: Format, bytes: &[u8], out: &mut [f32]) {
    if format == Format::F16
        && let Ok(halves) = bytemuck::try_cast_slice::<u8, f16>(bytes)
        && cfg!(target_endian = "little")
        && halves.len() == out.len()
    {
        return halves.convert_to_f32_slice(out);
    }
    // One compiled copy of each loop per instruction set, chosen at run time.
    let arch = Arch::new();
    match format {
        Format::F64 => arch
            .dispatch(|| each_block(bytes, out, |b: &[u8; 8], o: &mut [f32; 1]| o[0] = f64::from_le_bytes(*b) as f32)),
        Format::F32 => arch.dispatch(|| each_block(bytes, out, f32_)),
        Format::F16 => arch.dispatch(|| each_block(bytes, out, f16_)),
        Format::BF16 => arch.dispatch(|| each_block(bytes, out, bf16_)),
        Format::Q8_0 => arch.dispatch(|| each_block(bytes, out, q8_0)),
        Format::Q4_0 => arch.dispatch(|| each_block(bytes, out, q4_0)),
        Format::Q4_1 => arch.dispatch(|| each_block(bytes, out, q4_1)),
        Format::Q5_0 => arch.dispatch(|| each_block(bytes, out, q5_0)),
        Format::Q5_1 => arch.dispatch(|| each_block(bytes, out, q5_1)),
        Format::Q4K => arch.dispatch(|| each_block(bytes, out, q4_k)),
        Format::Q6K => arch.dispatch(|| each_block(bytes, out, q6_k)),
    }
}

#[inline(always)]
fn each_block<T, const B: usize, const N: usize>(bytes: &[u8], out: &mut [T], unpack: impl Fn(&[u8; B], &mut [T; N])) {
    let (blocks, _) = bytes.as_chunks::<B>();
    let (outs, _) = out.as_chunks_mut::<N>();
    blocks.iter().zip(outs).for_each(|(block, out)| unpack(block, out));
}

#[inline(always)]
fn f32_(bytes: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*bytes);
}

#[inline(always)]
fn f16_(bytes: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = half_at(bytes, 0);
}

#[inline(always)]
fn bf16_(bytes: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
}

/// The f16 at byte `at`, without a branch or a call: the magnitude's bits are moved to where f32 has them, and one
/// exact multiplication by 2^112 makes up for the different exponent bias, subnormals included.
#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let magnitude = (bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23)).to_bits();
    let all_ones = if magnitude >= 0x7c00 << 13 { 0xff << 23 } else { 0 };
    f32::from_bits(finite | all_ones | (bits & 0x8000) << 16)
}

/// `[d: f16][q: 32 × i8]`; `x[i] = d·q[i]`.
#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for i in 0..32 {
        out[i] = d * f32::from(block[2 + i] as i8);
    }
}

/// `[d: f16][16 bytes]`; byte i holds q[i] in its low and q[i+16] in its high half; `x[i] = d·(q[i] − 8)`.
#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for i in 0..16 {
        out[i] = d * number(block[2 + i] & 15, 8);
    }
    for i in 0..16 {
        out[i + 16] = d * number(block[2 + i] >> 4, 8);
    }
}

/// `[d: f16][m: f16][16 bytes]`, halves as in Q4_0; `x[i] = d·q[i] + m`.
#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for i in 0..16 {
        out[i] = d * number(block[4 + i] & 15, 0) + m;
    }
    for i in 0..16 {
        out[i + 16] = d * number(block[4 + i] >> 4, 0) + m;
    }
}

/// `[d: f16][h: u32][16 bytes]`, halves as in Q4_0; bit i of h is the fifth bit of q[i]; `x[i] = d·(q[i] − 16)`.
#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let q = five_bits(block, 2);
    for i in 0..32 {
        out[i] = d * number(q[i], 16);
    }
}

/// `[d: f16][m: f16][h: u32][16 bytes]`, bits as in Q5_0; `x[i] = d·q[i] + m`.
#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let q = five_bits(block, 4);
    for i in 0..32 {
        out[i] = d * number(q[i], 0) + m;
    }
}

/// The 32 integers of `[h: u32][16 bytes]` at byte `at`.
#[inline(always)]
fn five_bits(block: &[u8], at: usize) -> [u32; 32] {
    let high = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let bytes = &block[at + 4..at + 20];
    let mut low = [0; 32];
    for i in 0..16 {
        low[i] = bytes[i] & 15;
        low[i + 16] = bytes[i] >> 4;
    }
    let mut q = [0; 32];
    for i in 0..32 {
        q[i] = u32::from(low[i]) | (high >> i & 1) << 4;
    }
    q
}

/// `[d: f16][e: f16][12 bytes: 8 × 6-bit s, 8 × 6-bit m][128 bytes]`; of each 32 bytes the low halves are one group
/// of 32, the high halves the next; `x[i] = (d·s[g])·q[i] − (e·m[g])` for i in group g.
#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, e) = (half_at(block, 0), half_at(block, 2));
    let (packed, bytes) = (&block[4..16], &block[16..]);
    for pair in 0..4 {
        let bytes = &bytes[32 * pair..32 * pair + 32];
        for high in 0..2 {
            let (s, m) = six_bits(packed, 2 * pair + high);
            let (s, m) = (d * f32::from(s), e * f32::from(m));
            let out = &mut out[64 * pair + 32 * high..][..32];
            for i in 0..32 {
                out[i] = s * number(bytes[i] >> (4 * high) & 15, 0) - m;
            }
        }
    }
}

/// Scale and minimum of group `g` out of 12 bytes: of groups 0–3 they are the low six bits of bytes g and g+4; of
/// groups 4–7 the low four bits are the halves of byte g+4, the upper two those left over in bytes g−4 and g.
#[inline(always)]
fn six_bits(packed: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        ((packed[g + 4] & 15) | packed[g - 4] >> 6 << 4, (packed[g + 4] >> 4) | packed[g] >> 6 << 4)
    }
}

/// `[128 bytes: low 4 bits][64 bytes: upper 2 bits][s: 16 × i8][d: f16]`; element 128h + 32k + l has its low bits in
/// byte 64h + 32(k mod 2) + l, half k div 2, its upper bits in byte 32h + l, pair k;
/// `x[i] = (d·s[i div 16])·(q[i] − 32)`.
#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for part in 0..8 {
        let (h, k) = (part / 4, part % 4);
        let low = &block[64 * h + 32 * (k % 2)..][..32];
        let upper = &block[128 + 32 * h..][..32];
        for side in 0..2 {
            let s = d * f32::from(block[192 + 2 * part + side] as i8);
            let out = &mut out[32 * part + 16 * side..][..16];
            for i in 0..16 {
                let l = 16 * side + i;
                let q = (u32::from(low[l]) >> (4 * (k / 2)) & 15) | (u32::from(upper[l]) >> (2 * k) & 3) << 4;
                out[i] = s * number(q, 32);
            }
        }
    }
}

#[inline(always)]
fn number(q: impl Into<u32>, zero: i32) -> f32 {
    (q.into() as i32 - zero) as f32
}

#[cfg(test)]
#[path = "quant_tests.rs"]
mod tests;
