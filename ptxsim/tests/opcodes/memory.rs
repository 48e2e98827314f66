//! Loads, stores, atomics, address spaces, control flow, calls.

use crate::harness::Body;

const VECTORS: &str = "
    ld.global.nc.L1::no_allocate.v4.u32 {%r1, %r2, %r3, %r4}, [%rd0];
    ldu.global.v2.u32 {%r5, %r6}, [%rd0+16];
    ld.global.v2.u64 {%rd3, %rd4}, [%rd0+32];
    ld.volatile.global.u32 %r7, [%rd0+24];
    ld.relaxed.gpu.global.u32 %r8, [%rd0+28];
    prefetch.global.L2 [%rd0];
    prefetchu.L1 [%rd0];
    discard.global.L2 [%rd0], 128;
    st.global.cs.v4.u32 [%rd1], {%r4, %r3, %r2, %r1};
    st.global.v2.u32 [%rd1+16], {%r6, %r5};
    st.volatile.global.u32 [%rd1+24], %r7;
    st.release.gpu.global.u32 [%rd1+28], %r8;
    st.global.v2.u64 [%rd1+32], {%rd4, %rd3};
    ret;";

const NARROW: &str = "
    ld.global.s8 %r1, [%rd0+3];
    ld.global.u8 %rs1, [%rd0+3];
    ld.global.s16 %r2, [%rd0+2];
    ld.global.u16 %rs2, [%rd0+2];
    ld.global.s32 %rd3, [%rd0];
    ld.global.u32 %rd4, [%rd0];
    ld.global.v4.u8 {%rs3, %rs4, %rs5, %rs6}, [%rd0];
    ld.global.v2.s16 {%r3, _}, [%rd0];
    st.global.u32 [%rd1], %r1;
    cvt.u32.u16 %r4, %rs1;
    st.global.u32 [%rd1+4], %r4;
    st.global.u32 [%rd1+8], %r2;
    cvt.u32.u16 %r5, %rs2;
    st.global.u32 [%rd1+12], %r5;
    st.global.u64 [%rd1+16], %rd3;
    st.global.u64 [%rd1+24], %rd4;
    st.global.v4.u8 [%rd1+32], {%rs6, %rs5, %rs4, %rs3};
    st.global.u16 [%rd1+36], %r3;
    st.global.b8 [%rd1+38], %rs3;
    st.global.b8 [%rd1+39], %r4;
    exit;";

/// Generic addresses of all spaces, and local and shared variables.
const SPACES: &str = "
    .local .align 8 .b8 depot[16];
    .shared .align 8 .b8 tile[512];
    .reg .b64 %SP; .reg .b64 %SPL;
    mov.u64 %SPL, depot;
    cvta.local.u64 %SP, %SPL;
    st.local.u32 [%SPL+4], %r0;
    ld.u32 %r1, [%SP+4];
    mov.u64 %rd3, tile;
    cvta.shared.u64 %rd4, %rd3;
    mad.wide.u32 %rd5, %r0, 8, %rd4;
    st.u32 [%rd5], %r1;
    st.u32 [%rd5+4], %r0;
    bar.sync 0;
    xor.b32 %r2, %r0, 1;
    shl.b32 %r2, %r2, 3;
    mov.u32 %r3, tile;
    add.s32 %r3, %r3, %r2;
    ld.shared.v2.u32 {%r4, %r5}, [%r3];
    add.u32 %r6, %r4, %r5;
    cvta.to.shared.u64 %rd6, %rd5;
    sub.u64 %rd7, %rd6, %rd3;
    cvt.u32.u64 %r7, %rd7;
    add.u32 %r6, %r6, %r7;
    isspacep.shared %p1, %rd5;
    isspacep.global %p2, %rd0;
    isspacep.local %p3, %SP;
    isspacep.global %p4, %SP;
    @!%p1 add.u32 %r6, %r6, 1000;
    @!%p2 add.u32 %r6, %r6, 1000;
    @!%p3 add.u32 %r6, %r6, 1000;
    @%p4 add.u32 %r6, %r6, 1000;
    cvta.to.global.u64 %rd8, %rd2;
    cvta.global.u64 %rd9, %rd8;
    st.u32 [%rd9], %r6;
    ret;";

