//! What ptxas made of a kernel, counted: the instructions of each kind, as nvdisasm lists them.

/// The columns of the table and what they count: an instruction's name, and what its width is to be.
const COLUMNS: [(&str, &str, Width); 19] = [
    ("hmma", "HMMA", Width::Any),
    ("ldg.128", "LDG", Width::Bits(128)),
    ("ldg.64", "LDG", Width::Bits(64)),
    ("ldg.32", "LDG", Width::Bits(32)),
    ("ldg.16", "LDG", Width::Narrow),
    ("stg.128", "STG", Width::Bits(128)),
    ("stg.64", "STG", Width::Bits(64)),
    ("stg.32", "STG", Width::Bits(32)),
    ("stg.16", "STG", Width::Narrow),
    ("ldgsts", "LDGSTS", Width::Any),
    ("lds", "LDS", Width::Any),
    ("sts", "STS", Width::Any),
    ("ldsm", "LDSM", Width::Any),
    ("ldl", "LDL", Width::Any),
    ("stl", "STL", Width::Any),
    ("bar", "BAR", Width::Any),
    ("mufu", "MUFU", Width::Any),
    ("ffma", "FFMA", Width::Any),
    ("call", "CALL", Width::Any),
];

/// Bits that an access moves.
#[derive(Clone, Copy, PartialEq)]
enum Width {
    Any,
    Bits(u32),
    /// 16 or fewer.
    Narrow,
}

impl Width {
    /// Of an access with these modifiers, as in `LDG.E.128.CONSTANT`.
    fn of<'a>(mut modifiers: impl Iterator<Item = &'a str>) -> Self {
        let width = modifiers.find_map(|modifier| match modifier {
            "128" => Some(Self::Bits(128)),
            "64" => Some(Self::Bits(64)),
            "U8" | "S8" | "U16" | "S16" => Some(Self::Narrow),
            _ => None,
        });
        width.unwrap_or(Self::Bits(32))
    }
}

/// The first line of the table.
pub(crate) fn header() -> String {
    let names: Vec<String> = COLUMNS.iter().map(|(name, ..)| format!("{name:>7}")).collect();
    format!("{:<40} target   total {}\n", "kernel", names.join(" "))
}

/// A line for each kernel of `listing`, the output of `nvdisasm -c`.
pub(crate) fn table(listing: &str, target: &str) -> String {
    let mut kernels: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            kernels.push((name, Vec::new()));
        } else if let (Some(instruction), Some((_, found))) = (instruction(line), kernels.last_mut()) {
            found.push(instruction);
        }
    }
    kernels.sort();
    kernels.iter().map(|(name, instructions)| row(name, target, instructions)).collect()
}

/// The instruction of a line such as `/*0040*/ @!P0 S2R R3, SR_TID.X ;`, unless it only fills up the code.
fn instruction(line: &str) -> Option<&str> {
    let (_, text) = line.strip_prefix("/*")?.split_once("*/")?;
    let name = text.split_whitespace().find(|word| !word.starts_with('@'))?.trim_end_matches(';');
    (name != "NOP").then_some(name)
}

fn row(kernel: &str, target: &str, instructions: &[&str]) -> String {
    let count = |name: &str, width: Width| {
        let is_meant = |instruction: &&&str| {
            let mut parts = instruction.split('.');
            parts.next() == Some(name) && (width == Width::Any || Width::of(parts) == width)
        };
        instructions.iter().filter(is_meant).count()
    };
    let counts: Vec<String> = COLUMNS.iter().map(|&(_, name, width)| format!("{:>7}", count(name, width))).collect();
    format!("{kernel:<40} {target} {:>7} {}\n", instructions.len(), counts.join(" "))
}
