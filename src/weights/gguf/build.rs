//! Writes small GGUF files, well-formed or not, for tests.

/// The parts of a GGUF file.
#[derive(Clone)]
pub(crate) struct Builder {
    version: u32,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// An array's bytes: its values' type, their number, the values.
pub(crate) fn array(kind: u32, values: &[Vec<u8>]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), &values.concat()].concat()
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self { version: 3, entries: Vec::new(), tensors: Vec::new(), data: Vec::new() }
    }

    pub(crate) fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    pub(crate) fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.push([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    pub(crate) fn str(self, key: &str, value: &str) -> Self {
        self.entry(key, 8, &string(value))
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.entry(key, 7, &[value.into()])
    }

    pub(crate) fn strings(self, key: &str, values: &[&str]) -> Self {
        let values: Vec<_> = values.iter().map(|v| string(v)).collect();
        self.entry(key, 9, &array(8, &values))
    }

    pub(crate) fn ints(self, key: &str, values: &[i32]) -> Self {
        let values: Vec<_> = values.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.entry(key, 9, &array(5, &values))
    }

    pub(crate) fn floats(self, key: &str, values: &[f32]) -> Self {
        let values: Vec<_> = values.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.entry(key, 9, &array(6, &values))
    }

    /// A line of the tensor table; `ne` in ggml's order.
    pub(crate) fn tensor(mut self, name: &str, ne: &[u64], kind: u32, offset: u64) -> Self {
        let ne_bytes: Vec<u8> = ne.iter().flat_map(|n| n.to_le_bytes()).collect();
        let count = (ne.len() as u32).to_le_bytes();
        self.tensors.push([&string(name)[..], &count, &ne_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat());
        self
    }

    pub(crate) fn data(mut self, data: Vec<u8>) -> Self {
        self.data = data;
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        bytes.extend(self.entries.concat());
        bytes.extend(self.tensors.concat());
        if !self.data.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(&self.data);
        }
        bytes
    }
}