const ATOMICS: &str = "
    atom.global.add.u32 %r1, [%rd1], 1;
    red.global.add.u32 [%rd1+4], %r0;
    red.global.max.s32 [%rd1+8], %r0;
    sub.s32 %r2, 5, %r0;
    red.global.min.s32 [%rd1+12], %r2;
    atom.global.or.b32 %r3, [%rd1+16], %r0;
    red.global.xor.b32 [%rd1+20], %r0;
    atom.global.inc.u32 %r4, [%rd1+24], 9;
    atom.global.dec.u32 %r5, [%rd1+28], 9;
    red.global.add.f32 [%rd1+32], 0f3F800000;
    atom.global.cas.b32 %r6, [%rd1+36], 0, 77;
    atom.global.exch.b32 %r7, [%rd1+40], 5;
    cvt.u64.u32 %rd3, %r0;
    red.global.add.u64 [%rd1+48], %rd3;
    atom.global.and.b32 %r8, [%rd1+56], %r0;
    atom.global.max.u64 %rd4, [%rd1+64], %rd3;
    ret;";

const SHARED_ATOMICS: &str = "
    .shared .align 4 .b8 count[4];
    mov.u32 %r1, count;
    setp.eq.u32 %p1, %r0, 0;
    @%p1 st.shared.u32 [%r1], 0;
    barrier.sync 0;
    atom.shared.add.u32 %r2, [%r1], 2;
    membar.cta;
    fence.acq_rel.gpu;
    barrier.sync.aligned 0;
    ld.shared.u32 %r3, [%r1];
    st.global.u32 [%rd2], %r3;
    ret;";

const BRANCHES: &str = "
    mov.u32 %r1, 0;
    and.b32 %r2, %r0, 3;
    targets: .branchtargets ZERO, ONE, TWO, THREE;
    brx.idx %r2, targets;
ZERO:
    mov.u32 %r1, 10;
    bra.uni DONE;
ONE:
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, %r0;
    @%p1 bra ONE;
    bra DONE;
TWO:
    { .reg .u32 %t; mov.u32 %t, 20; mov.u32 %r1, %t; }
    nanosleep.u32 20;
    bra DONE;
THREE:
    mov.u32 %r1, 30;
DONE:
    st.global.u32 [%rd2], %r1;
    setp.ne.u32 %p2, %r0, %r0;
    @%p2 trap;
    ret;";

const FUNCTIONS: &str = "
.func (.param .b32 result) square_sum(.param .b32 a, .param .b32 b)
{
    .reg .b32 %r<5>;
    .reg .pred %p;
    ld.param.u32 %r1, [a];
    ld.param.u32 %r2, [b];
    setp.gt.u32 %p, %r1, 5;
    @%p bra BIG;
    mad.lo.u32 %r3, %r1, %r1, %r2;
    st.param.b32 [result], %r3;
    ret;
BIG:
    st.param.b32 [result], %r2;
    ret;
}
.global .align 4 .u32 table[4] = {11, 22, 33, 44};
.const .align 8 .f64 half = 0d3FE0000000000000;
.global .align 8 .u64 pointer = table;";

const CALLS: &str = "
    { .param .b32 p0; .param .b32 p1; .param .b32 r0;
      st.param.b32 [p0], %r0;
      st.param.b32 [p1], 100;
      call.uni (r0), square_sum, (p0, p1);
      ld.param.b32 %r1, [r0];
    }
    { .param .b32 p0; .param .b32 p1; .param .b32 r0;
      st.param.b32 [p0], 2;
      st.param.b32 [p1], %r1;
      call (r0), square_sum, (p0, p1);
      ld.param.b32 %r1, [r0];
    }
    and.b32 %r2, %r0, 3;
    mov.u64 %rd3, table;
    mad.wide.u32 %rd4, %r2, 4, %rd3;
    ld.global.u32 %r3, [%rd4];
    ld.global.u64 %rd5, [pointer];
    ld.u32 %r4, [%rd5+4];
    ld.const.f64 %h1, [half];
    cvt.rni.u32.f64 %r5, %h1;
    add.u32 %r1, %r1, %r3;
    add.u32 %r1, %r1, %r4;
    add.u32 %r1, %r1, %r5;
    st.global.u32 [%rd2], %r1;
    ret;";

const COPIES: &str = "
    mov.u32 %r1, dynamic;
    mad.lo.u32 %r2, %r0, 16, %r1;
    mad.wide.u32 %rd3, %r0, 16, %rd0;
    cp.async.cg.shared.global [%r2], [%rd3], 16;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r2+512], [%rd3], 4;
    and.b32 %r3, %r0, 7;
    cp.async.ca.shared.global.L2::128B [%r2+520], [%rd3+8], 8, %r3;
    cp.async.commit_group;
    cp.async.wait_group 1;
    bar.warp.sync -1;
    xor.b32 %r4, %r2, 16;
    ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r4];
    cp.async.wait_all;
    bar.warp.sync 0xffffffff;
    ld.shared.u32 %r9, [%r4+512];
    ld.shared.v2.u32 {%r10, %r11}, [%r4+520];
    mad.wide.u32 %rd4, %r0, 32, %rd1;
    st.global.v4.u32 [%rd4], {%r5, %r6, %r7, %r8};
    st.global.v4.u32 [%rd4+16], {%r9, %r10, %r11, %r0};
    ret;";

