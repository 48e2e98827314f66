//! One table of cases for all ops: plain data, so that gradients, devices and speed are checked on the same shapes.
//!
//! [`table`] lists them; [`Case::inputs`] and [`Case::apply`] make inputs of them and run the op. All numbers are exact
//! in f32, so that a case computes the same function in f32 and f64.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses its own part")]

pub mod models;
pub mod run;
mod table;

#[allow(unused_imports, reason = "whole models have no table")]
pub use table::table;

use softprompt::device::Kind;
use softprompt::layout::{Layout, Segment, Segments, Sequence};
use softprompt::ops::{self, Activation, Pairing, PositionBias, Positions, attention::Heads, rope::Rotation};
use softprompt::tape::{Tape, Var};
use softprompt::weights::{Format, Matrix, Orientation, Parameter, ParameterPlace, StoredTensor};
use softprompt::{DType, Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub struct Case {
    pub op: Op,
    pub seed: u64,
    /// Whether all numbers, of operands and parameters, are exact in bf16.
    pub in_bf16: bool,
    /// Whether the op's weights are parameters: further inputs behind the operands.
    pub trained: bool,
}

/// An op with its shapes. `grad` is the number of leading rows that carry gradient.
#[derive(Debug, Clone)]
pub enum Op {
    Linear {
        rows: usize,
        grad: usize,
        weight: Weight,
        bias: bool,
    },
    Add {
        rows: usize,
        cols: usize,
        left: usize,
        right: usize,
    },
    RmsNorm {
        rows: usize,
        cols: usize,
        grad: usize,
    },
    LayerNorm {
        rows: usize,
        cols: usize,
        grad: usize,
    },
    /// The norm of a sum, plus the sum.
    AddRmsNorm {
        rows: usize,
        cols: usize,
        left: usize,
        right: usize,
    },
    AddLayerNorm {
        rows: usize,
        cols: usize,
        left: usize,
        right: usize,
    },
    Rope {
        rows: usize,
        heads: usize,
        dim: usize,
        grad: usize,
        pairing: Pairing,
    },
    Attention {
        heads: (usize, usize),
        dim: usize,
        mask: Mask,
        query_grad: usize,
        key_grad: usize,
        /// Whether scores get a bias by distance.
        bias: bool,
    },
    Scale {
        rows: usize,
        cols: usize,
        grad: usize,
    },
    Activation {
        rows: usize,
        cols: usize,
        grad: usize,
        function: Activation,
    },
    Gated {
        rows: usize,
        cols: usize,
        grad: usize,
        function: Activation,
    },
    Embedding {
        prompt: usize,
        ids: usize,
        table: Weight,
        positions: bool,
    },
    Rows {
        rows: usize,
        cols: usize,
        grad: usize,
        index: Vec<usize>,
    },
    CrossEntropy {
        rows: usize,
        grad: usize,
        head: Weight,
    },
    /// A table of biases by distance, each of one of `buckets`.
    PositionBias {
        heads: usize,
        buckets: usize,
        distances: usize,
    },
}

/// A stored matrix, restricted to some of its outputs.
#[derive(Debug, Clone)]
pub struct Weight {
    pub outputs: usize,
    pub inputs: usize,
    pub orientation: Orientation,
    pub format: Format,
    pub part: Option<Range<usize>>,
}

/// Who sees whom.
#[derive(Debug, Clone)]
pub enum Mask {
    /// A causal layout: prompts, then (prompt, tokens, first label) for each example; trimmed to scored rows or not.
    Causal { prompts: Vec<usize>, examples: Vec<(usize, usize, usize)>, trimmed: bool },
    /// An input of this many rows behind a prompt, and continuations of it: the context is two spans.
    Continued { prompt: usize, input: usize, options: Vec<usize>, trimmed: bool },
    /// Everyone sees the example's copy of the prompt and all of the example; no causality.
    Full { prompt: usize, examples: Vec<usize> },
    /// A query segment whose context is three spans, not in order, and nothing of its own.
    Scattered { queries: usize, keys: usize },
}

impl Mask {
    pub fn segments(&self) -> Segments {
        match self {
            Self::Causal { prompts, examples, trimmed } => {
                let ids = vec![0u32; examples.iter().map(|e| e.1).max().unwrap_or(0)];
                let sequences: Vec<_> =
                    examples.iter().map(|&(p, tokens, label)| Sequence::example(p, &ids[..tokens], label)).collect();
                pick(Layout::causal(prompts, &sequences).unwrap(), *trimmed)
            }
            Self::Continued { prompt, input, options, trimmed } => {
                let ids = vec![0u32; 400];
                let mut sequences = vec![Sequence { keep_last: true, ..Sequence::example(0, &ids[..*input], *input) }];
                let option = |&tokens| Sequence { parent: Some(0), ..Sequence::example(0, &ids[..tokens], 0) };
                sequences.extend(options.iter().map(option));
                pick(Layout::causal(&[*prompt], &sequences).unwrap(), *trimmed)
            }
            Self::Full { prompt, examples } => full(*prompt, examples),
            Self::Scattered { queries, keys } => {
                let (a, b) = (keys / 4, keys / 2);
                let context = vec![b..*keys, 0..a, a..b];
                let segment = Segment { queries: 0..*queries, context, own: 0..0 };
                Segments::new(vec![segment], vec![0; *queries], *keys).unwrap()
            }
        }
    }
}

fn pick(layout: Layout, trimmed: bool) -> Segments {
    if trimmed { layout.scored } else { layout.all }
}

fn full(prompt: usize, examples: &[usize]) -> Segments {
    let (mut segments, mut visible) = (Vec::new(), Vec::new());
    let copies = prompt * examples.len();
    let rows_of = |b: usize| {
        let start = copies + examples[..b].iter().sum::<usize>();
        start..start + examples[b]
    };
    let prompt_of = |b: usize| b * prompt..(b + 1) * prompt;
    for b in 0..examples.len() {
        segments.push(Segment { queries: prompt_of(b), context: vec![rows_of(b)], own: prompt_of(b) });
        visible.extend(std::iter::repeat_n(prompt, prompt));
    }
    for (b, &rows) in examples.iter().enumerate() {
        segments.push(Segment { queries: rows_of(b), context: vec![prompt_of(b)], own: rows_of(b) });
        visible.extend(std::iter::repeat_n(rows, rows));
    }
    let keys = visible.len();
    Segments::new(segments, visible, keys).unwrap()
}

/// A stream of numbers from a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// In (−1, 1), exact in f32.
    pub fn number(&mut self) -> f64 {
        ((self.bits() >> 41) as f64 + 0.5) / (1u64 << 22) as f64 - 1.0
    }

    pub fn numbers(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.number()).collect()
    }
}

