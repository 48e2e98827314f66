//! Decoding of what moves data between threads, memory and matrices, and of control flow.

use super::modifiers::Mods;
use super::{Class, Decoder, Fixup, Result};
use crate::isa::*;
use crate::parse::Operand;

const CACHE_HINTS: &[&str] = &["ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "evict_first", "evict_last"];
const SCOPES: &[&str] = &["cta", "cluster", "gpu", "sys"];
const ATOMS: &[(&str, Atom)] = &[
    ("add", Atom::Add),
    ("min", Atom::Min),
    ("max", Atom::Max),
    ("and", Atom::And),
    ("or", Atom::Or),
    ("xor", Atom::Xor),
    ("exch", Atom::Exch),
    ("cas", Atom::Cas),
    ("inc", Atom::Inc),
    ("dec", Atom::Dec),
];

impl<'a> Decoder<'a> {
    /// Decodes the opcodes of this file; false for all others.
    pub(super) fn data(&mut self, mnemonic: &str, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<bool> {
        match mnemonic {
            "ld" | "ldu" | "st" => self.load_store(mnemonic == "st", m, o)?,
            "atom" | "red" => self.atomic(mnemonic == "red", m, o)?,
            "prefetch" | "prefetchu" | "discard" => {
                m.parts.clear();
                self.emit(Instr::new(Op::Nop));
            }
            "cp" => self.async_copy(m, o)?,
            "ldmatrix" | "stmatrix" => self.matrix_access(mnemonic == "stmatrix", m, o)?,
            "mma" => self.mma(m, o)?,
            "movmatrix" => {
                m.ignore(&["sync", "aligned", "m8n8", "trans", "b16"]);
                let mut i = Instr::new(Op::Movmatrix);
                (i.dst, i.a) = (self.word(self.operand(o, 0)?)?, self.word(self.operand(o, 1)?)?);
                self.emit(i);
            }
            "shfl" => self.shuffle(m, o)?,
            "vote" => self.vote(m, o)?,
            "match" => self.match_lanes(m, o)?,
            "redux" => {
                m.ignore(&["sync"]);
                let Some(op) = m.choose(ATOMS) else { return Err(m.unknown()) };
                let ty = m.ty()?;
                let mut i = Instr::new(Op::Redux(op, ty));
                i.dst = self.word(self.operand(o, 0)?)?;
                (i.a, i.b) = (self.word(self.operand(o, 1)?)?, self.word(self.operand(o, 2)?)?);
                self.emit(i);
            }
            "activemask" => {
                m.ty()?;
                let mut i = Instr::new(Op::ActiveMask);
                i.dst = self.word(self.operand(o, 0)?)?;
                self.emit(i);
            }
            "elect" => {
                m.ignore(&["sync"]);
                let mut i = Instr::new(Op::Elect);
                (i.dst, i.dst2) = self.pair(self.operand(o, 0)?, Type::B32)?;
                i.a = self.word(self.operand(o, 1)?)?;
                self.emit(i);
            }
            "bar" | "barrier" => self.barrier(m, o)?,
            "membar" | "fence" => {
                m.parts.clear();
                self.emit(Instr::new(Op::Fence));
            }
            "nanosleep" => {
                m.ty()?;
                self.emit(Instr::new(Op::Nop));
            }
            "bra" => {
                m.ignore(&["uni"]);
                let at = self.code.len();
                self.branch(self.operand(o, 0)?, Fixup::Branch(at))?;
                self.emit(Instr::new(Op::Bra));
            }
            "brx" => {
                m.ignore(&["uni", "idx"]);
                let mut i = Instr::new(Op::BrxIdx);
                i.a = self.word(self.operand(o, 0)?)?;
                let &Operand::Name(name, 0) = self.operand(o, 1)? else { return self.error("brx needs a label list") };
                let Some(targets) = self.targets.get(name).cloned() else {
                    return self.error(format!("there is no .branchtargets '{name}'"));
                };
                i.list = self.lists.len() as u32;
                i.imm = targets.len() as i64;
                for target in targets {
                    let at = self.lists.len();
                    self.lists.push(0);
                    self.branch(&Operand::Name(target, 0), Fixup::List(at))?;
                }
                self.emit(i);
            }
            "exit" | "ret" => {
                m.ignore(&["uni"]);
                self.emit(Instr::new(Op::Exit));
            }
            "trap" => self.emit(Instr::new(Op::Trap)),
            "cvta" | "isspacep" => self.address_conversion(mnemonic, m, o)?,
            "mov" => self.mov(m, o)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `a|b`: a value and a predicate; without the second, `NONE`.
    pub(super) fn pair(&mut self, operand: &Operand<'a>, ty: Type) -> Result<(u32, u32)> {
        match operand {
            Operand::Pair(a, b) => Ok((self.value(a, ty)?, self.pred(b)?)),
            a => Ok((self.value(a, ty)?, NONE)),
        }
    }

    fn space(&mut self, m: &mut Mods<'a>) -> Space {
        let space = m.parts.iter().find_map(|p| Space::parse(p));
        m.parts.retain(|p| Space::parse(p).is_none());
        space.unwrap_or(Space::Generic)
    }

    fn load_store(&mut self, store: bool, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        m.ignore(CACHE_HINTS);
        let strong = ["volatile", "relaxed", "acquire", "release", "mmio"].map(|w| m.take(w)).contains(&true);
        m.ignore(SCOPES);
        let mut space = self.space(m);
        let n = m.choose(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let ty = m.ty()?;
        let (value, address) = if store { (1, 0) } else { (0, 1) };
        let (reg, wide, offset, named) = self.address(self.operand(o, address)?)?;
        // parameters of expanded functions are local variables
        if let Some(named) = named
            && (space == Space::Generic || space == Space::Param)
        {
            space = named;
        }
        let elements = self.elements(self.operand(o, value)?).to_vec();
        if elements.len() != n as usize {
            return self.error(format!("{} values for a vector of {n}", elements.len()));
        }
        let mut regs = vec![];
        let mut class = None;
        for element in &elements {
            // values that a vector load drops
            let sink = *element == Operand::Name("_", 0);
            let wanted = if class == Some(Class::Long) { Type::B64 } else { ty };
            let (c, reg) = self.any(element, wanted)?;
            if c == Class::Pred || (class.is_some_and(|k| k != c) && !sink) {
                return self.error("the values of a load or store must have one register size");
            }
            class = Some(c);
            regs.push(reg);
        }
        let long = class == Some(Class::Long);
        let mem = Mem { space, ty, n, wide, long, strong };
        let mut i = Instr::new(if store { Op::St(mem) } else { Op::Ld(mem) });
        i.a = reg;
        i.imm = offset;
        i.list = self.list(&regs);
        self.emit(i);
        Ok(())
    }

    fn atomic(&mut self, reduce: bool, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        m.ignore(&["relaxed", "acquire", "release", "acq_rel", "noftz", "cta", "cluster", "gpu", "sys"]);
        let mut space = self.space(m);
        let Some(op) = m.choose(ATOMS) else { return Err(m.unknown()) };
        let ty = m.ty()?;
        if ty.is_float() && op != Atom::Add || matches!(ty, Type::Tf32 | Type::B8 | Type::U8 | Type::S8 | Type::B128) {
            return Err(m.unknown());
        }
        let at = !reduce as usize;
        let (reg, wide, offset, named) = self.address(self.operand(o, at)?)?;
        if space == Space::Generic {
            space = named.unwrap_or(Space::Generic);
        }
        let long = ty.size() == 8;
        let mem = Mem { space, ty, n: 1, wide, long, strong: true };
        let mut i = Instr::new(if reduce { Op::Red(op, mem) } else { Op::Atom(op, mem) });
        i.a = reg;
        i.imm = offset;
        if !reduce {
            i.dst = self.value(self.operand(o, 0)?, ty)?;
        }
        i.b = self.value(self.operand(o, at + 1)?, ty)?;
        if op == Atom::Cas {
            i.c = self.value(self.operand(o, at + 2)?, ty)?;
        }
        self.emit(i);
        Ok(())
    }

    fn async_copy(&mut self, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        if !m.take("async") {
            return Err(m.unknown());
        }
        if m.take("commit_group") {
            self.emit(Instr::new(Op::CpCommit));
            return Ok(());
        }
        if m.take("wait_all") {
            self.emit(Instr::new(Op::CpWaitAll));
            return Ok(());
        }
        if m.take("wait_group") {
            let mut i = Instr::new(Op::CpWait);
            i.imm = self.immediate(self.operand(o, 0)?)?;
            self.emit(i);
            return Ok(());
        }
        m.ignore(&["ca", "cg"]);
        let known = (m.take("shared") || m.take("shared::cta")) && m.take("global");
        if !known {
            return Err(m.unknown());
        }
        let size = self.immediate(self.operand(o, 2)?)?;
        if ![4, 8, 16].contains(&size) {
            return self.error(format!("cp.async of {size} bytes: it copies 4, 8 or 16"));
        }
        let mut i = Instr::new(Op::CpAsync(size as u8));
        let (to, to_wide, to_offset, _) = self.address(self.operand(o, 0)?)?;
        let (from, from_wide, from_offset, _) = self.address(self.operand(o, 1)?)?;
        // addresses as 32-bit shared and 64-bit global registers, which is how they are written in practice
        if to_wide || !from_wide {
            return self.error("cp.async needs a 32-bit shared and a 64-bit global address");
        }
        (i.d, i.a) = (to, from);
        i.imm = to_offset;
        i.list = self.list(&[from_offset as u32]);
        if let Some(bytes) = o.get(3) {
            // bytes to copy, the rest becomes zero; or a predicate: true copies nothing
            match self.any(bytes, Type::B32)? {
                (Class::Word, reg) => i.b = reg,
                (Class::Pred, reg) => i.c = reg,
                _ => return self.error("the source size of cp.async is 32 bits"),
            }
        }
        self.emit(i);
        Ok(())
    }

    fn matrix_access(&mut self, store: bool, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        m.ignore(&["sync", "aligned", "m8n8", "b16", "shared", "shared::cta"]);
        let Some(n) = m.choose(&[("x1", 1), ("x2", 2), ("x4", 4)]) else { return Err(m.unknown()) };
        let trans = m.take("trans");
        let (value, address) = if store { (1, 0) } else { (0, 1) };
        let mut i = Instr::new(if store { Op::Stmatrix(n, trans) } else { Op::Ldmatrix(n, trans) });
        let (reg, wide, offset, _) = self.address(self.operand(o, address)?)?;
        (i.a, i.imm) = (reg, offset);
        i.wide = wide;
        let elements = self.elements(self.operand(o, value)?).to_vec();
        if elements.len() != n as usize {
            return self.error(format!("{} registers for {n} matrices", elements.len()));
        }
        let regs = elements.iter().map(|e| self.word(e)).collect::<Result<Vec<_>>>()?;
        i.list = self.list(&regs);
        self.emit(i);
        Ok(())
    }

    fn mma(&mut self, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        m.ignore(&["sync", "aligned"]);
        if !(m.take("row") && m.take("col")) {
            return Err(m.unknown());
        }
        let shape =
            m.choose(&[("m16n8k8", Shape::M16n8k8), ("m16n8k16", Shape::M16n8k16), ("m16n8k4", Shape::M16n8k4)]);
        let (Some(shape), types) = (shape, m.types()) else { return Err(m.unknown()) };
        let (op, counts) = match (shape, &types[..]) {
            (_, [Type::F32, a, b, Type::F32]) if a == b => {
                let a_regs = match (shape, a) {
                    (Shape::M16n8k16, Type::Bf16 | Type::F16) => 4,
                    (Shape::M16n8k8, Type::Bf16 | Type::F16) => 2,
                    (Shape::M16n8k8, Type::Tf32) => 4,
                    (Shape::M16n8k4, Type::Tf32) => 2,
                    _ => return Err(m.unknown()),
                };
                (Op::Mma(shape, *a), [4, a_regs, a_regs / 2, 4])
            }
            (Shape::M16n8k16, [Type::F16, Type::F16, Type::F16, Type::F16]) => (Op::MmaHalf(shape), [2, 4, 2, 2]),
            (Shape::M16n8k8, [Type::F16, Type::F16, Type::F16, Type::F16]) => (Op::MmaHalf(shape), [2, 2, 1, 2]),
            _ => return Err(m.unknown()),
        };
        let mut regs = vec![];
        for (k, count) in counts.into_iter().enumerate() {
            let elements = self.elements(self.operand(o, k)?).to_vec();
            if elements.len() != count {
                return self.error(format!("mma operand {} has {} registers, expected {count}", k + 1, elements.len()));
            }
            for e in &elements {
                // floats as constants (a zero accumulator)
                let ty = if k == 3 { Type::F32 } else { Type::B32 };
                regs.push(self.value(e, ty)?);
            }
        }
        let mut i = Instr::new(op);
        i.list = self.list(&regs);
        self.emit(i);
        Ok(())
    }

    fn shuffle(&mut self, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        if !m.take("sync") {
            return Err(m.unknown());
        }
        let mode =
            m.choose(&[("idx", Shuffle::Idx), ("up", Shuffle::Up), ("down", Shuffle::Down), ("bfly", Shuffle::Bfly)]);
        let Some(mode) = mode else { return Err(m.unknown()) };
        m.ty()?;
        let mut i = Instr::new(Op::Shfl(mode));
        (i.dst, i.dst2) = self.pair(self.operand(o, 0)?, Type::B32)?;
        i.a = self.word(self.operand(o, 1)?)?;
        i.b = self.word(self.operand(o, 2)?)?;
        i.c = self.word(self.operand(o, 3)?)?;
        i.d = self.word(self.operand(o, 4)?)?;
        self.emit(i);
        Ok(())
    }

    fn vote(&mut self, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        if !m.take("sync") {
            return Err(m.unknown());
        }
        let kind = m.choose(&[("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uni), ("ballot", Vote::Ballot)]);
        let Some(kind) = kind else { return Err(m.unknown()) };
        let ty = m.ty()?;
        let mut i = Instr::new(Op::Vote(kind));
        i.dst = self.value(self.operand(o, 0)?, ty)?;
        self.pred_operand(self.operand(o, 1)?, &mut i)?;
        i.d = self.word(self.operand(o, 2)?)?;
        self.emit(i);
        Ok(())
    }

    /// A source predicate that may be negated or constant.
    pub(super) fn pred_operand(&mut self, operand: &Operand<'a>, i: &mut Instr) -> Result<()> {
        match operand {
            Operand::Not(inner) => {
                i.c = self.pred(inner)?;
                i.not_c = true;
            }
            Operand::Int(v) => {
                // a predicate that nothing sets is false
                i.c = self.new_register(Class::Pred);
                i.not_c = *v != 0;
            }
            other => i.c = self.pred(other)?,
        }
        Ok(())
    }

    fn match_lanes(&mut self, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        m.ignore(&["sync"]);
        let all = m.choose(&[("any", false), ("all", true)]);
        let Some(all) = all else { return Err(m.unknown()) };
        let ty = m.ty()?;
        let long = ty.size() == 8;
        let mut i = Instr::new(if all { Op::MatchAll(long) } else { Op::MatchAny(long) });
        (i.dst, i.dst2) = self.pair(self.operand(o, 0)?, Type::B32)?;
        i.a = self.value(self.operand(o, 1)?, ty)?;
        i.d = self.word(self.operand(o, 2)?)?;
        self.emit(i);
        Ok(())
    }

    fn barrier(&mut self, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        if m.take("warp") {
            m.ignore(&["sync"]);
            let mut i = Instr::new(Op::BarWarp);
            i.d = self.word(self.operand(o, 0)?)?;
            self.emit(i);
            return Ok(());
        }
        m.ignore(&["cta", "aligned"]);
        if m.take("red") {
            let kind = m.choose(&[("popc", Reduce::Popc), ("and", Reduce::And), ("or", Reduce::Or)]);
            let Some(kind) = kind else { return Err(m.unknown()) };
            let ty = m.ty()?;
            let mut i = Instr::new(Op::BarRed(kind));
            i.dst = self.value(self.operand(o, 0)?, ty)?;
            i.a = self.word(self.operand(o, 1)?)?;
            let source = if o.len() > 3 {
                i.b = self.word(self.operand(o, 2)?)?;
                3
            } else {
                2
            };
            self.pred_operand(self.operand(o, source)?, &mut i)?;
            self.emit(i);
            return Ok(());
        }
        let arrive = m.take("arrive");
        if !arrive && !m.take("sync") {
            return Err(m.unknown());
        }
        let mut i = Instr::new(if arrive { Op::BarArrive } else { Op::BarSync });
        i.a = self.word(self.operand(o, 0)?)?;
        if let Some(count) = o.get(1) {
            i.b = self.word(count)?;
        }
        self.emit(i);
        Ok(())
    }

    fn address_conversion(&mut self, mnemonic: &str, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        let to_space = m.take("to");
        let space = self.space(m);
        if mnemonic == "isspacep" {
            let mut i = Instr::new(Op::IsSpace(space));
            i.dst = self.pred(self.operand(o, 0)?)?;
            i.a = self.value(self.operand(o, 1)?, Type::B64)?;
            self.emit(i);
            return Ok(());
        }
        let ty = m.ty()?;
        if ty.size() != 8 {
            return Err(m.unknown());
        }
        let mut i = Instr::new(if to_space { Op::FromGeneric(space) } else { Op::ToGeneric(space) });
        i.dst = self.value(self.operand(o, 0)?, ty)?;
        i.a = self.value(self.operand(o, 1)?, ty)?;
        self.emit(i);
        Ok(())
    }

    /// Plain, packing and unpacking moves.
    fn mov(&mut self, m: &mut Mods<'a>, o: &[Operand<'a>]) -> Result<()> {
        let ty = m.ty()?;
        let (to, from) = (self.operand(o, 0)?, self.operand(o, 1)?);
        if let Operand::List(parts) = from {
            let size = ty.size() / parts.len();
            let part = part_type(size);
            let regs = parts.iter().map(|p| self.value(p, part)).collect::<Result<Vec<_>>>()?;
            let mut i = Instr::new(Op::Pack(parts.len() as u8, size as u8));
            i.dst = self.value(to, ty)?;
            i.list = self.list(&regs);
            self.emit(i);
            return Ok(());
        }
        if let Operand::List(parts) = to {
            let size = ty.size() / parts.len();
            let part = part_type(size);
            let regs = parts.iter().map(|p| self.value(p, part)).collect::<Result<Vec<_>>>()?;
            let mut i = Instr::new(Op::Unpack(parts.len() as u8, size as u8));
            i.a = self.value(from, ty)?;
            i.list = self.list(&regs);
            self.emit(i);
            return Ok(());
        }
        if let Operand::Name(name, 0) = *from {
            let clock = match name {
                "%clock" | "%clock_hi" => Some(Op::Clock),
                "%clock64" => Some(Op::Clock64),
                "%globaltimer" => Some(Op::GlobalTimer),
                "%globaltimer_lo" => Some(Op::Clock),
                _ => None,
            };
            if let Some(op) = clock {
                let mut i = Instr::new(op);
                i.dst = self.value(to, ty)?;
                self.emit(i);
                return Ok(());
            }
        }
        if ty == Type::Pred && matches!(from, Operand::Int(_)) {
            // true or false: compare a constant with itself
            let zero = self.constant_word(0);
            let cmp = if *from == Operand::Int(0) { Cmp::Ne } else { Cmp::Eq };
            let mut i = Instr::new(Op::Setp(cmp, Combine::None, Type::U32));
            (i.dst, i.a, i.b) = (self.pred(to)?, zero, zero);
            self.emit(i);
            return Ok(());
        }
        let mut i = Instr::new(Op::Mov(ty));
        i.dst = self.value(to, ty)?;
        i.a = self.value(from, ty)?;
        self.emit(i);
        Ok(())
    }
}

fn part_type(size: usize) -> Type {
    match size {
        1 => Type::B8,
        2 => Type::B16,
        8 => Type::B64,
        _ => Type::B32,
    }
}
