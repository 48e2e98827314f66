//! The modifiers of an opcode. Each that is understood is taken away; what is left over is not supported.

use super::Result;
use crate::ParseError;
use crate::isa::Type;

/// One opcode, its modifiers being used up.
pub(super) struct Mods<'a> {
    pub(super) opcode: &'a str,
    pub(super) line: u32,
    pub(super) parts: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    pub(super) fn take(&mut self, name: &str) -> bool {
        match self.parts.iter().position(|p| *p == name) {
            Some(i) => {
                self.parts.remove(i);
                true
            }
            None => false,
        }
    }

    /// Removes modifiers that mean nothing here (cache hints, scopes that are always wide enough).
    pub(super) fn ignore(&mut self, names: &[&str]) {
        self.parts.retain(|p| !names.contains(p) && !p.starts_with("L1::") && !p.starts_with("L2::"));
    }

    pub(super) fn choose<T: Copy>(&mut self, options: &[(&str, T)]) -> Option<T> {
        let (i, v) =
            self.parts.iter().enumerate().find_map(|(i, p)| options.iter().find(|(n, _)| n == p).map(|o| (i, o.1)))?;
        self.parts.remove(i);
        Some(v)
    }

    /// Takes all types, in order.
    pub(super) fn types(&mut self) -> Vec<Type> {
        let types = self.parts.iter().filter_map(|p| Type::parse(p)).collect();
        self.parts.retain(|p| Type::parse(p).is_none());
        types
    }

    pub(super) fn ty(&mut self) -> Result<Type> {
        match self.types()[..] {
            [ty] => Ok(ty),
            _ => Err(self.unknown()),
        }
    }

    pub(super) fn unknown(&self) -> ParseError {
        ParseError::new(self.line, format!("opcode '{}' is not supported", self.opcode))
    }

    pub(super) fn done(&self) -> Result<()> {
        match self.parts.first() {
            None => Ok(()),
            Some(part) => Err(ParseError::new(
                self.line,
                format!("opcode '{}' is not supported (modifier '.{part}')", self.opcode),
            )),
        }
    }
}
