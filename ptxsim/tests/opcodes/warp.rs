//! Operations between lanes, barriers, matrices.

use crate::harness::Body;
use half::{bf16, f16};

const SHUFFLES: &str = "
    add.u32 %r1, %r0, 100;
    shfl.sync.idx.b32 %r2|%p1, %r1, 5, 31, -1;
    shfl.sync.up.b32 %r3|%p2, %r1, 3, 0, -1;
    shfl.sync.down.b32 %r4|%p3, %r1, 3, 31, -1;
    shfl.sync.bfly.b32 %r5, %r1, 8, 31, -1;
    shfl.sync.down.b32 %r6|%p4, %r1, 2, 0x1807, -1;
    selp.u32 %r7, 1, 0, %p1;
    selp.u32 %r8, 2, 0, %p2;
    selp.u32 %r9, 4, 0, %p3;
    selp.u32 %r10, 8, 0, %p4;
    add.u32 %r7, %r7, %r8;
    add.u32 %r7, %r7, %r9;
    add.u32 %r7, %r7, %r10;
    mad.wide.u32 %rd3, %r0, 24, %rd1;
    st.global.v2.u32 [%rd3], {%r2, %r3};
    st.global.v2.u32 [%rd3+8], {%r4, %r5};
    st.global.v2.u32 [%rd3+16], {%r6, %r7};
    ret;";

const VOTES: &str = "
    setp.lt.u32 %p1, %r0, 7;
    vote.sync.ballot.b32 %r1, %p1, -1;
    vote.sync.all.pred %p2, %p1, -1;
    vote.sync.any.pred %p3, %p1, -1;
    vote.sync.uni.pred %p4, %p1, -1;
    vote.sync.all.pred %p5, !%p4, -1;
    selp.u32 %r2, 1, 0, %p2;
    selp.u32 %r3, 2, 0, %p3;
    selp.u32 %r4, 4, 0, %p4;
    selp.u32 %r5, 8, 0, %p5;
    add.u32 %r2, %r2, %r3;
    add.u32 %r2, %r2, %r4;
    add.u32 %r2, %r2, %r5;
    and.b32 %r6, %r0, 3;
    match.any.sync.b32 %r7, %r6, -1;
    match.all.sync.b32 %r8|%p6, %r6, -1;
    cvt.u64.u32 %rd4, %r6;
    match.any.sync.b64 %r9, %rd4, -1;
    activemask.b32 %r10;
    redux.sync.add.u32 %r11, %r0, -1;
    redux.sync.max.s32 %r12, %r0, -1;
    redux.sync.or.b32 %r13, %r0, -1;
    elect.sync %r14|%p7, -1;
    selp.u32 %r15, 1, 0, %p7;
    mad.wide.u32 %rd3, %r0, 48, %rd1;
    st.global.v4.u32 [%rd3], {%r1, %r2, %r7, %r8};
    st.global.v4.u32 [%rd3+16], {%r9, %r10, %r11, %r12};
    st.global.v4.u32 [%rd3+32], {%r13, %r14, %r15, %r0};
    ret;";

/// Lanes that take turns: half-warps with masks of their own, and lanes that come late from code laid out after the
/// shuffle.
const LATE: &str = "
    mov.u32 %r1, 7;
    setp.lt.u32 %p1, %r0, 16;
    @%p1 bra FAR;
BACK:
    shfl.sync.bfly.b32 %r2, %r1, 16, 31, -1;
    selp.u32 %r3, 0x0000ffff, 0xffff0000, %p1;
    shfl.sync.bfly.b32 %r4, %r0, 1, 31, %r3;
    mad.lo.u32 %r5, %r2, 100, %r4;
    st.global.u32 [%rd2], %r5;
    ret;
FAR:
    mov.u32 %r1, 9;
    bra BACK;";

