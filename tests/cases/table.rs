//! The cases: shapes that hurt. A panel of a product is 96 columns, a chunk of the vocabulary at most 4032 tokens, a
//! tile of attention 192 queries, a task of an element-wise op 16384 elements.

use super::{Case, Mask, Op, Weight};
use softprompt::ops::{Activation, Pairing};
use softprompt::weights::Format;
use softprompt::weights::Orientation::{RowPerInput, RowPerOutput};

const ALL: usize = usize::MAX;
const FUNCTIONS: [Activation; 4] = [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu];
/// Rows, columns, gradient rows.
const MATRICES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (31, 33, 31),
    (33, 31, 7),
    (123, 16, 123),
    (5, 123, 1),
    (0, 12, 0),
    (4, 12, 0),
    (300, 200, 300),
    (300, 200, 99),
];

/// Every case.
pub fn table() -> Vec<Case> {
    let mut ops = Vec::new();
    for (rows, cols, grad) in MATRICES {
        ops.push(Op::RmsNorm { rows, cols, grad });
        ops.push(Op::LayerNorm { rows, cols, grad });
        ops.push(Op::Add { rows, cols, left: grad, right: rows });
        ops.push(Op::Add { rows, cols, left: rows, right: grad });
        ops.push(Op::Add { rows, cols, left: grad, right: grad });
        ops.push(Op::AddRmsNorm { rows, cols, left: grad, right: rows });
        ops.push(Op::AddRmsNorm { rows, cols, left: grad, right: grad });
        ops.push(Op::AddLayerNorm { rows, cols, left: rows, right: grad });
        ops.push(Op::AddLayerNorm { rows, cols, left: grad, right: grad });
        ops.extend(FUNCTIONS.map(|function| Op::Activation { rows, cols, grad, function }));
        ops.extend(FUNCTIONS.map(|function| Op::Gated { rows, cols, grad, function }));
        ops.extend(row_cases(rows, cols, grad));
        for pairing in [Pairing::Halves, Pairing::Neighbours] {
            ops.push(Op::Rope { rows, heads: 1, dim: 2 * cols, grad, pairing });
            ops.push(Op::Rope { rows, heads: 3, dim: 6, grad, pairing });
        }
    }
    ops.extend(linear());
    ops.extend(attention());
    ops.extend(embedding());
    ops.extend(cross_entropy());
    ops.extend(head_sizes());
    let frozen = ops.into_iter().map(|op| (op, false));
    let trained = trained().into_iter().map(|op| (op, true));
    let scales = MATRICES.map(|(rows, cols, grad)| Op::Scale { rows, cols, grad });
    let later = scales.into_iter().chain(biased_attention()).map(|op| (op, false));
    let later = later.chain(trained_bias().into_iter().map(|op| (op, true)));
    // A case's numbers follow from its place: new ones come last.
    let numbered = frozen.chain(trained).chain(later).zip(1..);
    numbered.map(|((op, trained), seed)| Case { op, seed, in_bf16: false, trained }).collect()
}

/// Ops whose weights are trained. On a GPU, sums over rows are of parts of at least 64 rows, added by eight warps, and
/// rows of the embedding repeat.
fn trained() -> Vec<Op> {
    let mut ops = Vec::new();
    for (rows, cols, grad) in MATRICES {
        ops.push(Op::RmsNorm { rows, cols, grad });
        ops.push(Op::LayerNorm { rows, cols, grad });
        for (outputs, part) in [(1, None), (97, None), (200, Some(5..198))] {
            for orientation in [RowPerOutput, RowPerInput] {
                let weight = Weight { outputs, inputs: cols, orientation, format: Format::F32, part: part.clone() };
                ops.push(Op::Linear { rows, grad, weight, bias: ops.len() % 3 > 0 });
            }
        }
    }
    for (rows, cols) in [(5, 12), (70, 256), (129, 1032)] {
        ops.push(Op::AddRmsNorm { rows, cols, left: rows, right: rows / 2 });
        ops.push(Op::AddLayerNorm { rows, cols, left: rows, right: 0 });
    }
    for (prompt, ids, tokens, width) in [(0, 1, 1, 1), (0, 33, 57, 33), (3, 123, 31, 31), (2, 300, 7, 264)] {
        for positions in [false, true] {
            ops.push(Op::Embedding { prompt, ids, table: plain(tokens, width, Format::F32), positions });
        }
    }
    for (rows, grad, vocabulary, width) in
        [(1, 1, 1, 1), (31, 31, 33, 12), (33, 7, 123, 31), (0, 0, 57, 8), (5, 5, 4033, 6), (123, 123, 300, 96)]
    {
        ops.push(Op::CrossEntropy { rows, grad, head: plain(vocabulary, width, Format::F32) });
    }
    ops
}

