//! Tokens to a syntax tree: functions, variables and statements, opcodes still as text.

use crate::ParseError;
use crate::isa::{Space, Type};
use crate::lex::{Kind, Token, tokens};
use std::collections::HashMap;

/// A module before decoding.
#[derive(Default)]
pub(crate) struct Ast<'a> {
    pub(crate) files: HashMap<u32, &'a str>,
    pub(crate) variables: Vec<Variable<'a>>,
    pub(crate) functions: Vec<Function<'a>>,
}

/// A variable or a parameter.
#[derive(Clone, Debug)]
pub(crate) struct Variable<'a> {
    pub(crate) name: &'a str,
    pub(crate) space: Option<Space>,
    pub(crate) ty: Type,
    pub(crate) align: usize,
    /// elements; 1 for a scalar, 0 for `name[]`
    pub(crate) count: usize,
    pub(crate) external: bool,
    pub(crate) init: Vec<Init<'a>>,
    pub(crate) line: u32,
}

impl Variable<'_> {
    pub(crate) fn bytes(&self) -> usize {
        self.ty.size() * self.count
    }
}

/// One element of an initialiser.
#[derive(Clone, Debug)]
pub(crate) enum Init<'a> {
    Bits(u64),
    /// the address of a variable plus an offset; generic or not, which for global memory is the same
    Address(&'a str, i64),
}

#[derive(Debug)]
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) entry: bool,
    pub(crate) params: Vec<Variable<'a>>,
    pub(crate) returns: Vec<Variable<'a>>,
    pub(crate) body: Option<Vec<Statement<'a>>>,
    /// `.reqntid`, `.maxntid`
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) max_threads: Option<[u32; 3]>,
}

