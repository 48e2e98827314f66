//! The instruction set as plain data: types, operations, decoded instructions.

/// A PTX type.
#[allow(missing_docs)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Type {
    const NAMES: [(&'static str, Type); 21] = [
        ("pred", Type::Pred),
        ("b8", Type::B8),
        ("b16", Type::B16),
        ("b32", Type::B32),
        ("b64", Type::B64),
        ("b128", Type::B128),
        ("u8", Type::U8),
        ("u16", Type::U16),
        ("u32", Type::U32),
        ("u64", Type::U64),
        ("s8", Type::S8),
        ("s16", Type::S16),
        ("s32", Type::S32),
        ("s64", Type::S64),
        ("f16", Type::F16),
        ("f16x2", Type::F16x2),
        ("bf16", Type::Bf16),
        ("bf16x2", Type::Bf16x2),
        ("tf32", Type::Tf32),
        ("f32", Type::F32),
        ("f64", Type::F64),
    ];

    /// The type of this name, without the leading dot.
    pub(crate) fn parse(name: &str) -> Option<Type> {
        Type::NAMES.iter().find(|(n, _)| *n == name).map(|&(_, t)| t)
    }

    /// Its name in PTX, without the leading dot.
    pub fn name(self) -> &'static str {
        Type::NAMES.iter().find(|(_, t)| *t == self).map_or("?", |&(n, _)| n)
    }

    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Type::Pred | Type::B8 | Type::U8 | Type::S8 => 1,
            Type::B16 | Type::U16 | Type::S16 | Type::F16 | Type::Bf16 => 2,
            Type::B64 | Type::U64 | Type::S64 | Type::F64 => 8,
            Type::B128 => 16,
            _ => 4,
        }
    }

    /// The integer type of the same size that arithmetic is done in: `b32` counts as `u32`.
    pub(crate) fn unsigned_bits(self) -> Type {
        match self {
            Type::B8 => Type::U8,
            Type::B16 => Type::U16,
            Type::B32 => Type::U32,
            Type::B64 => Type::U64,
            t => t,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 | Type::Tf32 | Type::F32 | Type::F64)
    }
}

/// A state space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Space {
    Param,
    Global,
    Const,
    Shared,
    Local,
    Generic,
}

impl Space {
    pub(crate) fn parse(name: &str) -> Option<Space> {
        Some(match name {
            "param" | "param::entry" | "param::func" => Space::Param,
            "global" => Space::Global,
            "const" => Space::Const,
            "shared" | "shared::cta" => Space::Shared,
            "local" => Space::Local,
            _ => return None,
        })
    }
}

/// Generic addresses of shared and of local memory start here; all below is global memory, at its host address.
pub(crate) const SHARED_WINDOW: u64 = 1 << 60;
pub(crate) const LOCAL_WINDOW: u64 = 1 << 61;
/// Generic addresses of kernel parameters.
pub(crate) const PARAM_WINDOW: u64 = 1 << 62;

/// Comparison of `setp` and `set`; the `U` forms are true if an operand is NaN.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    EqU,
    NeU,
    LtU,
    LeU,
    GtU,
    GeU,
    Num,
    Nan,
}

/// How `setp` joins its result with a predicate.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Combine {
    None,
    And,
    Or,
    Xor,
}

/// Rounding of conversions and of f64 and f32 arithmetic.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
    /// half away from zero (`.rna`, tf32 only)
    Away,
}