fn row_cases(rows: usize, cols: usize, grad: usize) -> Vec<Op> {
    let mut indices = vec![vec![]];
    if rows > 0 {
        let last = rows - 1;
        indices.extend([vec![0], vec![last, 0, last, last], (0..rows).rev().step_by(3).collect(), vec![rows / 2; 7]]);
    }
    indices.into_iter().map(|index| Op::Rows { rows, cols, grad, index }).collect()
}

fn plain(outputs: usize, inputs: usize, format: Format) -> Weight {
    Weight { outputs, inputs, orientation: RowPerOutput, format, part: None }
}

fn linear() -> Vec<Op> {
    let mut ops = Vec::new();
    for (rows, inputs, grad) in MATRICES {
        for (outputs, part) in [(1, None), (97, None), (200, Some(5..198)), (123, Some(31..32))] {
            for orientation in [RowPerOutput, RowPerInput] {
                for format in [Format::F32, Format::F64] {
                    // Alternately with a bias and without.
                    let bias = ops.len() % 3 == 0;
                    let weight = Weight { outputs, inputs, orientation, format, part: part.clone() };
                    ops.push(Op::Linear { rows, grad, weight, bias });
                }
            }
        }
    }
    for format in Format::ALL.into_iter().filter(|format| !matches!(format, Format::F32 | Format::F64)) {
        let block = format.block_len().max(32);
        for orientation in [RowPerOutput, RowPerInput] {
            // Blocks along the inputs or the outputs, more than a panel of them, and a part on the blocks' borders.
            let weight = Weight { outputs: 5 * block, inputs: 4 * block, orientation, format, part: None };
            ops.push(Op::Linear { rows: 9, grad: 9, weight: weight.clone(), bias: true });
            let weight = Weight { part: Some(block..4 * block), ..weight };
            ops.push(Op::Linear { rows: 9, grad: 4, weight, bias: false });
        }
    }
    ops
}

/// Who sees whom, and the rows of the prompts.
fn masks() -> Vec<(Mask, usize)> {
    let causal = |prompts: &[usize], examples: &[(usize, usize, usize)], trimmed| Mask::Causal {
        prompts: prompts.to_vec(),
        examples: examples.to_vec(),
        trimmed,
    };
    let uneven = [(0, 9, 5), (0, 2, 1), (0, 1, 0), (0, 14, 3), (0, 3, 0)];
    let two = [(0, 6, 2), (1, 5, 0), (0, 1, 0), (1, 9, 8)];
    let many: Vec<_> = (0..40).map(|i| (0, 1 + i % 5, i % (1 + i % 5))).collect();
    vec![
        (causal(&[1], &[(0, 2, 1)], false), 1),
        (causal(&[31], &uneven, false), 31),
        (causal(&[31], &uneven, true), 31),
        (causal(&[3, 5], &two, false), 8),
        (causal(&[3, 5], &two, true), 8),
        (causal(&[0], &[(0, 7, 2)], false), 0),
        (causal(&[4], &[], false), 4),
        (causal(&[4], &[], true), 4),
        (causal(&[7], &many, false), 7),
        (causal(&[7], &many, true), 7),
        (causal(&[210], &[(0, 130, 1), (0, 33, 31)], false), 210),
        (causal(&[5], &[(0, 260, 1)], true), 5),
        (Mask::Continued { prompt: 3, input: 6, options: vec![1, 4, 2], trimmed: false }, 3),
        (Mask::Continued { prompt: 3, input: 6, options: vec![1, 4, 2], trimmed: true }, 3),
        (Mask::Continued { prompt: 3, input: 0, options: vec![2, 2], trimmed: true }, 3),
        (Mask::Full { prompt: 3, examples: vec![5, 1, 9] }, 9),
        (Mask::Full { prompt: 33, examples: vec![100, 123] }, 66),
        (Mask::Scattered { queries: 31, keys: 33 }, 9),
        (Mask::Scattered { queries: 1, keys: 123 }, 40),
    ]
}

fn attention() -> Vec<Op> {
    let mut ops = Vec::new();
    for (index, (mask, prompt)) in masks().into_iter().enumerate() {
        let shapes = [((1, 1), 6), ((4, 4), 16), ((6, 2), 20), ((4, 1), 1)];
        let (heads, dim) = shapes[index % shapes.len()];
        let (more_heads, more_dim) = shapes[(index + 2) % shapes.len()];
        let mut push = |heads, dim, query_grad, key_grad| {
            ops.push(Op::Attention { heads, dim, mask: mask.clone(), query_grad, key_grad, bias: false });
        };
        push(heads, dim, ALL, ALL);
        // The first layer; the first layer where it is also the last.
        push(more_heads, more_dim, prompt, prompt);
        push(heads, dim, 0, prompt);
        push(more_heads, more_dim, 2, 1);
        push(heads, dim, ALL, 0);
        push(more_heads, more_dim, 0, ALL);
        push(heads, dim, prompt + 2, prompt + 3);
        push(heads, dim, 0, 0);
    }
    ops
}