/// An operand that may carry gradient.
#[derive(Debug, Clone)]
pub struct Input {
    pub rows: usize,
    pub cols: usize,
    pub grad: usize,
    pub values: Vec<f64>,
    /// The number of a parameter, all of which carries gradient.
    pub parameter: Option<usize>,
    /// Whether it is of the accumulator's type.
    pub is_wide: bool,
}

impl Weight {
    pub fn stored(&self, seed: u64, in_bf16: bool) -> StoredTensor {
        let shape = match self.orientation {
            Orientation::RowPerOutput => [self.outputs, self.inputs],
            Orientation::RowPerInput => [self.inputs, self.outputs],
        };
        let (count, mut random) = (self.outputs * self.inputs, Random::new(seed ^ 77));
        match self.format {
            Format::F64 => StoredTensor::from_values("w", &shape, rounded(random.numbers(count), in_bf16)).unwrap(),
            Format::F32 => {
                let values: Vec<f32> = rounded(random.numbers(count), in_bf16).into_iter().map(|x| x as f32).collect();
                StoredTensor::from_values("w", &shape, values).unwrap()
            }
            format => {
                let mut bytes = Vec::with_capacity(format.bytes(count).unwrap());
                for _ in 0..count / format.block_len() {
                    bytes.extend(block(format, &mut random));
                }
                StoredTensor::from_bytes("w", &shape, format, bytes).unwrap()
            }
        }
    }

    pub fn matrix(&self, seed: u64, in_bf16: bool) -> Arc<Matrix> {
        let whole = Matrix::new(self.stored(seed, in_bf16), self.orientation).unwrap();
        Arc::new(self.part.clone().map_or(whole.clone(), |part| whole.outputs(part).unwrap()))
    }

    /// Its elements as they are stored, with their rows and columns.
    fn values(&self, seed: u64, in_bf16: bool) -> (usize, usize, Vec<f64>) {
        let matrix = self.matrix(seed, in_bf16);
        let whole = matrix.to_tensor(&Device::cpu(Some(1)).unwrap(), DType::F64).unwrap();
        (whole.rows(), whole.cols(), whole.to_f64_vec().unwrap())
    }

    pub fn out_features(&self) -> usize {
        self.part.as_ref().map_or(self.outputs, Range::len)
    }
}

