//! From the syntax tree to decoded instructions. Calls of device functions are expanded in place, so a kernel is one
//! list of instructions.

mod arithmetic;
mod data;
mod modifiers;
mod operands;
mod registers;

use modifiers::Mods;

use crate::ParseError;
use crate::isa::*;
use crate::kernel::{Kernel, Location, Param};
use crate::module::Globals;
use crate::parse::{Ast, Function, Loc, Operand, Raw, Statement, Variable};
use std::collections::HashMap;
use std::sync::Arc;

pub(crate) type Result<T> = std::result::Result<T, ParseError>;

/// The opcodes this crate executes, without modifiers.
pub const OPCODES: &[&str] = &[
    "abs",
    "activemask",
    "add",
    "addc",
    "and",
    "atom",
    "bar",
    "barrier",
    "bfe",
    "bfi",
    "bfind",
    "bmsk",
    "bra",
    "brev",
    "brx",
    "call",
    "clz",
    "cnot",
    "copysign",
    "cos",
    "cp",
    "cvt",
    "cvta",
    "discard",
    "div",
    "dp4a",
    "elect",
    "ex2",
    "exit",
    "fence",
    "fma",
    "fns",
    "isspacep",
    "ld",
    "ldmatrix",
    "ldu",
    "lg2",
    "lop3",
    "mad",
    "mad24",
    "madc",
    "match",
    "max",
    "membar",
    "min",
    "mma",
    "mov",
    "movmatrix",
    "mul",
    "mul24",
    "nanosleep",
    "neg",
    "not",
    "or",
    "popc",
    "prefetch",
    "prefetchu",
    "prmt",
    "rcp",
    "red",
    "redux",
    "rem",
    "ret",
    "rsqrt",
    "sad",
    "selp",
    "set",
    "setp",
    "shf",
    "shfl",
    "shl",
    "shr",
    "sin",
    "slct",
    "sqrt",
    "st",
    "stmatrix",
    "sub",
    "subc",
    "szext",
    "tanh",
    "testp",
    "trap",
    "vote",
    "xor",
];

/// Calls are expanded this deep.
const MAX_CALL_DEPTH: usize = 32;
/// A kernel may not grow beyond this many instructions by expanding calls.
const MAX_INSTRUCTIONS: usize = 1 << 22;

/// Which register file.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Class {
    Pred,
    Word,
    Long,
}

impl Class {
    fn of(ty: Type) -> Class {
        match ty {
            Type::Pred => Class::Pred,
            t if t.size() == 8 => Class::Long,
            _ => Class::Word,
        }
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
enum Symbol {
    Register(Class, u32),
    /// a variable at an offset of its space, or at an address
    Variable(Space, u64),
    /// dynamic shared memory: its offset is known when all static variables are
    Dynamic,
}

#[derive(Default)]
struct Scope<'a> {
    symbols: HashMap<&'a str, Symbol>,
    families: HashMap<&'a str, (Type, u32)>,
    family_members: HashMap<&'a str, Symbol>,
    labels: HashMap<&'a str, u32>,
    /// instructions, or list entries, that name a label of this or an outer scope
    fixups: Vec<(Fixup, &'a str, u32)>,
}

#[derive(Clone, Copy)]
enum Fixup {
    Branch(usize),
    List(usize),
}

/// The parts of a kernel while it is decoded.
pub(crate) struct Decoder<'a> {
    ast: &'a Ast<'a>,
    globals: &'a Arc<Globals>,
    code: Vec<Instr>,
    lists: Vec<u32>,
    counts: [u32; 3],
    word_constants: HashMap<u32, u32>,
    long_constants: HashMap<u64, u32>,
    dynamic_words: Vec<(u32, i64)>,
    dynamic_longs: Vec<(u32, i64)>,
    specials: Vec<(u32, Special)>,
    scopes: Vec<Scope<'a>>,
    targets: HashMap<&'a str, Vec<&'a str>>,
    shared: usize,
    shared_module: HashMap<&'a str, usize>,
    dynamic_align: usize,
    local: usize,
    locations: Vec<Location>,
    location_index: HashMap<Location, u32>,
    inlined: HashMap<(u32, u32, u32), Option<(u32, u32, u32)>>,
    location: u32,
    line: u32,
    depth: usize,
    /// where `ret` goes in an expanded function
    returns: Vec<Vec<usize>>,
}

/// Decodes one kernel.
pub(crate) fn kernel(ast: &Ast, function: &Function, globals: &Arc<Globals>) -> Result<Kernel> {
    let mut decoder = Decoder {
        ast,
        globals,
        code: vec![],
        lists: vec![],
        counts: [0; 3],
        word_constants: HashMap::new(),
        long_constants: HashMap::new(),
        dynamic_words: vec![],
        dynamic_longs: vec![],
        specials: vec![],
        scopes: vec![],
        targets: HashMap::new(),
        shared: 0,
        shared_module: HashMap::new(),
        dynamic_align: 16,
        local: 0,
        locations: vec![Location::default()],
        location_index: HashMap::new(),
        inlined: HashMap::new(),
        location: 0,
        line: 0,
        depth: 0,
        returns: vec![],
    };
    decoder.run(function)
}

impl<'a> Decoder<'a> {
    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(ParseError::new(self.line, message))
    }

