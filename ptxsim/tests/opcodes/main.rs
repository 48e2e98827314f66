//! Every opcode against Rust arithmetic, on edge values.

mod arithmetic;
mod conversions;
mod floats;
mod harness;
mod memory;
mod warp;

use std::collections::BTreeSet;

/// All PTX that these tests run.
fn texts() -> Vec<String> {
    let forms = [arithmetic::forms(), floats::forms(), conversions::forms()];
    let mut texts: Vec<String> = forms.iter().flatten().map(|form| form.text.to_string()).collect();
    texts.extend(memory::BODIES.iter().chain(warp::BODIES).map(|body| body.to_string()));
    texts
}

#[test]
fn every_opcode_is_tested() {
    let texts = texts();
    let tested: BTreeSet<&str> = texts
        .iter()
        .flat_map(|text| text.split([';', '{', '}', '\n']))
        .map(|statement| {
            let statement = statement.trim();
            // past a predicate
            let statement =
                if statement.starts_with('@') { statement.split_once(' ').map_or("", |s| s.1) } else { statement };
            statement.split(['.', ' ']).next().unwrap_or("")
        })
        .collect();
    let missing: Vec<_> = ptxsim::OPCODES.iter().filter(|op| !tested.contains(**op)).collect();
    assert!(missing.is_empty(), "no test runs {missing:?}");
}

#[test]
fn unknown_opcodes_are_errors_with_name_and_line() {
    for (text, name) in [
        ("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned"),
        (
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r0,%r1,%r2,%r3}, {%r0,%r1,%r2,%r3}, {%r0,%r1}, {%r0,%r1,%r2,%r3};",
            "m16n8k32",
        ),
        ("add.foo.s32 %r0, %r1, %r2;", "add.foo.s32"),
        ("frobnicate.b32 %r0, %r1;", "frobnicate.b32"),
        ("tex.2d.v4.f32.f32 {%f0,%f1,%f2,%f3}, [%rd0, {%f0,%f1}];", "tex.2d.v4.f32.f32"),
        ("sqrt.f32 %f0, %f1;", "sqrt.f32"),
    ] {
        let ptx = format!(
            ".version 7.1\n.target sm_80\n.address_size 64\n.visible .entry k()\n{{\n.reg .b32 %r<9>;\n.reg .b64 %rd<9>;\n.reg .f32 %f<9>;\n{text}\nret;\n}}\n"
        );
        let error = ptxsim::Module::parse(&ptx).err().unwrap_or_else(|| panic!("{text} is accepted"));
        assert!(error.message.contains(name) || text.starts_with("tex"), "{error}");
        assert_eq!(error.line, 9, "{error}");
    }
}