const BARRIERS: &str = "
    .shared .align 4 .b8 a[1024];
    mov.u32 %r1, a;
    shr.u32 %r2, %r0, 5;
    mad.lo.u32 %r3, %r0, 4, %r1;
    setp.eq.u32 %p1, %r2, 0;
    @%p1 bra PRODUCER;
    bar.sync 1, 64;
    ld.shared.u32 %r4, [%r3+-128];
    bra.uni JOIN;
PRODUCER:
    st.shared.u32 [%r3], %r0;
    bar.arrive 1, 64;
    mov.u32 %r4, 1000;
JOIN:
    setp.lt.u32 %p2, %r0, 40;
    bar.red.popc.u32 %r5, 0, %p2;
    barrier.cta.red.and.pred %p3, 0, %p2;
    barrier.red.or.aligned.pred %p4, 0, 64, %p2;
    selp.u32 %r6, 1, 0, %p3;
    selp.u32 %r7, 2, 0, %p4;
    add.u32 %r6, %r6, %r7;
    mad.wide.u32 %rd3, %r0, 16, %rd1;
    st.global.v4.u32 [%rd3], {%r4, %r5, %r6, %r0};
    ret;";

const SPECIALS: &str = "
    mov.u32 %r1, %laneid;
    mov.u32 %r2, %warpid;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %ctaid.x;
    mov.u32 %r5, %nctaid.x;
    mov.u32 %r6, %lanemask_lt;
    mov.u32 %r7, %lanemask_ge;
    mov.u32 %r8, %dynamic_smem_size;
    mov.u32 %r9, %clock;
    mov.u64 %rd4, %clock64;
    mov.u64 %rd5, %globaltimer;
    mov.u32 %r10, %smid;
    mad.lo.u32 %r11, %r4, %r3, %r0;
    mad.wide.u32 %rd3, %r11, 32, %rd1;
    st.global.v4.u32 [%rd3], {%r1, %r2, %r3, %r4};
    st.global.v4.u32 [%rd3+16], {%r5, %r6, %r7, %r8};
    ret;";

/// Matrices by ldmatrix, written back by stmatrix and transposed by movmatrix.
const MATRICES: &str = "
    .shared .align 16 .b8 a[512];
    mov.u32 %r1, a;
    mad.lo.u32 %r2, %r0, 16, %r1;
    mad.wide.u32 %rd3, %r0, 16, %rd0;
    ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd3];
    st.shared.v4.u32 [%r2], {%r3, %r4, %r5, %r6};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r2];
    ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14, %r15}, [%r2];
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r16}, [%r2];
    movmatrix.sync.aligned.m8n8.trans.b16 %r17, %r10;
    bar.warp.sync -1;
    stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r2], {%r11, %r10, %r13, %r12};
    bar.warp.sync -1;
    ld.shared.u32 %r18, [%r2];
    mad.wide.u32 %rd4, %r0, 48, %rd1;
    st.global.v4.u32 [%rd4], {%r10, %r11, %r12, %r13};
    st.global.v4.u32 [%rd4+16], {%r14, %r15, %r16, %r17};
    st.global.u32 [%rd4+32], %r18;
    ret;";

/// A product of each shape: `A` is the instruction with its operands.
const PRODUCT: &str = "
    mad.wide.u32 %rd3, %r0, 24, %rd0;
    ld.global.v2.u32 {%r1, %r2}, [%rd3];
    ld.global.v2.u32 {%r3, %r4}, [%rd3+8];
    ld.global.v2.u32 {%r5, %r6}, [%rd3+16];
    cvt.rn.f32.u32 %f1, %r0;
    neg.f32 %f2, %f1;
    mov.f32 %f3, 0f3F000000;
    mov.f32 %f4, 0f00000000;
    mov.u32 %r7, 0x3c003c00;
    mma.sync.aligned.SHAPE;
    mad.wide.u32 %rd4, %r0, 16, %rd1;
    st.global.v4.f32 [%rd4], {%f5, %f6, %f7, %f8};
    ret;";