    fn run(&mut self, function: &'a Function<'a>) -> Result<Kernel> {
        let mut params = vec![];
        let mut scope = Scope::default();
        let mut offset = 0usize;
        for p in &function.params {
            offset = offset.next_multiple_of(p.align.max(1));
            scope.symbols.insert(p.name, Symbol::Variable(Space::Param, offset as u64));
            let bytes = p.bytes();
            params.push(Param { name: p.name.into(), offset, size: bytes, ty: p.ty });
            offset += bytes;
        }
        self.scopes.push(scope);
        let body = function.body.as_ref().expect("kernels have a body");
        self.statements(body)?;
        self.emit(Instr::new(Op::Exit));
        self.close_scope()?;
        // dynamic shared memory follows the static variables
        let dynamic = self.shared.next_multiple_of(self.dynamic_align);
        let uses_dynamic = !self.dynamic_words.is_empty() || !self.dynamic_longs.is_empty();
        let static_shared = if uses_dynamic { dynamic } else { self.shared };
        let mut words: Vec<_> = self.word_constants.iter().map(|(&value, &reg)| (reg, value)).collect();
        words.extend(self.dynamic_words.iter().map(|&(reg, offset)| (reg, (dynamic as i64 + offset) as u32)));
        let mut longs: Vec<_> = self.long_constants.iter().map(|(&value, &reg)| (reg, value)).collect();
        longs.extend(self.dynamic_longs.iter().map(|&(reg, offset)| (reg, (dynamic as i64 + offset) as u64)));
        words.sort_unstable();
        longs.sort_unstable();
        let mut kernel = Kernel {
            name: function.name.into(),
            params,
            param_bytes: offset,
            static_shared,
            local: self.local.next_multiple_of(16),
            code: std::mem::take(&mut self.code),
            lists: std::mem::take(&mut self.lists),
            words: self.counts[Class::Word as usize],
            longs: self.counts[Class::Long as usize],
            preds: self.counts[Class::Pred as usize],
            plain_words: 0,
            plain_longs: 0,
            word_constants: words,
            long_constants: longs,
            specials: std::mem::take(&mut self.specials),
            locations: std::mem::take(&mut self.locations),
            required_threads: function.required_threads,
            max_threads: function.max_threads,
            globals: self.globals.clone(),
        };
        registers::allocate(&mut kernel);
        Ok(kernel)
    }

