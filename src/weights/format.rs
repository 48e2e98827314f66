//! How the elements of a weight are laid out in its file.

use std::fmt;

/// The layout of a stored weight's elements: plain numbers, or blocks of small integers with a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 64-bit floating point.
    F64,
    /// 32-bit floating point.
    F32,
    /// IEEE 16-bit floating point.
    F16,
    /// The upper half of a 32-bit floating-point number.
    BF16,
    /// 32 8-bit integers and a scale.
    Q8_0,
    /// 32 4-bit integers around zero and a scale.
    Q4_0,
    /// 32 4-bit integers, a scale and a minimum.
    Q4_1,
    /// 32 5-bit integers around zero and a scale.
    Q5_0,
    /// 32 5-bit integers, a scale and a minimum.
    Q5_1,
    /// 256 4-bit integers; eight groups of 32, each with a 6-bit scale and minimum.
    Q4K,
    /// 256 6-bit integers around zero; sixteen groups of 16, each with an 8-bit scale.
    Q6K,
}

impl Format {
    /// Every format there is.
    pub const ALL: [Self; 11] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q6K,
    ];

    /// Elements in one block; 1 for plain numbers.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F64 | Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `elements` elements: `None` if they are not whole blocks, or too many to count.
    pub const fn bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The name the file formats use, as in `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// All names in one line, for messages.
    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