/// A block with sensible scales and random integers.
fn block(format: Format, random: &mut Random) -> Vec<u8> {
    let mut block: Vec<u8> = (0..format.block_bytes()).map(|_| random.bits() as u8).collect();
    let mut scale = |at: usize, x: f32| {
        let x = x * (1.5 + random.number() as f32);
        block[at..at + 2].copy_from_slice(&half::f16::from_f32(x).to_le_bytes());
    };
    match format {
        Format::F16 => block = half::f16::from_f64(random.number()).to_le_bytes().to_vec(),
        Format::BF16 => block = half::bf16::from_f64(random.number()).to_le_bytes().to_vec(),
        Format::Q8_0 => scale(0, 0.005),
        Format::Q4_0 | Format::Q5_0 => scale(0, 0.05),
        Format::Q4_1 | Format::Q5_1 => {
            scale(0, 0.05);
            scale(2, -0.4);
        }
        Format::Q4K => {
            scale(0, 0.001);
            scale(2, 0.004);
        }
        Format::Q6K => scale(208, 2e-4),
        Format::F32 | Format::F64 => unreachable!("made of values"),
    }
    block
}

/// The numbers, rounded to bf16 where that is wanted.
fn rounded(mut values: Vec<f64>, to_bf16: bool) -> Vec<f64> {
    if to_bf16 {
        values.iter_mut().for_each(|x| *x = half::bf16::from_f64(*x).to_f64());
    }
    values
}

pub fn tensor(device: &Device, dtype: DType, rows: usize, cols: usize, values: &[f64]) -> Tensor {
    Tensor::from_f64(device, rows, cols, dtype, values, Kind::Workspace).unwrap()
}

impl Case {
    /// The same case with numbers that are exact in bf16.
    pub fn in_bf16(&self) -> Self {
        Self { in_bf16: true, ..self.clone() }
    }

    pub fn rounded(&self, values: Vec<f64>) -> Vec<f64> {
        rounded(values, self.in_bf16)
    }

    /// A parameter of the op that is not an operand, as a row: the norm's weight, the bias.
    pub fn parameter(&self, which: u64, count: usize) -> Vec<f64> {
        self.rounded(Random::new(self.seed ^ (1000 + which)).numbers(count))
    }

    /// Indices below `limit`.
    pub fn indices(&self, which: u64, count: usize, limit: usize) -> Vec<usize> {
        let mut random = Random::new(self.seed ^ (2000 + which));
        (0..count).map(|_| random.below(limit)).collect()
    }

    pub fn labels(&self, count: usize, vocabulary: usize) -> Vec<u32> {
        let mut labels: Vec<u32> = self.indices(1, count, vocabulary).into_iter().map(|id| id as u32).collect();
        // The ends of the vocabulary are where chunks go wrong.
        if let Some(last) = labels.last_mut() {
            *last = vocabulary as u32 - 1;
        }
        if let Some(first) = labels.first_mut() {
            *first = 0;
        }
        labels
    }

    /// How much each row counts; some of them nothing.
    pub fn scales(&self, count: usize) -> Vec<f64> {
        let mut scales = Random::new(self.seed ^ 5).numbers(count);
        scales.iter_mut().skip(1).step_by(5).for_each(|scale| *scale = 0.0);
        scales
    }

    pub fn inputs(&self) -> Vec<Input> {
        let mut inputs = self.operands();
        if self.trained {
            inputs.extend(self.parameters());
        }
        inputs.iter_mut().for_each(|input| input.values = self.rounded(std::mem::take(&mut input.values)));
        inputs
    }

    /// The weights that [`Case::apply`] takes from the inputs behind the operands if they are trained.
    fn parameters(&self) -> Vec<Input> {
        let row = |which, count| (1, count, self.parameter(which, count));
        let matrix = |weight: &Weight, seed| weight.values(seed, self.in_bf16);
        let found = match &self.op {
            Op::Linear { weight, bias, .. } => {
                let bias = bias.then(|| row(0, weight.out_features()));
                std::iter::once(matrix(weight, self.seed)).chain(bias).collect()
            }
            Op::RmsNorm { cols, .. } | Op::AddRmsNorm { cols, .. } => vec![row(0, *cols)],
            Op::LayerNorm { cols, .. } | Op::AddLayerNorm { cols, .. } => vec![row(0, *cols), row(1, *cols)],
            Op::Embedding { table, positions, .. } => {
                let positions = positions.then(|| matrix(table, self.seed ^ 9));
                std::iter::once(matrix(table, self.seed)).chain(positions).collect()
            }
            Op::CrossEntropy { head, .. } => vec![matrix(head, self.seed)],
            Op::Attention { heads, bias: true, .. } => vec![(heads.0, DISTANCES, self.bias_table(heads.0))],
            Op::PositionBias { heads, buckets, .. } => vec![(*buckets, *heads, self.parameter(0, buckets * heads))],
            _ => Vec::new(),
        };
        let is_wide = matches!(self.op, Op::Attention { .. });
        let input = |(id, (rows, cols, values))| Input { rows, cols, grad: rows, values, parameter: Some(id), is_wide };
        found.into_iter().enumerate().map(input).collect()
    }

