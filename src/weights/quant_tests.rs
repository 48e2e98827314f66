use super::*;

/// Element `i` of a block, by the layout's definition: slow, one element at a time, in f64 with one rounding.
fn naive(format: Format, block: &[u8], i: usize) -> f32 {
    let half = |at: usize| f64::from(f16::from_le_bytes([block[at], block[at + 1]]).to_f32());
    let signed = |at: usize| f64::from(block[at] as i8);
    let bit = |at: usize, n: usize| u32::from(block[at + n / 8] >> (n % 8) & 1);
    // Of 16 bytes: element i of the first sixteen is the low half of byte i, of the last the high half.
    let nibble = |at: usize| u32::from(if i < 16 { block[at + i] & 0xf } else { block[at + i - 16] >> 4 });
    let value = match format {
        Format::F64 => f64::from_le_bytes(block.try_into().unwrap()),
        Format::F32 => f64::from(f32::from_le_bytes(block.try_into().unwrap())),
        Format::F16 => half(0),
        Format::BF16 => f64::from(half::bf16::from_le_bytes(block.try_into().unwrap()).to_f32()),
        Format::Q8_0 => half(0) * signed(2 + i),
        Format::Q4_0 => half(0) * (f64::from(nibble(2)) - 8.0),
        Format::Q4_1 => half(0) * f64::from(nibble(4)) + half(2),
        Format::Q5_0 => half(0) * (f64::from(nibble(6) + 16 * bit(2, i)) - 16.0),
        Format::Q5_1 => half(0) * f64::from(nibble(8) + 16 * bit(4, i)) + half(2),
        Format::Q4K => {
            let group = i / 32;
            let byte = u32::from(block[16 + i / 64 * 32 + i % 32]);
            let q = byte >> (group % 2 * 4) & 15;
            let packed = |n: usize| u32::from(block[4 + n]);
            let (s, m) = match group {
                0..4 => (packed(group) % 64, packed(group + 4) % 64),
                _ => (
                    packed(group + 4) % 16 + 16 * (packed(group - 4) / 64),
                    packed(group + 4) / 16 + 16 * (packed(group) / 64),
                ),
            };
            half(0) * f64::from(s) * f64::from(q) - half(2) * f64::from(m)
        }
        Format::Q6K => {
            let (part, l) = (i / 128, i % 128);
            let byte = u32::from(block[64 * part + l % 64]);
            let low = if l < 64 { byte % 16 } else { byte / 16 };
            let upper = u32::from(block[128 + 32 * part + l % 32]) >> (l / 32 * 2) & 3;
            half(208) * signed(192 + i / 16) * (f64::from(low + 16 * upper) - 32.0)
        }
    };
    value as f32
}

/// A fixed sequence of bytes that looks random.
fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn same(a: f32, b: f32) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

#[test]
fn every_format_agrees_with_its_definition_bit_for_bit() {
    for format in Format::ALL {
        let blocks = 4096 / format.block_len() + 3;
        let bytes = noise(blocks * format.block_bytes(), 7);
        let mut single = vec![0f32; blocks * format.block_len()];
        widen(format, &bytes, &mut single);
        let mut double = vec![0f64; single.len()];
        widen(format, &bytes, &mut double);
        for (i, (&s, &d)) in single.iter().zip(&double).enumerate() {
            let block = &bytes[i / format.block_len() * format.block_bytes()..][..format.block_bytes()];
            let expected = naive(format, block, i % format.block_len());
            assert!(same(s, expected), "{format} element {i}: {s} for {expected}");
            if format == Format::F64 {
                assert_eq!(d.to_le_bytes(), block);
            } else {
                assert!(
                    same(d as f32, expected) && (d.is_nan() || d == f64::from(expected)),
                    "{format} element {i}: {d}"
                );
            }
        }
    }
}

#[test]
fn every_half_is_converted_exactly() {
    for bits in 0..=u16::MAX {
        let (got, expected) = (half_at(&bits.to_le_bytes(), 0), f16::from_bits(bits).to_f32());
        let same = got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
        assert!(same, "{bits:#06x}: {got} for {expected}");
    }
}

