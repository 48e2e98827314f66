//! From names and numbers to registers and addresses.

use super::{Class, Decoder, Fixup, Result, Symbol, registers};
use crate::isa::*;
use crate::parse::Operand;

impl<'a> Decoder<'a> {
    pub(super) fn new_register(&mut self, class: Class) -> u32 {
        let n = &mut self.counts[class as usize];
        *n += 1;
        registers::tag(class, *n - 1)
    }

    pub(super) fn register(&mut self, class: Class) -> Symbol {
        Symbol::Register(class, self.new_register(class))
    }

    pub(super) fn find_symbol(&mut self, name: &'a str) -> Option<Symbol> {
        for at in (0..self.scopes.len()).rev() {
            let scope = &self.scopes[at];
            if let Some(&symbol) = scope.symbols.get(name).or_else(|| scope.family_members.get(name)) {
                return Some(symbol);
            }
            let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            // a family's own name may end in digits
            for split in name.len() - digits..name.len() {
                let (prefix, index) = name.split_at(split);
                if let Some(&(ty, count)) = scope.families.get(prefix)
                    && index.parse::<u32>().is_ok_and(|i| i < count)
                {
                    let symbol = self.register(Class::of(ty));
                    self.scopes[at].family_members.insert(name, symbol);
                    return Some(symbol);
                }
            }
        }
        None
    }

    pub(super) fn symbol(&mut self, name: &'a str) -> Result<Symbol> {
        if let Some(symbol) = self.find_symbol(name) {
            return Ok(symbol);
        }
        if let Some(special) = special(name) {
            let index = self.new_register(Class::Word);
            self.specials.push((index, special));
            let symbol = Symbol::Register(Class::Word, index);
            // for the whole kernel or function
            self.scopes[0].symbols.insert(name, symbol);
            return Ok(symbol);
        }
        if let Some(variable) = self.ast.variables.iter().find(|v| v.name == name) {
            if variable.space == Some(Space::Shared) {
                if variable.external || variable.count == 0 {
                    self.dynamic_align = self.dynamic_align.max(variable.align);
                    return Ok(Symbol::Dynamic);
                }
                if let Some(&at) = self.shared_module.get(name) {
                    return Ok(Symbol::Variable(Space::Shared, at as u64));
                }
                let at = self.shared.next_multiple_of(variable.align.max(1));
                self.shared = at + variable.bytes();
                self.shared_module.insert(name, at);
                return Ok(Symbol::Variable(Space::Shared, at as u64));
            }
            if let Some(address) = self.globals.address(name) {
                return Ok(Symbol::Variable(variable.space.unwrap_or(Space::Global), address));
            }
            return self.error(format!("variable '{name}' is declared here but defined in another module"));
        }
        self.error(format!("unknown name '{name}'"))
    }

    pub(super) fn constant_word(&mut self, value: u32) -> u32 {
        if let Some(&reg) = self.word_constants.get(&value) {
            return reg;
        }
        let reg = self.new_register(Class::Word);
        self.word_constants.insert(value, reg);
        reg
    }

    pub(super) fn constant_long(&mut self, value: u64) -> u32 {
        if let Some(&reg) = self.long_constants.get(&value) {
            return reg;
        }
        let reg = self.new_register(Class::Long);
        self.long_constants.insert(value, reg);
        reg
    }

    /// The register of an operand and its class; constants and addresses take the class that `ty` asks for.
    pub(super) fn any(&mut self, operand: &Operand<'a>, ty: Type) -> Result<(Class, u32)> {
        let class = Class::of(ty);
        let bits = match *operand {
            Operand::Name("_", 0) => return Ok((class, self.new_register(class))),
            Operand::Name("WARP_SZ", 0) => 32,
            Operand::Name(name, offset) => match self.symbol(name)? {
                Symbol::Register(class, reg) if offset == 0 => return Ok((class, reg)),
                Symbol::Register(..) => return self.error("a register plus an offset stands only in an address"),
                Symbol::Variable(_, at) => at.wrapping_add(offset as u64),
                Symbol::Dynamic => {
                    let reg = self.new_register(class);
                    let list = if class == Class::Long { &mut self.dynamic_longs } else { &mut self.dynamic_words };
                    list.push((reg, offset));
                    return Ok((class, reg));
                }
            },
            Operand::Int(v) if ty == Type::F32 => (v as i64 as f32).to_bits() as u64,
            Operand::Int(v) if ty == Type::F64 => (v as i64 as f64).to_bits(),
            Operand::Int(v) => v,
            Operand::F32(bits) if ty.size() == 8 => (f32::from_bits(bits) as f64).to_bits(),
            Operand::F32(bits) => bits as u64,
            Operand::F64(bits) if ty == Type::F32 => (f64::from_bits(bits) as f32).to_bits() as u64,
            Operand::F64(bits) => bits,
            _ => return self.error(format!("operand {operand:?} is not supported here")),
        };
        Ok(match class {
            Class::Long => (class, self.constant_long(bits)),
            Class::Word => {
                let mask = if ty.size() < 4 { (1u32 << (8 * ty.size())) - 1 } else { u32::MAX };
                (class, self.constant_word(bits as u32 & mask))
            }
            Class::Pred => return self.error("a constant predicate is not supported"),
        })
    }