/// What this file runs.
pub(crate) const BODIES: &[&str] =
    &[VECTORS, NARROW, SPACES, ATOMICS, SHARED_ATOMICS, BRANCHES, FUNCTIONS, CALLS, COPIES];

#[test]
fn vectors() {
    let input: Vec<u32> = (100..112).collect();
    let out = Body::new(VECTORS, 1).words(&input, 12);
    assert_eq!(out, [103, 102, 101, 100, 105, 104, 106, 107, 110, 111, 108, 109]);
}

#[test]
fn narrow_values() {
    let out = Body::new(NARROW, 1).words(&[0x8765_4321], 10);
    let expected = [0xffff_ff87, 0x87, 0xffff_8765, 0x8765, 0x8765_4321, 0xffff_ffff, 0x8765_4321, 0, 0x2143_6587];
    assert_eq!(out[..9], expected);
    assert_eq!(out[9], 0x8721_4321);
}

#[test]
fn address_spaces() {
    let out = Body::new(SPACES, 64).words(&[0], 64);
    assert_eq!(out, (0..64).map(|t| 2 * (t ^ 1) + 8 * t).collect::<Vec<u32>>());
}

#[test]
fn atomics() {
    let n = 64;
    let out = Body::new(ATOMICS, n).words(&[0], 18);
    let xor = (0..n).fold(0, |x, t| x ^ t);
    let inc = (0..n).fold(0, |x, _| if x >= 9 { 0 } else { x + 1 });
    let dec = (0..n).fold(0, |x: u32, _| if x == 0 || x > 9 { 9 } else { x - 1 });
    assert_eq!(out[..3], [n, n * (n - 1) / 2, n - 1]);
    assert_eq!(out[3] as i32, 5 - (n as i32 - 1));
    assert_eq!(out[4..8], [63, xor, inc, dec]);
    assert_eq!(f32::from_bits(out[8]), n as f32);
    assert_eq!(out[9..11], [77, 5]);
    assert_eq!(out[12..15], [n * (n - 1) / 2, 0, 0]);
    assert_eq!(out[16..18], [n - 1, 0]);
    assert_eq!(Body::new(SHARED_ATOMICS, 96).words(&[0], 96), [192; 96]);
}

#[test]
fn branches() {
    let out = Body::new(BRANCHES, 32).words(&[0], 32);
    let expected = |t: u32| match t & 3 {
        0 => 10,
        1 => t.max(1),
        2 => 20,
        _ => 30,
    };
    assert_eq!(out, (0..32).map(expected).collect::<Vec<u32>>());
}

#[test]
fn calls_and_variables() {
    let body = Body { module: FUNCTIONS, ..Body::new(CALLS, 16) };
    let out = body.words(&[0], 16);
    let square = |t: u32| if t > 5 { 100 } else { t * t + 100 };
    // 0.5 rounds to 0
    assert_eq!(out, (0..16).map(|t| square(t) + 4 + 11 * (1 + t % 4) + 22).collect::<Vec<u32>>());
}

#[test]
fn asynchronous_copies() {
    let input: Vec<u32> = (0..128).map(|i| i + 0x0101_0101).collect();
    let module = ".extern .shared .align 16 .b8 dynamic[];";
    let body = Body { module, dynamic_shared: 1024 + 16, ..Body::new(COPIES, 32) };
    let out = body.words(&input, 256);
    for t in 0..32 {
        let from = &input[(t ^ 1) * 4..][..4];
        let keep = (t ^ 1) & 7;
        let mut part: Vec<u8> = from[2..].iter().flat_map(|x| x.to_le_bytes()).collect();
        part[keep..].fill(0);
        let part: Vec<u32> = part.chunks(4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
        assert_eq!(out[t * 8..t * 8 + 4], *from);
        assert_eq!(out[t * 8 + 4..t * 8 + 8], [from[0], part[0], part[1], t as u32], "thread {t}");
    }
}

#[test]
fn trap_is_a_report() {
    let report = Body::new("trap;", 1).run(&[0], 1).expect_err("it traps");
    assert_eq!(report.kind, ptxsim::Kind::Trap);
}