/// Every mask with a bias by distance.
fn biased_attention() -> Vec<Op> {
    let mut ops = Vec::new();
    for (index, (mask, prompt)) in masks().into_iter().enumerate() {
        let shapes = [((1, 1), 64), ((4, 4), 16), ((6, 2), 20)];
        let (heads, dim) = shapes[index % shapes.len()];
        for (query_grad, key_grad) in [(ALL, ALL), (prompt, prompt), (0, prompt)] {
            ops.push(Op::Attention { heads, dim, mask: mask.clone(), query_grad, key_grad, bias: true });
        }
    }
    ops
}

/// Every mask with a bias that is trained, once by itself; a head of every size that kernels are
/// compiled for; tables of few and of many distances.
fn trained_bias() -> Vec<Op> {
    let mut ops = Vec::new();
    for (index, (mask, prompt)) in masks().into_iter().enumerate() {
        let shapes = [((1, 1), 64), ((4, 4), 16), ((6, 2), 20)];
        let (heads, dim) = shapes[index % shapes.len()];
        let grads = [(ALL, ALL), (prompt, prompt + 1), (0, 0)];
        let (query_grad, key_grad) = grads[index / 2 % grads.len()];
        ops.push(Op::Attention { heads, dim, mask, query_grad, key_grad, bias: true });
    }
    for dim in [32, 64, 80, 128, 256] {
        // Scores of wide heads are large, and f32 has fewer digits behind the point of them.
        let mask = Mask::Full { prompt: 3, examples: if dim < 256 { vec![20, 70, 1] } else { vec![5, 19] } };
        ops.push(Op::Attention { heads: (2, 2), dim, mask, query_grad: ALL, key_grad: ALL, bias: true });
    }
    // More tiles of queries than a GPU makes partial sums.
    let examples = (0..150).map(|i| (0, 1 + i % 4, 0)).collect();
    let mask = Mask::Causal { prompts: vec![3], examples, trimmed: false };
    ops.push(Op::Attention { heads: (4, 2), dim: 8, mask, query_grad: ALL, key_grad: ALL, bias: true });
    for (heads, buckets, distances) in [(1, 1, 1), (3, 2, 31), (12, 32, 255), (5, 33, 300)] {
        ops.push(Op::PositionBias { heads, buckets, distances });
    }
    ops
}

/// A head of every size that kernels are compiled for, and of some between them.
fn head_sizes() -> Vec<Op> {
    let examples = vec![(0, 9, 5), (0, 2, 1), (0, 20, 0)];
    let mask = Mask::Causal { prompts: vec![5], examples, trimmed: false };
    let sizes = [32, 33, 64, 80, 96, 128, 250, 256];
    sizes
        .map(|dim| Op::Attention {
            heads: (2, 1),
            dim,
            mask: mask.clone(),
            query_grad: ALL,
            key_grad: ALL,
            bias: false,
        })
        .into()
}

fn embedding() -> Vec<Op> {
    let mut ops = Vec::new();
    for (prompt, ids, width) in [(1, 0, 1), (0, 5, 33), (31, 33, 123), (300, 123, 200)] {
        for format in [Format::F32, Format::F64, Format::BF16] {
            for positions in [false, true] {
                ops.push(Op::Embedding { prompt, ids, table: plain(57, width, format), positions });
            }
        }
    }
    ops.push(Op::Embedding { prompt: 3, ids: 9, table: plain(31, 64, Format::Q8_0), positions: true });
    ops.push(Op::Embedding { prompt: 3, ids: 9, table: plain(31, 256, Format::Q6K), positions: false });
    ops
}

fn cross_entropy() -> Vec<Op> {
    let mut ops = Vec::new();
    for (rows, grad, vocabulary, width) in [
        (1, 1, 1, 1),
        (31, 31, 33, 12),
        (33, 7, 123, 31),
        (9, 0, 97, 8),
        (0, 0, 57, 8),
        (3, 3, 4032, 6),
        (5, 5, 4033, 6),
        (7, 4, 9001, 16),
        (123, 123, 300, 96),
    ] {
        for format in [Format::F32, Format::F64, Format::BF16] {
            ops.push(Op::CrossEntropy { rows, grad, head: plain(vocabulary, width, format) });
        }
    }
    ops.push(Op::CrossEntropy { rows: 9, grad: 9, head: plain(4100, 32, Format::Q4_1) });
    ops.push(Op::CrossEntropy { rows: 9, grad: 9, head: plain(257, 256, Format::Q4K) });
    ops
}