/// Functions of one f32 that a GPU computes approximately. Here: in f64, rounded once.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Approx {
    Rcp,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Ex2,
    Lg2,
    Tanh,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Atom {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Shuffle {
    Idx,
    Up,
    Down,
    Bfly,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Prmt {
    Index,
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Reduce {
    Popc,
    And,
    Or,
}

/// What a load, store or atomic does.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Mem {
    pub(crate) space: Space,
    pub(crate) ty: Type,
    /// elements of the vector: 1, 2, 4 (8)
    pub(crate) n: u8,
    /// the address register is 64 bits wide
    pub(crate) wide: bool,
    /// the value registers are 64 bits wide
    pub(crate) long: bool,
    /// volatile, relaxed, acquire, release: such accesses do not race with each other
    pub(crate) strong: bool,
}

/// Operand shapes of `mma`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Shape {
    M16n8k8,
    M16n8k16,
    M16n8k4,
}

/// An operation. The type names width and sign; `Instr` says where operands lie.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Op {
    Nop,
    Add(Type),
    Sub(Type),
    Mul(Type),
    MulHi(Type),
    MulWide(Type),
    Mad(Type),
    MadHi(Type),
    MadWide(Type),
    Mul24(Type, bool),
    Mad24(Type, bool),
    /// saturating s32 forms
    AddSat,
    SubSat,
    /// add, sub, mad with carry in and out: (carry in, carry out)
    AddCarry(Type, bool, bool),
    SubCarry(Type, bool, bool),
    MadCarry(Type, bool, bool, bool),
    Sad(Type),
    Div(Type),
    DivApprox,
    Rem(Type),
    Min(Type),
    Max(Type),
    MinNan(Type),
    MaxNan(Type),
    Abs(Type),
    Neg(Type),
    Copysign(Type),
    Fma(Type),
    FmaRelu(Type),
    /// directed rounding of add, sub, mul, fma, div, rcp, sqrt
    AddR(Type, Round),
    SubR(Type, Round),
    MulR(Type, Round),
    FmaR(Type, Round),
    DivR(Type, Round),
    RcpR(Type, Round),
    SqrtR(Type, Round),
    Approx(Approx, Type),
    Fns,
    Testp(Type, Testp),
    And(Type),
    Or(Type),
    Xor(Type),
    Not(Type),
    Cnot(Type),
    Lop3,
    Shl(Type),
    Shr(Type),
    /// funnel shift: (left, clamp)
    Shf(bool, bool),
    Prmt(Prmt),
    Bfe(Type),
    Bfi(Type),
    /// (type, shift amount form)
    Bfind(Type, bool),
    Brev(Type),
    Clz(Type),
    Popc(Type),
    Szext(Type, bool),
    Bmsk(bool),
    Dp4a(bool, bool),
    Setp(Cmp, Combine, Type),
    /// set: result type, then operand type
    Set(Cmp, Combine, Type, Type),
    Selp(Type),
    Slct(Type, Type),
    Mov(Type),
    /// into `dst` from a list of `n` values of `size` bytes
    Pack(u8, u8),
    Unpack(u8, u8),
    /// (to, from, rounding, to an integral value, saturate, flush, relu)
    Cvt(Type, Type, Round, CvtFlags),
    /// two f32 into a packed pair
    CvtPair(Type, Round, CvtFlags),
    /// 64-bit register from 32-bit and back, where a wider register is given than the type needs
    Clock,
    Clock64,
    GlobalTimer,
    ToGeneric(Space),
    FromGeneric(Space),
    IsSpace(Space),
    Ld(Mem),
    St(Mem),
    Atom(Atom, Mem),
    Red(Atom, Mem),
    CpAsync(u8),
    CpCommit,
    CpWait,
    CpWaitAll,
    Ldmatrix(u8, bool),
    Stmatrix(u8, bool),
    Movmatrix,
    Mma(Shape, Type),
    /// f16 accumulators
    MmaHalf(Shape),
    Shfl(Shuffle),
    Vote(Vote),
    MatchAny(bool),
    MatchAll(bool),
    ActiveMask,
    Redux(Atom, Type),
    Elect,
    BarSync,
    BarArrive,
    BarRed(Reduce),
    BarWarp,
    Fence,
    Bra,
    BrxIdx,
    Exit,
    Trap,
    /// a device assertion that failed
    AssertFail,
}

/// Modifiers of `cvt`.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct CvtFlags {
    pub(crate) integral: bool,
    pub(crate) sat: bool,
    pub(crate) satfinite: bool,
    pub(crate) ftz: bool,
    pub(crate) relu: bool,
    /// source and destination registers are 64 bits wide
    pub(crate) long_from: bool,
    pub(crate) long_to: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Testp {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// No register.
pub(crate) const NONE: u32 = u32::MAX;

/// One decoded instruction. Registers are indices into the file that the operation implies: 32-bit words (which hold
/// 8- and 16-bit values too), 64-bit longs, predicates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instr {
    pub(crate) op: Op,
    /// flush subnormal f32 operands and results to zero
    pub(crate) ftz: bool,
    /// clamp a float result to [0, 1]
    pub(crate) sat: bool,
    /// run where this predicate is true
    pub(crate) guard: u32,
    /// ... or where it is false
    pub(crate) negated: bool,
    /// the predicate operand `c` of setp is negated
    pub(crate) not_c: bool,
    pub(crate) dst: u32,
    pub(crate) dst2: u32,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) c: u32,
    pub(crate) d: u32,
    /// start of operand lists (vectors, mma fragments, branch targets) in the kernel's table
    pub(crate) list: u32,
    /// address offset, immediate, or branch target
    pub(crate) imm: i64,
    /// index into the kernel's source locations
    pub(crate) loc: u32,
    /// line in the PTX text
    pub(crate) line: u32,
}

impl Instr {
    pub(crate) fn new(op: Op) -> Instr {
        Instr {
            op,
            ftz: false,
            sat: false,
            guard: NONE,
            negated: false,
            not_c: false,
            dst: NONE,
            dst2: NONE,
            a: NONE,
            b: NONE,
            c: NONE,
            d: NONE,
            list: 0,
            imm: 0,
            loc: 0,
            line: 0,
        }
    }
}

/// Registers whose value is set when a warp starts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    LanemaskEq,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    DynamicSmemSize,
    TotalSmemSize,
    Zero,
}