/// What this file runs.
pub(crate) const BODIES: &[&str] = &[SHUFFLES, VOTES, LATE, BARRIERS, SPECIALS, MATRICES, PRODUCT];

#[test]
fn shuffles() {
    let out = Body::new(SHUFFLES, 32).words(&[0], 192);
    for t in 0..32u32 {
        let got = &out[t as usize * 6..][..6];
        let up = if t >= 3 { t - 3 } else { t };
        let down = if t + 3 < 32 { t + 3 } else { t };
        // segments of 8 lanes
        let segment = if t % 8 + 2 < 8 { t + 2 } else { t };
        let valid = 1 + 2 * (t >= 3) as u32 + 4 * (t + 3 < 32) as u32 + 8 * (t % 8 + 2 < 8) as u32;
        assert_eq!(got, [105, 100 + up, 100 + down, 100 + (t ^ 8), 100 + segment, valid], "lane {t}");
    }
}

#[test]
fn votes_and_reductions() {
    let out = Body::new(VOTES, 32).words(&[0], 384);
    for t in 0..32u32 {
        let group = 0x1111_1111 << (t & 3);
        let got = &out[t as usize * 12..][..12];
        assert_eq!(got, [0x7f, 2 + 8, group, 0, group, u32::MAX, 496, 31, 31, 0, (t == 0) as u32, t], "lane {t}");
    }
}

#[test]
fn lanes_wait_for_each_other() {
    let out = Body::new(LATE, 32).words(&[0], 32);
    assert_eq!(out, (0..32).map(|t| if t < 16 { 700 + (t ^ 1) } else { 900 + (t ^ 1) }).collect::<Vec<u32>>());
}

#[test]
fn barriers() {
    let out = Body::new(BARRIERS, 64).words(&[0], 256);
    for t in 0..64 {
        let value = if t < 32 { 1000 } else { t - 32 };
        assert_eq!(out[t as usize * 4..][..4], [value, 40, 2, t]);
    }
}

#[test]
fn special_registers() {
    let body = Body { blocks: 2, dynamic_shared: 48, ..Body::new(SPECIALS, 40) };
    let out = body.words(&[0], 80 * 8);
    for i in 0..80u32 {
        let (block, t) = (i / 40, i % 40);
        let lane = t % 32;
        let expected = [lane, t / 32, 40, block, 2, (1 << lane) - 1, u32::MAX << lane, 48];
        assert_eq!(out[i as usize * 8..][..8], expected);
    }
}

#[test]
fn matrices() {
    // element (row, column) of matrix q is q * 64 + row * 8 + column
    let input: Vec<u32> = (0..128).map(|i| (2 * i) | ((2 * i + 1) << 16)).collect();
    let out = Body::new(MATRICES, 32).words(&input, 32 * 12);
    let pair = |x: u32, y: u32| x | y << 16;
    for l in 0..32u32 {
        let (row, column) = (l / 4, l % 4 * 2);
        let plain = |q: u32| pair(q * 64 + row * 8 + column, q * 64 + row * 8 + column + 1);
        let turned = |q: u32| pair(q * 64 + column * 8 + row, q * 64 + (column + 1) * 8 + row);
        let got = &out[l as usize * 12..][..9];
        let stored = [8, 0, 24, 16][(l / 8) as usize] + l % 8;
        let expected = [plain(0), plain(1), plain(2), plain(3), turned(0), turned(1), plain(0), turned(0)];
        assert_eq!(got[..8], expected, "lane {l}");
        assert_eq!(got[8], pair(stored * 8, stored * 8 + 1), "lane {l}");
    }
}

/// The elements of an operand: how many 16-bit (or 32-bit) values a register holds, and their value.
#[derive(Clone, Copy)]
enum Element {
    Bf16,
    F16,
    Tf32,
}