    fn statements(&mut self, body: &'a [Statement<'a>]) -> Result<()> {
        for statement in body {
            if let Statement::Targets(name, targets) = statement {
                self.targets.insert(name, targets.clone());
            }
        }
        for statement in body {
            match statement {
                Statement::Open => self.scopes.push(Scope::default()),
                Statement::Close => self.close_scope()?,
                Statement::Label(name) => {
                    let at = self.code.len() as u32;
                    self.scope().labels.insert(name, at);
                }
                Statement::Registers(ty, names) => {
                    for &(name, count) in names {
                        match count {
                            Some(n) => {
                                self.scope().families.insert(name, (*ty, n));
                            }
                            None => {
                                let register = self.register(Class::of(*ty));
                                self.scope().symbols.insert(name, register);
                            }
                        }
                    }
                }
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Location(loc) => self.locate(*loc),
                Statement::Targets(..) => {}
                Statement::Instruction(raw) => {
                    self.line = raw.line;
                    self.instruction(raw)?;
                    if self.code.len() > MAX_INSTRUCTIONS {
                        return self.error("the kernel is too large after its calls are expanded");
                    }
                }
            }
        }
        Ok(())
    }

    fn scope(&mut self) -> &mut Scope<'a> {
        self.scopes.last_mut().expect("a scope is open")
    }

    fn close_scope(&mut self) -> Result<()> {
        let scope = self.scopes.pop().expect("a scope is open");
        for (fixup, name, line) in scope.fixups {
            if let Some(&target) = scope.labels.get(name) {
                match fixup {
                    Fixup::Branch(at) => self.code[at].imm = target as i64,
                    Fixup::List(at) => self.lists[at] = target,
                }
            } else if let Some(parent) = self.scopes.last_mut() {
                parent.fixups.push((fixup, name, line));
            } else {
                return Err(ParseError::new(line, format!("there is no label '{name}'")));
            }
        }
        Ok(())
    }

    fn variable(&mut self, variable: &Variable<'a>) -> Result<()> {
        let symbol = match variable.space {
            Some(Space::Shared) if variable.external => {
                self.dynamic_align = self.dynamic_align.max(variable.align);
                Symbol::Dynamic
            }
            Some(Space::Shared) => {
                let at = self.shared.next_multiple_of(variable.align.max(1));
                self.shared = at + variable.bytes();
                Symbol::Variable(Space::Shared, at as u64)
            }
            Some(Space::Local | Space::Param) => {
                let at = self.local.next_multiple_of(variable.align.max(1));
                self.local = at + variable.bytes();
                Symbol::Variable(Space::Local, at as u64)
            }
            _ => {
                return Err(ParseError::new(
                    variable.line,
                    format!(
                        "variable '{}' in a function: only .shared, .local and .param are supported",
                        variable.name
                    ),
                ));
            }
        };
        self.scope().symbols.insert(variable.name, symbol);
        Ok(())
    }

    /// Remembers where the next instructions come from. The lines before it, without an instruction between, say where
    /// an inlined line stands, so the newest entry for each position is the right one.
    fn locate(&mut self, loc: Loc) {
        if loc.at.1 == 0 {
            return;
        }
        self.inlined.insert(loc.at, loc.inlined_at);
        let mut chain = vec![(loc.at.0, loc.at.1)];
        let mut at = loc.inlined_at;
        while let Some(position) = at {
            chain.push((position.0, position.1));
            if chain.len() > 64 {
                break;
            }
            at = self.inlined.get(&position).copied().flatten();
        }
        // the innermost line of the project's own files, and the line of the kernel
        let own = |&&(file, _): &&(u32, u32)| {
            self.ast.files.get(&file).is_some_and(|name| name.ends_with(".cu") || name.ends_with(".cuh"))
        };
        let inner = chain.iter().find(own).unwrap_or(&chain[0]);
        let outer = chain.last().expect("not empty");
        let name = |file: u32| {
            let path = self.ast.files.get(&file).copied().unwrap_or("?");
            path.rsplit(['/', '\\']).next().unwrap_or(path).to_string()
        };
        let location =
            Location { file: name(inner.0), line: inner.1, outer: (outer != inner).then(|| (name(outer.0), outer.1)) };
        self.location = match self.location_index.get(&location) {
            Some(&i) => i,
            None => {
                let i = self.locations.len() as u32;
                self.locations.push(location.clone());
                self.location_index.insert(location, i);
                i
            }
        };
    }

    fn emit(&mut self, mut instr: Instr) {
        instr.loc = self.location;
        instr.line = self.line;
        self.code.push(instr);
    }

    fn instruction(&mut self, raw: &'a Raw<'a>) -> Result<()> {
        let mut parts = raw.opcode.split('.');
        let mnemonic = parts.next().unwrap_or("");
        let mut mods = Mods { opcode: raw.opcode, line: raw.line, parts: parts.collect() };
        if !OPCODES.contains(&mnemonic) {
            return Err(mods.unknown());
        }
        let (guard, negated) = match raw.guard {
            Some((name, negated)) => (self.pred(&Operand::Name(name, 0))?, negated),
            None => (NONE, false),
        };
        let first = self.code.len();
        match mnemonic {
            "call" => self.call(raw, &mut mods, guard)?,
            "ret" if self.depth > 0 => {
                mods.ignore(&["uni"]);
                let at = self.code.len();
                self.returns.last_mut().expect("in a function").push(at);
                self.emit(Instr::new(Op::Bra));
            }
            _ => {
                if !self.data(mnemonic, &mut mods, &raw.operands)? {
                    self.arithmetic(mnemonic, &mut mods, &raw.operands)?;
                }
            }
        }
        mods.done()?;
        if guard != NONE {
            // an instruction that became several (a vector mov) has the guard on each
            for instr in &mut self.code[first..] {
                instr.guard = guard;
                instr.negated = negated;
            }
        }
        Ok(())
    }

    /// `call (results), name, (arguments)`: the body in place, parameters being the caller's variables.
    fn call(&mut self, raw: &'a Raw<'a>, mods: &mut Mods<'a>, guard: u32) -> Result<()> {
        mods.ignore(&["uni"]);
        let (results, name, arguments): (&[Operand<'a>], _, &[Operand<'a>]) = match &raw.operands[..] {
            [Operand::Name(name, 0)] => (&[], *name, &[]),
            [Operand::Name(name, 0), Operand::List(arguments)] => (&[], *name, arguments),
            [Operand::List(results), Operand::Name(name, 0)] => (results, *name, &[]),
            [Operand::List(results), Operand::Name(name, 0), Operand::List(arguments)] => (results, *name, arguments),
            _ => return self.error("this form of call (through a pointer) is not supported"),
        };
        // device-side printf prints nothing here
        if name == "vprintf" {
            return Ok(());
        }
        if name == "__assertfail" {
            self.emit(Instr::new(Op::AssertFail));
            return Ok(());
        }
        let definition = self.ast.functions.iter().find(|f| f.name == name && f.body.is_some());
        let Some(function) = definition else {
            return self.error(format!("call of '{name}', which this module does not define"));
        };
        if guard != NONE {
            return self.error("a call under a predicate is not supported");
        }
        if self.depth == MAX_CALL_DEPTH {
            return self.error(format!("calls nest deeper than {MAX_CALL_DEPTH} (recursion is not supported)"));
        }
        let mut scope = Scope::default();
        let formals = function.returns.iter().zip(results).chain(function.params.iter().zip(arguments));
        if function.returns.len() != results.len() || function.params.len() != arguments.len() {
            return self.error(format!("call of '{name}' with the wrong number of arguments"));
        }
        for (formal, actual) in formals {
            let &Operand::Name(actual, 0) = actual else {
                return self.error("an argument of a call must be a name");
            };
            scope.symbols.insert(formal.name, self.symbol(actual)?);
        }
        // the callee sees none of the caller's names
        let callers = std::mem::replace(&mut self.scopes, vec![scope]);
        let location = self.location;
        self.depth += 1;
        self.returns.push(vec![]);
        self.statements(function.body.as_ref().expect("found by its body"))?;
        self.close_scope()?;
        self.scopes = callers;
        self.depth -= 1;
        self.location = location;
        let end = self.code.len() as i64;
        for at in self.returns.pop().expect("pushed above") {
            self.code[at].imm = end;
        }
        // somewhere to return to
        self.emit(Instr::new(Op::Nop));
        Ok(())
    }
}