    /// The register of an operand that must have the class of `ty`.
    pub(super) fn value(&mut self, operand: &Operand<'a>, ty: Type) -> Result<u32> {
        let (class, reg) = self.any(operand, ty)?;
        if class != Class::of(ty) {
            return self.error(format!("operand {operand:?} does not hold a value of type .{}", ty.name()));
        }
        Ok(reg)
    }

    pub(super) fn pred(&mut self, operand: &Operand<'a>) -> Result<u32> {
        self.value(operand, Type::Pred)
    }

    pub(super) fn word(&mut self, operand: &Operand<'a>) -> Result<u32> {
        self.value(operand, Type::B32)
    }

    pub(super) fn immediate(&self, operand: &Operand<'a>) -> Result<i64> {
        match operand {
            Operand::Int(v) => Ok(*v as i64),
            _ => self.error(format!("expected a constant, got {operand:?}")),
        }
    }

    /// An address: register (or constant), whether it is wide, offset, and the space of a variable named in it.
    pub(super) fn address(&mut self, operand: &Operand<'a>) -> Result<(u32, bool, i64, Option<Space>)> {
        let inner = match operand {
            Operand::Memory(inner) => &**inner,
            other => other,
        };
        if let Operand::Name(name, offset) = *inner {
            match self.symbol(name)? {
                Symbol::Register(Class::Word, reg) => return Ok((reg, false, offset, None)),
                Symbol::Register(Class::Long, reg) => return Ok((reg, true, offset, None)),
                Symbol::Register(Class::Pred, _) => return self.error("a predicate is no address"),
                Symbol::Variable(space, at) => return Ok((self.constant_long(at), true, offset, Some(space))),
                Symbol::Dynamic => {
                    let (_, reg) = self.any(&Operand::Name(name, 0), Type::B64)?;
                    return Ok((reg, true, offset, Some(Space::Shared)));
                }
            }
        }
        let reg = self.value(inner, Type::B64)?;
        Ok((reg, true, 0, None))
    }

    /// Appends to the kernel's lists; gives the start.
    pub(super) fn list(&mut self, items: &[u32]) -> u32 {
        let start = self.lists.len() as u32;
        self.lists.extend(items);
        start
    }

    pub(super) fn elements<'b>(&self, operand: &'b Operand<'a>) -> &'b [Operand<'a>] {
        match operand {
            Operand::List(list) => list,
            other => std::slice::from_ref(other),
        }
    }

    pub(super) fn branch(&mut self, operand: &Operand<'a>, fixup: Fixup) -> Result<()> {
        let &Operand::Name(name, 0) = operand else { return self.error("a branch needs a label") };
        let line = self.line;
        self.scope().fixups.push((fixup, name, line));
        Ok(())
    }

    pub(super) fn operand<'b>(&self, operands: &'b [Operand<'a>], i: usize) -> Result<&'b Operand<'a>> {
        match operands.get(i) {
            Some(operand) => Ok(operand),
            None => self.error(format!("operand {} is missing", i + 1)),
        }
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |rest: &str| match rest {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    let name = name.strip_prefix('%')?;
    if let Some((register, rest)) = name.split_once('.') {
        let axis = axis(rest)?;
        return Some(match register {
            "tid" => Special::Tid(axis),
            "ntid" => Special::Ntid(axis),
            "ctaid" => Special::Ctaid(axis),
            "nctaid" => Special::Nctaid(axis),
            "clusterid" | "cluster_ctaid" => Special::Zero,
            _ => return None,
        });
    }
    Some(match name {
        "laneid" => Special::Laneid,
        "warpid" => Special::Warpid,
        "nwarpid" => Special::Nwarpid,
        "smid" => Special::Smid,
        "nsmid" => Special::Nsmid,
        "gridid" => Special::Gridid,
        "lanemask_eq" => Special::LanemaskEq,
        "lanemask_lt" => Special::LanemaskLt,
        "lanemask_le" => Special::LanemaskLe,
        "lanemask_gt" => Special::LanemaskGt,
        "lanemask_ge" => Special::LanemaskGe,
        "dynamic_smem_size" => Special::DynamicSmemSize,
        "total_smem_size" => Special::TotalSmemSize,
        "cluster_ctarank" => Special::Zero,
        _ => return None,
    })
}