    fn operands(&self) -> Vec<Input> {
        let mut random = Random::new(self.seed);
        let mut input = |rows: usize, cols: usize, grad: usize| {
            assert!(grad <= rows, "{self:?}");
            Input { rows, cols, grad, values: random.numbers(rows * cols), parameter: None, is_wide: false }
        };
        // Kinks and flat parts of activations: numbers away from 0, some of them large.
        let spread = |mut input: Input| {
            input.values.iter_mut().for_each(|x| *x = (4.0 * *x + x.signum() * 0.0625) as f32 as f64);
            input
        };
        match &self.op {
            Op::Linear { rows, grad, weight, .. } => vec![input(*rows, weight.inputs, *grad)],
            Op::Add { rows, cols, left, right }
            | Op::AddRmsNorm { rows, cols, left, right }
            | Op::AddLayerNorm { rows, cols, left, right } => {
                vec![input(*rows, *cols, *left), input(*rows, *cols, *right)]
            }
            Op::RmsNorm { rows, cols, grad } | Op::LayerNorm { rows, cols, grad } => vec![input(*rows, *cols, *grad)],
            Op::Rope { rows, heads, dim, grad, .. } => vec![input(*rows, heads * dim, *grad)],
            Op::Attention { heads, dim, mask, query_grad, key_grad, .. } => {
                let segments = mask.segments();
                let keys = segments.key_rows();
                vec![
                    input(segments.query_rows(), heads.0 * dim, (*query_grad).min(segments.query_rows())),
                    input(keys, heads.1 * dim, (*key_grad).min(keys)),
                    input(keys, heads.1 * dim, (*key_grad).min(keys)),
                ]
            }
            Op::Scale { rows, cols, grad } => vec![input(*rows, *cols, *grad)],
            Op::Activation { rows, cols, grad, .. } => vec![spread(input(*rows, *cols, *grad))],
            Op::Gated { rows, cols, grad, .. } => {
                vec![spread(input(*rows, *cols, *grad)), input(*rows, *cols, *grad)]
            }
            Op::Embedding { prompt, table, .. } => vec![input(*prompt, table.inputs, *prompt)],
            Op::Rows { rows, cols, grad, .. } => vec![input(*rows, *cols, *grad)],
            Op::CrossEntropy { rows, grad, head } => vec![input(*rows, head.inputs, *grad)],
            Op::PositionBias { .. } => Vec::new(),
        }
    }

