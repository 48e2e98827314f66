//! Decoding of arithmetic, logic, comparison and conversion.

use super::modifiers::Mods;
use super::{Class, Decoder, Result};
use crate::isa::*;
use crate::parse::Operand;

const ROUNDS: &[(&str, Round)] = &[("rn", Round::Nearest), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)];
const COMPARISONS: &[(&str, Cmp)] = &[
    ("eq", Cmp::Eq),
    ("ne", Cmp::Ne),
    ("lt", Cmp::Lt),
    ("le", Cmp::Le),
    ("gt", Cmp::Gt),
    ("ge", Cmp::Ge),
    ("lo", Cmp::Lt),
    ("ls", Cmp::Le),
    ("hi", Cmp::Gt),
    ("hs", Cmp::Ge),
    ("equ", Cmp::EqU),
    ("neu", Cmp::NeU),
    ("ltu", Cmp::LtU),
    ("leu", Cmp::LeU),
    ("gtu", Cmp::GtU),
    ("geu", Cmp::GeU),
    ("num", Cmp::Num),
    ("nan", Cmp::Nan),
];
const COMBINES: &[(&str, Combine)] = &[("and", Combine::And), ("or", Combine::Or), ("xor", Combine::Xor)];

impl<'a> Decoder<'a> {
    pub(super) fn arithmetic(&mut self, mnemonic: &str, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        match mnemonic {
            "setp" | "set" => return self.compare(mnemonic == "set", m, o),
            "cvt" => return self.convert(m, o),
            _ => {}
        }
        let ftz = m.take("ftz");
        let sat = m.take("sat");
        let nan = m.take("NaN");
        let approx = m.take("approx") | m.take("full");
        let round = m.choose(ROUNDS);
        let directed = |ty: Type, plain: Op, op: fn(Type, Round) -> Op| match round {
            Some(r) if r != Round::Nearest && matches!(ty, Type::F32 | Type::F64) => op(ty, r),
            _ => plain,
        };
        // type and width of operands: d, a, b, c, (d)
        let (op, shape): (Op, Vec<Type>) = match mnemonic {
            "add" | "sub" => {
                let carry = m.take("cc");
                let ty = m.ty()?;
                let add = mnemonic == "add";
                let op = match () {
                    _ if carry && add => Op::AddCarry(ty, false, true),
                    _ if carry => Op::SubCarry(ty, false, true),
                    _ if sat && ty == Type::S32 && add => Op::AddSat,
                    _ if sat && ty == Type::S32 => Op::SubSat,
                    _ if add => directed(ty, Op::Add(ty), Op::AddR),
                    _ => directed(ty, Op::Sub(ty), Op::SubR),
                };
                (op, vec![ty; 3])
            }
            "addc" | "subc" => {
                let out = m.take("cc");
                let ty = m.ty()?;
                let op = if mnemonic == "addc" { Op::AddCarry(ty, true, out) } else { Op::SubCarry(ty, true, out) };
                (op, vec![ty; 3])
            }
            "mul" => {
                let form = m.choose(&[("wide", 'w'), ("hi", 'h'), ("lo", 'l')]);
                let ty = m.ty()?;
                match form {
                    Some('w') => (Op::MulWide(ty), vec![wider(ty), ty, ty]),
                    Some('h') => (Op::MulHi(ty), vec![ty; 3]),
                    _ => (directed(ty, Op::Mul(ty), Op::MulR), vec![ty; 3]),
                }
            }
            "mad" | "madc" => {
                let form = m.choose(&[("wide", 'w'), ("hi", 'h'), ("lo", 'l')]);
                let out = m.take("cc");
                let ty = m.ty()?;
                match form {
                    _ if out || mnemonic == "madc" => {
                        (Op::MadCarry(ty, form == Some('h'), mnemonic == "madc", out), vec![ty; 4])
                    }
                    Some('w') => (Op::MadWide(ty), vec![wider(ty), ty, ty, wider(ty)]),
                    Some('h') => (Op::MadHi(ty), vec![ty; 4]),
                    // mad of floats is fma since sm_20
                    None => (directed(ty, Op::Fma(ty), Op::FmaR), vec![ty; 4]),
                    _ => (Op::Mad(ty), vec![ty; 4]),
                }
            }
            "mul24" | "mad24" => {
                let high = m.choose(&[("hi", true), ("lo", false)]).unwrap_or(false);
                let ty = m.ty()?;
                if mnemonic == "mul24" {
                    (Op::Mul24(ty, high), vec![ty; 3])
                } else {
                    (Op::Mad24(ty, high), vec![ty; 4])
                }
            }
            "fma" => {
                let relu = m.take("relu");
                let ty = m.ty()?;
                let op = if relu { Op::FmaRelu(ty) } else { directed(ty, Op::Fma(ty), Op::FmaR) };
                (op, vec![ty; 4])
            }
            "sad" => {
                let ty = m.ty()?;
                (Op::Sad(ty), vec![ty; 4])
            }
            "div" => {
                let ty = m.ty()?;
                let op = if approx { Op::DivApprox } else { directed(ty, Op::Div(ty), Op::DivR) };
                (op, vec![ty; 3])
            }
            "rem" => {
                let ty = m.ty()?;
                (Op::Rem(ty), vec![ty; 3])
            }
            "min" | "max" => {
                let ty = m.ty()?;
                let op = match (mnemonic, nan) {
                    ("min", false) => Op::Min(ty),
                    ("min", true) => Op::MinNan(ty),
                    (_, false) => Op::Max(ty),
                    (_, true) => Op::MaxNan(ty),
                };
                (op, vec![ty; 3])
            }
            "abs" | "neg" => {
                let ty = m.ty()?;
                (if mnemonic == "abs" { Op::Abs(ty) } else { Op::Neg(ty) }, vec![ty; 2])
            }
            "copysign" => {
                let ty = m.ty()?;
                (Op::Copysign(ty), vec![ty; 3])
            }
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh" => {
                let ty = m.ty()?;
                (self.function(mnemonic, ty, round, approx, m)?, vec![ty; 2])
            }
            "testp" => {
                let kind = m.choose(&[
                    ("finite", Testp::Finite),
                    ("infinite", Testp::Infinite),
                    ("number", Testp::Number),
                    ("notanumber", Testp::NotANumber),
                    ("normal", Testp::Normal),
                    ("subnormal", Testp::Subnormal),
                ]);
                let (Some(kind), ty) = (kind, m.ty()?) else { return Err(m.unknown()) };
                (Op::Testp(ty, kind), vec![Type::Pred, ty])
            }
            "and" | "or" | "xor" => {
                let ty = m.ty()?;
                let op = match mnemonic {
                    "and" => Op::And(ty),
                    "or" => Op::Or(ty),
                    _ => Op::Xor(ty),
                };
                (op, vec![ty; 3])
            }
            "not" | "cnot" => {
                let ty = m.ty()?;
                (if mnemonic == "not" { Op::Not(ty) } else { Op::Cnot(ty) }, vec![ty; 2])
            }
            "lop3" => {
                m.ignore(&["b32"]);
                let mut i = Instr::new(Op::Lop3);
                i.dst = self.word(self.operand(o, 0)?)?;
                i.a = self.word(self.operand(o, 1)?)?;
                i.b = self.word(self.operand(o, 2)?)?;
                i.c = self.word(self.operand(o, 3)?)?;
                i.imm = self.immediate(self.operand(o, 4)?)?;
                self.emit(i);
                return Ok(());
            }
            "shl" | "shr" => {
                let ty = m.ty()?;
                (if mnemonic == "shl" { Op::Shl(ty) } else { Op::Shr(ty) }, vec![ty, ty, Type::U32])
            }
            "shf" => {
                let left = m.choose(&[("l", true), ("r", false)]);
                let clamp = m.choose(&[("clamp", true), ("wrap", false)]);
                let (Some(left), Some(clamp)) = (left, clamp) else { return Err(m.unknown()) };
                m.ty()?;
                (Op::Shf(left, clamp), vec![Type::B32; 4])
            }
            "prmt" => {
                let mode = m
                    .choose(&[
                        ("f4e", Prmt::F4e),
                        ("b4e", Prmt::B4e),
                        ("rc8", Prmt::Rc8),
                        ("ecl", Prmt::Ecl),
                        ("ecr", Prmt::Ecr),
                        ("rc16", Prmt::Rc16),
                    ])
                    .unwrap_or(Prmt::Index);
                m.ty()?;
                (Op::Prmt(mode), vec![Type::B32; 4])
            }
            "bfe" => {
                let ty = m.ty()?;
                (Op::Bfe(ty), vec![ty, ty, Type::U32, Type::U32])
            }
            "bfi" => {
                let ty = m.ty()?;
                (Op::Bfi(ty), vec![ty, ty, ty, Type::U32, Type::U32])
            }
            "bfind" => {
                let amount = m.take("shiftamt");
                let ty = m.ty()?;
                (Op::Bfind(ty, amount), vec![Type::U32, ty])
            }
            "brev" => {
                let ty = m.ty()?;
                (Op::Brev(ty), vec![ty; 2])
            }
            "clz" | "popc" => {
                let ty = m.ty()?;
                (if mnemonic == "clz" { Op::Clz(ty) } else { Op::Popc(ty) }, vec![Type::U32, ty])
            }
            "fns" => {
                m.ty()?;
                (Op::Fns, vec![Type::B32; 4])
            }
            "szext" => {
                let clamp = m.choose(&[("clamp", true), ("wrap", false)]);
                let (Some(clamp), ty) = (clamp, m.ty()?) else { return Err(m.unknown()) };
                (Op::Szext(ty, clamp), vec![Type::B32; 3])
            }
            "bmsk" => {
                let clamp = m.choose(&[("clamp", true), ("wrap", false)]);
                let (Some(clamp), _) = (clamp, m.ty()?) else { return Err(m.unknown()) };
                (Op::Bmsk(clamp), vec![Type::B32; 3])
            }
            "dp4a" => match m.types()[..] {
                [a, b] => (Op::Dp4a(a == Type::S32, b == Type::S32), vec![Type::B32; 4]),
                _ => return Err(m.unknown()),
            },
            "selp" => {
                let ty = m.ty()?;
                let mut i = Instr::new(Op::Selp(ty));
                i.dst = self.value(self.operand(o, 0)?, ty)?;
                i.a = self.value(self.operand(o, 1)?, ty)?;
                i.b = self.value(self.operand(o, 2)?, ty)?;
                self.pred_operand(self.operand(o, 3)?, &mut i)?;
                self.emit(i);
                return Ok(());
            }
            "slct" => match m.types()[..] {
                [ty, by] => (Op::Slct(ty, by), vec![ty, ty, ty, by]),
                _ => return Err(m.unknown()),
            },
            _ => return Err(m.unknown()),
        };
        if o.len() != shape.len() {
            return self.error(format!("'{}' has {} operands, expected {}", m.opcode, o.len(), shape.len()));
        }
        let mut i = Instr::new(op);
        (i.ftz, i.sat) = (ftz, sat);
        let fields: [&mut u32; 5] = [&mut i.dst, &mut i.a, &mut i.b, &mut i.c, &mut i.d];
        for ((field, operand), &ty) in fields.into_iter().zip(o).zip(&shape) {
            *field = self.value(operand, ty)?;
        }
        self.emit(i);
        Ok(())
    }

    fn function(&mut self, mnemonic: &str, ty: Type, round: Option<Round>, approx: bool, m: &Mods<'a>) -> Result<Op> {
        let half = matches!(ty, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2);
        let op = match (mnemonic, ty) {
            ("rcp", _) if round.is_some() => Op::RcpR(ty, round.unwrap_or(Round::Nearest)),
            ("sqrt", _) if round.is_some() => Op::SqrtR(ty, round.unwrap_or(Round::Nearest)),
            ("rcp", _) => Op::Approx(Approx::Rcp, ty),
            ("sqrt", Type::F32) => Op::Approx(Approx::Sqrt, ty),
            ("rsqrt", _) => Op::Approx(Approx::Rsqrt, ty),
            ("sin", Type::F32) => Op::Approx(Approx::Sin, ty),
            ("cos", Type::F32) => Op::Approx(Approx::Cos, ty),
            ("ex2", _) => Op::Approx(Approx::Ex2, ty),
            ("lg2", Type::F32) => Op::Approx(Approx::Lg2, ty),
            ("tanh", _) => Op::Approx(Approx::Tanh, ty),
            _ => return Err(m.unknown()),
        };
        let known = match op {
            Op::Approx(f, _) if half => approx && matches!(f, Approx::Ex2 | Approx::Tanh),
            Op::Approx(f, Type::F64) => approx && matches!(f, Approx::Rcp | Approx::Rsqrt),
            Op::Approx(_, ty) => approx && ty == Type::F32,
            _ => matches!(ty, Type::F32 | Type::F64),
        };
        if known { Ok(op) } else { Err(m.unknown()) }
    }

    fn compare(&mut self, set: bool, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        let ftz = m.take("ftz");
        // the boolean operation comes second: "setp.lt.and", where "lo", "hi" are comparisons
        let Some(cmp) = m.choose(COMPARISONS) else { return Err(m.unknown()) };
        let combine = m.choose(COMBINES).unwrap_or(Combine::None);
        let mut i = match (set, &m.types()[..]) {
            (false, &[ty]) => Instr::new(Op::Setp(cmp, combine, ty)),
            (true, &[to, ty]) => Instr::new(Op::Set(cmp, combine, to, ty)),
            _ => return Err(m.unknown()),
        };
        i.ftz = ftz;
        let ty = match i.op {
            Op::Setp(_, _, ty) => {
                match self.operand(o, 0)? {
                    Operand::Pair(p, q) => (i.dst, i.dst2) = (self.pred(p)?, self.pred(q)?),
                    p => i.dst = self.pred(p)?,
                }
                ty
            }
            Op::Set(_, _, to, ty) => {
                i.dst = self.value(self.operand(o, 0)?, to)?;
                ty
            }
            _ => unreachable!("made above"),
        };
        if matches!(ty, Type::F16x2 | Type::Bf16x2) {
            return Err(m.unknown());
        }
        i.a = self.value(self.operand(o, 1)?, ty)?;
        i.b = self.value(self.operand(o, 2)?, ty)?;
        if combine != Combine::None {
            self.pred_operand(self.operand(o, 3)?, &mut i)?;
        }
        self.emit(i);
        Ok(())
    }

    fn convert(&mut self, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        let mut flags = CvtFlags {
            sat: m.take("sat"),
            satfinite: m.take("satfinite"),
            ftz: m.take("ftz"),
            relu: m.take("relu"),
            ..CvtFlags::default()
        };
        let integral =
            m.choose(&[("rni", Round::Nearest), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)]);
        flags.integral = integral.is_some();
        let round = integral.or_else(|| m.choose(ROUNDS)).or(m.take("rna").then_some(Round::Away));
        let round = round.unwrap_or(Round::Nearest);
        let [to, from] = m.types()[..] else { return Err(m.unknown()) };
        if matches!(to, Type::F16x2 | Type::Bf16x2) {
            if from != Type::F32 || flags.satfinite {
                return Err(m.unknown());
            }
            let mut i = Instr::new(Op::CvtPair(to, round, flags));
            i.dst = self.word(self.operand(o, 0)?)?;
            i.a = self.value(self.operand(o, 1)?, Type::F32)?;
            i.b = self.value(self.operand(o, 2)?, Type::F32)?;
            self.emit(i);
            return Ok(());
        }
        let refused = |t| matches!(t, Type::Pred | Type::B128 | Type::F16x2 | Type::Bf16x2);
        if refused(to) || refused(from) || from == Type::Tf32 || (to == Type::Tf32 && from != Type::F32) {
            return Err(m.unknown());
        }
        let (to_class, dst) = self.any(self.operand(o, 0)?, to)?;
        let (from_class, a) = self.any(self.operand(o, 1)?, from)?;
        if to_class == Class::Pred || from_class == Class::Pred {
            return Err(m.unknown());
        }
        if (to.size() == 8 && to_class != Class::Long) || (from.size() == 8 && from_class != Class::Long) {
            return self.error("a register is narrower than the type it is converted as");
        }
        (flags.long_to, flags.long_from) = (to_class == Class::Long, from_class == Class::Long);
        let mut i = Instr::new(Op::Cvt(to, from, round, flags));
        (i.dst, i.a) = (dst, a);
        self.emit(i);
        Ok(())
    }
}

fn wider(ty: Type) -> Type {
    match ty {
        Type::U16 => Type::U32,
        Type::S16 => Type::S32,
        Type::U32 => Type::U64,
        _ => Type::S64,
    }
}