#[derive(Debug)]
pub(crate) enum Statement<'a> {
    Open,
    Close,
    Label(&'a str),
    /// registers of a type; a count makes a family `name0 … name(count-1)`
    Registers(Type, Vec<(&'a str, Option<u32>)>),
    Variable(Variable<'a>),
    Location(Loc),
    Targets(&'a str, Vec<&'a str>),
    Instruction(Raw<'a>),
}

/// A `.loc` line: file, line, and where that was inlined.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Loc {
    pub(crate) at: (u32, u32, u32),
    pub(crate) inlined_at: Option<(u32, u32, u32)>,
}

/// An instruction as written.
#[derive(Debug)]
pub(crate) struct Raw<'a> {
    pub(crate) line: u32,
    /// predicate, negated
    pub(crate) guard: Option<(&'a str, bool)>,
    pub(crate) opcode: &'a str,
    pub(crate) operands: Vec<Operand<'a>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand<'a> {
    /// a register, variable or label, plus an offset
    Name(&'a str, i64),
    Int(u64),
    F32(u32),
    F64(u64),
    Memory(Box<Operand<'a>>),
    List(Vec<Operand<'a>>),
    /// `a|b`
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    Not(Box<Operand<'a>>),
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

type Result<T> = std::result::Result<T, ParseError>;

pub(crate) fn parse(text: &str) -> Result<Ast<'_>> {
    Parser { tokens: tokens(text)?, at: 0 }.module()
}

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.line)
    }

    fn peek(&self) -> Option<Kind<'a>> {
        self.tokens.get(self.at).map(|t| t.kind)
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(ParseError::new(self.line(), message))
    }

    fn next(&mut self) -> Result<Kind<'a>> {
        let Some(kind) = self.peek() else { return self.error("the text ends in the middle of a statement") };
        self.at += 1;
        Ok(kind)
    }

    fn take(&mut self, c: char) -> bool {
        let yes = self.peek() == Some(Kind::Punct(c));
        self.at += yes as usize;
        yes
    }

    fn expect(&mut self, c: char) -> Result<()> {
        if self.take(c) { Ok(()) } else { self.error(format!("expected '{c}', got {}", self.shown())) }
    }

    fn shown(&self) -> String {
        match self.peek() {
            Some(Kind::Word(w)) => format!("'{w}'"),
            Some(Kind::Text(t)) => format!("\"{t}\""),
            Some(Kind::Punct(c)) => format!("'{c}'"),
            None => "the end of the text".into(),
        }
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(Kind::Word(w)) => {
                self.at += 1;
                Ok(w)
            }
            _ => self.error(format!("expected a name, got {}", self.shown())),
        }
    }

    fn take_word(&mut self, word: &str) -> bool {
        let yes = self.peek() == Some(Kind::Word(word));
        self.at += yes as usize;
        yes
    }

    /// Skips what stands on the same line as the token before.
    fn skip_line(&mut self) {
        let line = self.tokens[self.at - 1].line;
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Result<i64> {
        let negative = self.take('-');
        let word = self.word()?;
        match number(word) {
            Some(Operand::Int(v)) if negative => Ok((v as i64).wrapping_neg()),
            Some(Operand::Int(v)) => Ok(v as i64),
            _ => self.error(format!("expected a number, got '{word}'")),
        }
    }

    fn module(mut self) -> Result<Ast<'a>> {
        let mut ast = Ast::default();
        let mut external = false;
        while let Some(kind) = self.peek() {
            let Kind::Word(word) = kind else { return self.error(format!("unexpected {}", self.shown())) };
            match word {
                ".version" | ".target" | ".address_size" | ".loc" => {
                    self.at += 1;
                    self.skip_line();
                }
                ".file" => {
                    self.at += 1;
                    let number = self.number()? as u32;
                    if let Kind::Text(name) = self.next()? {
                        ast.files.insert(number, name);
                    }
                    self.skip_line();
                }
                ".section" => {
                    // debug information
                    while !self.take('{') {
                        self.at += 1;
                        if self.peek().is_none() {
                            return self.error("expected '{' after .section");
                        }
                    }
                    while !self.take('}') {
                        self.next()?;
                    }
                }
                ".visible" | ".weak" | ".common" => self.at += 1,
                ".extern" => {
                    external = true;
                    self.at += 1;
                }
                ".entry" | ".func" => {
                    ast.functions.push(self.function()?);
                    external = false;
                }
                ".global" | ".const" | ".shared" => {
                    ast.variables.push(self.variable(external)?);
                    self.expect(';')?;
                    external = false;
                }
                ".pragma" | ".alias" => {
                    while !self.take(';') {
                        self.next()?;
                    }
                }
                _ => return self.error(format!("directive '{word}' is not supported")),
            }
        }
        Ok(ast)
    }

    fn function(&mut self) -> Result<Function<'a>> {
        let entry = self.word()? == ".entry";
        if self.take_word(".attribute") {
            while !self.take(')') {
                self.next()?;
            }
        }
        let returns = if self.peek() == Some(Kind::Punct('(')) { self.parameters()? } else { vec![] };
        let name = self.word()?;
        let params = if self.peek() == Some(Kind::Punct('(')) { self.parameters()? } else { vec![] };
        let mut function =
            Function { name, entry, params, returns, body: None, required_threads: None, max_threads: None };
        loop {
            match self.peek() {
                Some(Kind::Punct('{')) => {
                    self.at += 1;
                    function.body = Some(self.body()?);
                    return Ok(function);
                }
                Some(Kind::Punct(';')) => {
                    self.at += 1;
                    return Ok(function);
                }
                Some(Kind::Word(".maxntid")) => {
                    self.at += 1;
                    function.max_threads = Some(self.extents()?);
                }
                Some(Kind::Word(".reqntid")) => {
                    self.at += 1;
                    function.required_threads = Some(self.extents()?);
                }
                Some(Kind::Word(".minnctapersm" | ".maxnreg" | ".maxnctapersm")) => {
                    self.at += 1;
                    self.number()?;
                }
                Some(Kind::Word(".noreturn")) => self.at += 1,
                Some(Kind::Word(".pragma")) => {
                    while !self.take(';') {
                        self.next()?;
                    }
                }
                _ => return self.error(format!("{} is not supported after a function's name", self.shown())),
            }
        }
    }

    fn extents(&mut self) -> Result<[u32; 3]> {
        let mut out = [1; 3];
        for (i, slot) in out.iter_mut().enumerate() {
            if i > 0 && !self.take(',') {
                break;
            }
            *slot = self.number()? as u32;
        }
        Ok(out)
    }

    fn parameters(&mut self) -> Result<Vec<Variable<'a>>> {
        self.expect('(')?;
        let mut out = vec![];
        while !self.take(')') {
            out.push(self.variable(false)?);
            self.take(',');
        }
        Ok(out)
    }

    /// A declaration from its space to before its semicolon.
    fn variable(&mut self, external: bool) -> Result<Variable<'a>> {
        let line = self.line();
        let (mut space, mut ty, mut align, mut vector) = (None, None, None, 1);
        loop {
            let word = self.word()?;
            let Some(directive) = word.strip_prefix('.') else {
                let Some(ty) = ty else { return self.error(format!("variable '{word}' has no type")) };
                let mut count = vector;
                while self.take('[') {
                    count *= if self.take(']') {
                        0
                    } else {
                        let n = self.number()? as usize;
                        self.expect(']')?;
                        n
                    };
                }
                let init = if self.take('=') { self.initialiser()? } else { vec![] };
                let align = align.unwrap_or(Type::size(ty) * vector);
                return Ok(Variable { name: word, space, ty, align, count, external, init, line });
            };
            match directive {
                "align" => align = Some(self.number()? as usize),
                // a hint on what a pointer parameter points to: `.ptr .global .align 16`
                "ptr" => {
                    if !matches!(self.peek(), Some(Kind::Word(".align")))
                        && matches!(self.peek(), Some(Kind::Word(w)) if w.starts_with('.'))
                    {
                        self.at += 1;
                    }
                    if self.take_word(".align") {
                        self.number()?;
                    }
                }
                "attribute" => {
                    while !self.take(')') {
                        self.next()?;
                    }
                }
                "v2" => vector = 2,
                "v4" => vector = 4,
                "reg" => {}
                _ => {
                    if let Some(s) = Space::parse(directive) {
                        space = Some(s);
                    } else if let Some(t) = Type::parse(directive) {
                        ty = Some(t);
                    } else {
                        return self.error(format!("'{word}' is not supported in a declaration"));
                    }
                }
            }
        }
    }

    fn initialiser(&mut self) -> Result<Vec<Init<'a>>> {
        let mut out = vec![];
        if !self.take('{') {
            out.push(self.initial()?);
            return Ok(out);
        }
        let mut depth = 1;
        while depth > 0 {
            if self.take('{') {
                depth += 1;
            } else if self.take('}') {
                depth -= 1;
            } else if !self.take(',') {
                out.push(self.initial()?);
            }
        }
        Ok(out)
    }

    fn initial(&mut self) -> Result<Init<'a>> {
        match self.operand()? {
            Operand::Int(v) => Ok(Init::Bits(v)),
            Operand::F32(v) => Ok(Init::Bits(v as u64)),
            Operand::F64(v) => Ok(Init::Bits(v)),
            Operand::Name("generic", 0) => {
                self.expect('(')?;
                let inner = self.initial();
                self.expect(')')?;
                inner
            }
            Operand::Name(name, offset) => Ok(Init::Address(name, offset)),
            other => self.error(format!("initialiser {other:?} is not supported")),
        }
    }

    fn body(&mut self) -> Result<Vec<Statement<'a>>> {
        let mut out = vec![];
        let mut depth = 0;
        loop {
            let line = self.line();
            match self.next()? {
                Kind::Punct('{') => {
                    depth += 1;
                    out.push(Statement::Open);
                }
                Kind::Punct('}') if depth == 0 => return Ok(out),
                Kind::Punct('}') => {
                    depth -= 1;
                    out.push(Statement::Close);
                }
                Kind::Punct(';') => {}
                Kind::Punct('@') => {
                    let negated = self.take('!');
                    let guard = self.word()?;
                    let opcode = self.word()?;
                    out.push(Statement::Instruction(self.instruction(line, Some((guard, negated)), opcode)?));
                }
                Kind::Word(word) if self.take(':') => {
                    if let Some(Kind::Word(directive @ (".branchtargets" | ".calltargets" | ".callprototype"))) =
                        self.peek()
                    {
                        self.at += 1;
                        let mut targets = vec![];
                        while !self.take(';') {
                            if let Kind::Word(target) = self.next()? {
                                targets.push(target);
                            }
                        }
                        if directive == ".branchtargets" {
                            out.push(Statement::Targets(word, targets));
                        }
                    } else {
                        out.push(Statement::Label(word));
                    }
                }
                Kind::Word(".loc") => out.push(Statement::Location(self.location()?)),
                Kind::Word(".file") => self.skip_line(),
                Kind::Word(".pragma") => {
                    while !self.take(';') {
                        self.next()?;
                    }
                }
                Kind::Word(".reg") => out.push(self.registers()?),
                Kind::Word(".shared" | ".local" | ".param" | ".global" | ".const") => {
                    self.at -= 1;
                    out.push(Statement::Variable(self.variable(false)?));
                    self.expect(';')?;
                }
                Kind::Word(word) if word.starts_with('.') => {
                    self.at -= 1;
                    return self.error(format!("directive '{word}' is not supported in a function"));
                }
                Kind::Word(opcode) => out.push(Statement::Instruction(self.instruction(line, None, opcode)?)),
                _ => {
                    self.at -= 1;
                    return self.error(format!("unexpected {}", self.shown()));
                }
            }
        }
    }

    /// `file line column[, function_name label[+offset], inlined_at file line column]`
    fn location(&mut self) -> Result<Loc> {
        let line = self.tokens[self.at - 1].line;
        let mut triple =
            || -> Result<(u32, u32, u32)> { Ok((self.number()? as u32, self.number()? as u32, self.number()? as u32)) };
        let at = triple()?;
        let mut inlined_at = None;
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            if self.take_word("inlined_at") {
                inlined_at = Some((self.number()? as u32, self.number()? as u32, self.number()? as u32));
            } else {
                self.at += 1;
            }
        }
        Ok(Loc { at, inlined_at })
    }

    fn registers(&mut self) -> Result<Statement<'a>> {
        let mut ty = None;
        let mut names = vec![];
        while !self.take(';') {
            let word = self.word()?;
            if let Some(t) = word.strip_prefix('.') {
                let Some(t) = Type::parse(t) else {
                    return self.error(format!("register type '{word}' is not supported"));
                };
                ty = Some(t);
                continue;
            }
            let count = if self.take('<') {
                let n = self.number()? as u32;
                self.expect('>')?;
                Some(n)
            } else {
                None
            };
            names.push((word, count));
            self.take(',');
        }
        match ty {
            Some(ty) => Ok(Statement::Registers(ty, names)),
            None => self.error(".reg has no type"),
        }
    }

    fn instruction(&mut self, line: u32, guard: Option<(&'a str, bool)>, opcode: &'a str) -> Result<Raw<'a>> {
        let mut operands = vec![];
        while !self.take(';') {
            operands.push(self.operand()?);
            if self.take('|') {
                let first = operands.pop().expect("just pushed");
                operands.push(Operand::Pair(Box::new(first), Box::new(self.operand()?)));
            }
            if !self.take(',') {
                self.expect(';')?;
                break;
            }
        }
        Ok(Raw { line, guard, opcode, operands })
    }

    fn operand(&mut self) -> Result<Operand<'a>> {
        match self.peek() {
            Some(Kind::Punct('[')) => {
                self.at += 1;
                let inner = self.operand()?;
                self.expect(']')?;
                Ok(Operand::Memory(Box::new(inner)))
            }
            Some(Kind::Punct(open @ ('{' | '('))) => {
                self.at += 1;
                let close = if open == '{' { '}' } else { ')' };
                let mut list = vec![];
                while !self.take(close) {
                    list.push(self.operand()?);
                    self.take(',');
                }
                Ok(Operand::List(list))
            }
            Some(Kind::Punct('!')) => {
                self.at += 1;
                Ok(Operand::Not(Box::new(self.operand()?)))
            }
            Some(Kind::Punct('-')) => {
                self.at += 1;
                let word = self.word()?;
                match number(word) {
                    Some(Operand::Int(v)) => Ok(Operand::Int(v.wrapping_neg())),
                    _ => self.error(format!("expected a number after '-', got '{word}'")),
                }
            }
            Some(Kind::Word(word)) => {
                self.at += 1;
                if let Some(value) = number(word) {
                    return Ok(value);
                }
                let offset = match self.peek() {
                    Some(Kind::Punct('+')) => {
                        self.at += 1;
                        self.number()?
                    }
                    Some(Kind::Punct('-')) => self.number()?,
                    _ => 0,
                };
                Ok(Operand::Name(word, offset))
            }
            _ => self.error(format!("expected an operand, got {}", self.shown())),
        }
    }
}

/// A number as PTX writes it: decimal, 0x, 0 (octal), 0b, 0f (f32 bits), 0d (f64 bits); a trailing U is allowed.
fn number<'a>(word: &str) -> Option<Operand<'a>> {
    if !word.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    let radix = |digits: &str, radix| u64::from_str_radix(digits.trim_end_matches('U'), radix).ok().map(Operand::Int);
    match word.get(..2) {
        Some("0f" | "0F") => u32::from_str_radix(&word[2..], 16).ok().map(Operand::F32),
        Some("0d" | "0D") => u64::from_str_radix(&word[2..], 16).ok().map(Operand::F64),
        Some("0x" | "0X") => radix(&word[2..], 16),
        Some("0b" | "0B") => radix(&word[2..], 2),
        Some(w) if w.starts_with('0') && w != "0U" => radix(&word[1..], 8),
        _ if word.contains('.') => word.parse::<f64>().ok().map(|v| Operand::F64(v.to_bits())),
        _ => radix(word, 10),
    }
}