#[test]
fn products() {
    let floats = "{%f5, %f6, %f7, %f8}, ";
    let c = "{%f1, %f2, %f3, %f4}";
    for (shape, k, element, a, b) in [
        ("m16n8k16.row.col.f32.bf16.bf16.f32", 16, Element::Bf16, "{%r1, %r2, %r3, %r4}", "{%r5, %r6}"),
        ("m16n8k16.row.col.f32.f16.f16.f32", 16, Element::F16, "{%r1, %r2, %r3, %r4}", "{%r5, %r6}"),
        ("m16n8k8.row.col.f32.bf16.bf16.f32", 8, Element::Bf16, "{%r1, %r2}", "{%r5}"),
        ("m16n8k8.row.col.f32.f16.f16.f32", 8, Element::F16, "{%r1, %r2}", "{%r5}"),
        ("m16n8k8.row.col.f32.tf32.tf32.f32", 8, Element::Tf32, "{%r1, %r2, %r3, %r4}", "{%r5, %r6}"),
        ("m16n8k4.row.col.f32.tf32.tf32.f32", 4, Element::Tf32, "{%r1, %r2}", "{%r5}"),
    ] {
        let text = PRODUCT.replace("SHAPE", &format!("{shape} {floats}{a}, {b}, {c}"));
        let value = |i: usize| ((i * 37 + 11) % 23) as f32 / 4.0 - 2.0;
        // matrices by their elements, then spread over the registers as PTX says
        let left = |row: usize, column: usize| value(row * k + column);
        let right = |row: usize, column: usize| value(1000 + row * 8 + column);
        let bits = |x: f32| match element {
            Element::Bf16 => bf16::from_f32(x).to_bits() as u32,
            Element::F16 => f16::from_f32(x).to_bits() as u32,
            Element::Tf32 => x.to_bits(),
        };
        let mut input = vec![0u32; 32 * 6];
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            let word = |f: &dyn Fn(usize) -> f32| match element {
                Element::Tf32 => bits(f(0)),
                _ => bits(f(0)) | bits(f(1)) << 16,
            };
            let (step, width) = if matches!(element, Element::Tf32) { (4, 1) } else { (8, 2) };
            for q in 0..4 {
                let (row, column) = (g + q % 2 * 8, t * width + q / 2 * step);
                if column < k {
                    input[lane * 6 + q] = word(&|i| left(row, column + i));
                }
            }
            for q in 0..2 {
                let row = t * width + q * step;
                if row < k {
                    input[lane * 6 + 4 + q] = word(&|i| right(row + i, g));
                }
            }
        }
        let out = Body::new(&text, 32).words(&input, 128);
        for lane in 0..32 {
            for q in 0..4 {
                let (row, column) = (lane / 4 + q / 2 * 8, lane % 4 * 2 + q % 2);
                let c = [lane as f32, -(lane as f32), 0.5, 0.0][q];
                let sum = c + (0..k).map(|i| left(row, i) * right(i, column)).sum::<f32>();
                assert_eq!(f32::from_bits(out[lane * 4 + q]), sum, "{shape} row {row} column {column}");
            }
        }
    }
}

/// f16 accumulators: two in a register.
#[test]
fn products_in_f16() {
    let text = PRODUCT
        .replace("SHAPE", "m16n8k16.row.col.f16.f16.f16.f16 {%r8, %r9}, {%r7, %r7, %r7, %r7}, {%r7, %r7}, {%r7, 0}")
        .replace("{%f5, %f6, %f7, %f8}", "{%r8, %r9, %r8, %r9}")
        .replace("v4.f32", "v4.u32");
    let out = Body::new(&text, 32).words(&[0; 192], 128);
    let (with, without) = (f16::from_f32(17.0).to_bits() as u32, f16::from_f32(16.0).to_bits() as u32);
    assert_eq!(out[..2], [with * 0x10001, without * 0x10001]);
}
