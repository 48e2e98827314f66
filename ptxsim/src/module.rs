//! A parsed module: its kernels and its variables.

use crate::decode;
use crate::isa::Space;
use crate::kernel::Kernel;
use crate::memory::Allocation;
use crate::parse::{Ast, Init, parse};
use std::collections::HashMap;
use std::sync::Arc;

/// PTX that could not be read, with the line of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct ParseError {
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// What is wrong there.
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> ParseError {
        ParseError { line, message: message.into() }
    }
}

/// `.global` and `.const` variables; they live as long as a kernel of the module.
pub(crate) struct Globals {
    by_name: HashMap<String, u64>,
    /// by address
    pub(crate) allocations: Vec<Arc<Allocation>>,
}

impl Globals {
    pub(crate) fn address(&self, name: &str) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    fn new(ast: &Ast) -> Result<Globals, ParseError> {
        let mut globals = Globals { by_name: HashMap::new(), allocations: vec![] };
        let variables =
            || ast.variables.iter().filter(|v| v.space != Some(Space::Shared) && !(v.external && v.init.is_empty()));
        for v in variables() {
            let bytes = v.bytes();
            let Some(allocation) = Allocation::new(bytes) else {
                return Err(ParseError::new(v.line, format!("no memory for the {bytes} bytes of '{}'", v.name)));
            };
            globals.by_name.insert(v.name.into(), allocation.address);
            globals.allocations.push(Arc::new(allocation));
        }
        for v in variables() {
            let size = v.ty.size();
            // what has no initialiser is zero
            let mut bytes = vec![0u8; v.bytes()];
            if v.init.len() * size > bytes.len() {
                return Err(ParseError::new(v.line, format!("'{}' has more initial values than elements", v.name)));
            }
            for (i, init) in v.init.iter().enumerate() {
                let bits = match *init {
                    Init::Bits(bits) => bits,
                    Init::Address(name, offset) => match globals.address(name) {
                        Some(address) => address.wrapping_add(offset as u64),
                        None => return Err(ParseError::new(v.line, format!("'{name}' has no address"))),
                    },
                };
                bytes[i * size..(i + 1) * size].copy_from_slice(&bits.to_le_bytes()[..size]);
            }
            let address = globals.by_name[v.name];
            let allocation = globals.allocations.iter().find(|a| a.address == address).expect("made above");
            // SAFETY: the allocation has bytes.len() bytes, and nobody else knows of it yet.
            unsafe { (address as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            allocation.mark_range(0, bytes.len());
        }
        globals.allocations.sort_by_key(|a| a.address);
        Ok(globals)
    }
}

/// A parsed and decoded PTX module.
pub struct Module {
    kernels: Vec<Kernel>,
    globals: Arc<Globals>,
}

impl Module {
    /// Reads PTX text. What this crate cannot execute is an error here, not at launch.
    pub fn parse(ptx: &str) -> Result<Module, ParseError> {
        let ast = parse(ptx)?;
        let globals = Arc::new(Globals::new(&ast)?);
        let kernels = ast
            .functions
            .iter()
            .filter(|f| f.entry && f.body.is_some())
            .map(|f| decode::kernel(&ast, f, &globals))
            .collect::<Result<_, _>>()?;
        Ok(Module { kernels, globals })
    }

    /// All kernels, in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// The module's variables.
    pub(crate) fn variables(&self) -> &[Arc<Allocation>] {
        &self.globals.allocations
    }

    /// Address and bytes of a `.global` or `.const` variable.
    pub fn global(&self, name: &str) -> Option<(u64, usize)> {
        let address = self.globals.address(name)?;
        self.globals.allocations.iter().find(|a| a.address == address).map(|a| (a.address, a.bytes))
    }
}