fn decoded(format: Format, block: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; format.block_len()];
    widen(format, block, &mut out);
    out
}

#[test]
fn known_blocks_of_32() {
    let (half, one) = (f16::from_f32(0.5).to_le_bytes(), f16::ONE.to_le_bytes());
    // Byte i holds i in its low half and 15 − i in its high half.
    let nibbles: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
    let x = decoded(Format::Q4_0, &[&half[..], &nibbles].concat());
    assert_eq!((x[0], x[15], x[16], x[31]), (-4.0, 3.5, 3.5, -4.0));
    let x = decoded(Format::Q4_1, &[&half[..], &one, &nibbles].concat());
    assert_eq!((x[0], x[15], x[16], x[31]), (1.0, 8.5, 8.5, 1.0));
    // The fifth bit is set for elements 0 and 31 only.
    let high = 0x8000_0001u32.to_le_bytes();
    let x = decoded(Format::Q5_0, &[&half[..], &high, &nibbles].concat());
    assert_eq!((x[0], x[1], x[16], x[31]), (0.0, -7.5, -0.5, 0.0));
    let x = decoded(Format::Q5_1, &[&half[..], &one, &high, &nibbles].concat());
    assert_eq!((x[0], x[1], x[16], x[31]), (9.0, 1.5, 8.5, 9.0));
    let bytes: Vec<u8> = (0..32).map(|i| (i * 8 - 128i32) as i8 as u8).collect();
    let x = decoded(Format::Q8_0, &[&half[..], &bytes].concat());
    assert_eq!((x[0], x[16], x[31]), (-64.0, 0.0, 60.0));
}

#[test]
fn known_blocks_of_256() {
    let one = f16::ONE.to_le_bytes();
    // Group g has scale g + 1 and minimum 0, but for group 7 with scale 63 and minimum 33.
    let mut packed = [1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 7, 15];
    packed[3] |= 3 << 6;
    packed[11] |= 1 << 4;
    packed[7] |= 2 << 6;
    let mut block = [&one[..], &one, &packed].concat();
    block.extend([0x21; 128]);
    let x = decoded(Format::Q4K, &block);
    assert_eq!((x[0], x[32], x[64], x[96], x[128], x[192]), (1.0, 4.0, 3.0, 8.0, 5.0, 7.0));
    assert_eq!((x[224], x[255]), (63.0 * 2.0 - 33.0, 63.0 * 2.0 - 33.0));
    // Low bits 1 and 2, upper bits 3, 2, 1, 0 for the four quarters of each half.
    let mut block = vec![0x21; 128];
    block.extend([0b0001_1011; 64]);
    block.extend((0..16).map(|g| g - 8i8).map(|s| s as u8));
    block.extend(one);
    let x = decoded(Format::Q6K, &block);
    assert_eq!((x[0], x[32], x[64], x[96]), (-8.0 * 17.0, -6.0, -4.0 * -14.0, -2.0 * -30.0));
    assert_eq!((x[16], x[128], x[255]), (-7.0 * 17.0, 0.0, 7.0 * -30.0));
}

/// `cargo test --release widen_speed -- --ignored --nocapture` prints elements per second of each format.
#[test]
#[ignore = "prints a measurement"]
fn widen_speed() {
    // A panel that stays in the second-level cache, as in a GEMM.
    const COUNT: usize = 32 * 1024;
    for format in Format::ALL {
        let bytes = vec![0x35; COUNT / format.block_len() * format.block_bytes()];
        let mut out = vec![0f32; COUNT];
        let mut best = f64::MAX;
        for _ in 0..200 {
            let start = std::time::Instant::now();
            (0..10).for_each(|_| widen(format, std::hint::black_box(&bytes), std::hint::black_box(&mut out)));
            best = best.min(start.elapsed().as_secs_f64() / 10.0);
        }
        println!("{format}: {:.2} Gelem/s", COUNT as f64 / best / 1e9);
    }
}