    /// Runs the op. The loss's output is the row of `nll · scale` sums: `[1, 1]`.
    pub fn apply(&self, tape: &mut Tape, device: &Device, dtype: DType, x: &[Var]) -> Var {
        // Parameters stand behind the operands.
        let first = if self.trained { x.len() - self.parameters().len() } else { 0 };
        let row = |which: u64, index: usize, count| match self.trained {
            true => x[first + index].clone(),
            false => Var::constant(tensor(device, dtype, 1, count, &self.parameter(which, count))),
        };
        let matrix = |weight: &Weight, index: usize, seed| match self.trained {
            true => trained(index, x[first + index].tensor().clone(), weight.orientation),
            false => weight.matrix(seed, self.in_bf16),
        };
        match &self.op {
            Op::Linear { weight, bias, .. } => {
                let bias = bias.then(|| row(0, 1, weight.out_features()));
                ops::linear(tape, &x[0], &matrix(weight, 0, self.seed), bias.as_ref()).unwrap()
            }
            Op::Add { .. } => ops::add(tape, &x[0], x[1].clone()).unwrap(),
            Op::RmsNorm { cols, .. } => ops::rms_norm(tape, &x[0], &row(0, 0, *cols), EPSILON).unwrap(),
            Op::LayerNorm { cols, .. } => {
                ops::layer_norm(tape, &x[0], &row(0, 0, *cols), &row(1, 1, *cols), EPSILON).unwrap()
            }
            Op::AddRmsNorm { cols, .. } => {
                let weight = row(0, 0, *cols);
                let (sum, normed) = ops::add_rms_norm(tape, &x[0], x[1].clone(), &weight, EPSILON).unwrap();
                ops::add(tape, &sum, normed).unwrap()
            }
            Op::AddLayerNorm { cols, .. } => {
                let (weight, bias) = (row(0, 0, *cols), row(1, 1, *cols));
                let (sum, normed) = ops::add_layer_norm(tape, &x[0], x[1].clone(), &weight, &bias, EPSILON).unwrap();
                ops::add(tape, &sum, normed).unwrap()
            }
            Op::Rope { rows, dim, pairing, .. } => {
                let angles = self.angles(dim / 2);
                let table = |f: fn(f64) -> f64| {
                    let values: Vec<f64> = angles.iter().map(|&angle| f(angle)).collect();
                    tensor(device, dtype.accumulator(), POSITIONS, dim / 2, &values)
                };
                let rotation = Arc::new(Rotation { pairing: *pairing, cos: table(f64::cos), sin: table(f64::sin) });
                ops::rope(tape, x[0].clone(), &rotation, &self.indices(0, *rows, POSITIONS).into()).unwrap()
            }
            Op::Attention { heads, dim, mask, bias, .. } => {
                let segments = Arc::new(mask.segments());
                let frozen = || tensor(device, dtype.accumulator(), heads.0, DISTANCES, &self.bias_table(heads.0));
                let bias = bias.then(|| PositionBias {
                    table: if self.trained { x[first].clone() } else { Var::constant(frozen()) },
                    query_positions: (0..segments.query_rows()).collect(),
                    key_positions: (0..segments.key_rows()).collect(),
                    offset: NO_DISTANCE,
                });
                let heads = Heads { queries: heads.0, keys: heads.1, dim: *dim, scale: SCALE };
                ops::attention(tape, &x[0], &x[1], &x[2], heads, &segments, bias.as_ref()).unwrap()
            }
            Op::Scale { .. } => ops::scale(tape, x[0].clone(), SCALE).unwrap(),
            Op::Activation { function, .. } => ops::activation(tape, &x[0], *function).unwrap(),
            Op::Gated { function, .. } => ops::gated(tape, &x[0], &x[1], *function).unwrap(),
            Op::Embedding { prompt, ids, table, positions } => {
                let ids: Vec<u32> = self.indices(0, *ids, table.outputs).into_iter().map(|id| id as u32).collect();
                let of_row = self.indices(1, prompt + ids.len(), table.outputs);
                let position_table = positions.then(|| matrix(table, 1, self.seed ^ 9));
                let positions = position_table.as_ref().map(|table| Positions { table, of_row: &of_row });
                ops::embedding(tape, &x[0], &matrix(table, 0, self.seed), &ids, positions).unwrap()
            }
            Op::Rows { index, .. } => ops::rows(tape, &x[0], &index.as_slice().into()).unwrap(),
            Op::CrossEntropy { rows, head, .. } => {
                let (labels, scales) = (self.labels(*rows, head.outputs), self.scales(*rows));
                ops::cross_entropy(tape, &x[0], &matrix(head, 0, self.seed), &labels, &scales).unwrap().loss
            }
            Op::PositionBias { buckets, distances, .. } => {
                let weight = trained(0, x[first].tensor().clone(), Orientation::RowPerOutput);
                ops::position_bias(tape, &weight, &self.indices(0, *distances, *buckets), device, dtype).unwrap()
            }
        }
    }

    /// Biases of each head and distance, exact in bf16 where the others are and they are trained.
    pub fn bias_table(&self, heads: usize) -> Vec<f64> {
        rounded(Random::new(self.seed ^ 4).numbers(heads * DISTANCES), self.in_bf16 && self.trained)
    }

    /// Angles of each position and pair.
    pub fn angles(&self, pairs: usize) -> Vec<f64> {
        Random::new(self.seed ^ 3).numbers(POSITIONS * pairs).into_iter().map(|x| 3.0 * x).collect()
    }
}

/// A matrix that is the parameter of that number.
fn trained(id: usize, value: Tensor, orientation: Orientation) -> Arc<Matrix> {
    let (rows, cols) = (value.rows(), value.cols());
    let place = ParameterPlace { name: "w".into(), shape: vec![rows, cols], rows: 0..rows, cols: 0..cols };
    Arc::new(Matrix::trained(Arc::new(Parameter::new(id, place, value)), orientation))
}

pub const EPSILON: f64 = 1e-5;
pub const POSITIONS: usize = 40;
/// Columns of a table of biases, fewer than there are distances in larger cases, and that of distance 0.
pub const DISTANCES: usize = 64;
pub const NO_DISTANCE: usize = 20;
/// Not 1/√dim, so that a scale that is forgotten or applied twice shows.
pub const SCALE: f64 = 0.75;
