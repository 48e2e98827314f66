//! Every op's forward pass in f64, written straight from its formula and never optimised: what the ops are held to.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test file uses its own part")]

pub mod bf16;

use crate::cases::{Case, DISTANCES, EPSILON, NO_DISTANCE, Op, POSITIONS, SCALE, Weight};
use softprompt::layout::Segments;
use softprompt::ops::{Activation, Pairing};
use softprompt::weights::Orientation;

/// The op's output, row after row, from its operands.
pub fn forward(case: &Case, x: &[Vec<f64>]) -> Vec<f64> {
    match &case.op {
        Op::Linear { rows, weight, bias, .. } => {
            let outputs = weight.out_features();
            let bias = if *bias { case.parameter(0, outputs) } else { vec![0.0; outputs] };
            linear(&x[0], *rows, weight, case, &bias)
        }
        Op::Add { .. } => x[0].iter().zip(&x[1]).map(|(a, b)| a + b).collect(),
        Op::RmsNorm { cols, .. } => rms_norm(case, &x[0], *cols),
        Op::LayerNorm { cols, .. } => layer_norm(case, &x[0], *cols),
        Op::AddRmsNorm { cols, .. } => with_sum(&x[0], &x[1], |sum| rms_norm(case, sum, *cols)),
        Op::AddLayerNorm { cols, .. } => with_sum(&x[0], &x[1], |sum| layer_norm(case, sum, *cols)),
        Op::Rope { rows, heads, dim, pairing, .. } => rope(case, &x[0], *rows, *heads, *dim, *pairing),
        Op::Attention { heads, dim, mask, bias, .. } => {
            let table = bias.then(|| case.bias_table(heads.0));
            attention(&x[0], &x[1], &x[2], *heads, *dim, &mask.segments(), table.as_deref())
        }
        Op::Scale { .. } => x[0].iter().map(|x| SCALE * x).collect(),
        Op::Activation { function, .. } => x[0].iter().map(|&x| activation(*function, x)).collect(),
        Op::Gated { function, .. } => x[0].iter().zip(&x[1]).map(|(&g, u)| activation(*function, g) * u).collect(),
        Op::Embedding { prompt, ids, table, positions } => {
            let embedded = widened(table, case, case.seed);
            let mut stream = x[0].clone();
            for id in case.indices(0, *ids, table.outputs) {
                stream.extend(&embedded[id * table.inputs..(id + 1) * table.inputs]);
            }
            if *positions {
                let learned = widened(table, case, case.seed ^ 9);
                for (row, position) in case.indices(1, prompt + ids, table.outputs).into_iter().enumerate() {
                    for i in 0..table.inputs {
                        stream[row * table.inputs + i] += learned[position * table.inputs + i];
                    }
                }
            }
            stream
        }
        Op::Rows { cols, index, .. } => {
            index.iter().flat_map(|row| x[0][row * cols..(row + 1) * cols].to_vec()).collect()
        }
        Op::CrossEntropy { rows, head, .. } => {
            let logits = linear(&x[0], *rows, head, case, &vec![0.0; head.outputs]);
            let (labels, scales) = (case.labels(*rows, head.outputs), case.scales(*rows));
            let nll = |row: usize| {
                let logits = &logits[row * head.outputs..(row + 1) * head.outputs];
                logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[labels[row] as usize]
            };
            vec![(0..*rows).map(|row| scales[row] * nll(row)).sum()]
        }
        Op::PositionBias { heads, buckets, distances } => {
            let columns = case.indices(0, *distances, *buckets);
            (0..*heads).flat_map(|head| columns.iter().map(move |bucket| x[0][bucket * heads + head])).collect()
        }
    }
}

fn rms_norm(case: &Case, x: &[f64], cols: usize) -> Vec<f64> {
    let weight = case.parameter(0, cols);
    by_row(x, cols, |row| {
        let mean_square = row.iter().map(|x| x * x).sum::<f64>() / cols as f64;
        row.iter().zip(&weight).map(|(x, w)| w * x / (mean_square + EPSILON).sqrt()).collect()
    })
}

fn layer_norm(case: &Case, x: &[f64], cols: usize) -> Vec<f64> {
    let (weight, bias) = (case.parameter(0, cols), case.parameter(1, cols));
    by_row(x, cols, |row| {
        let mean = row.iter().sum::<f64>() / cols as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / cols as f64;
        let normal = |i: usize| (row[i] - mean) / (variance + EPSILON).sqrt();
        (0..cols).map(|i| normal(i) * weight[i] + bias[i]).collect()
    })
}

/// The sum of two inputs, plus a function of it.
fn with_sum(a: &[f64], b: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let sum: Vec<f64> = a.iter().zip(b).map(|(a, b)| a + b).collect();
    f(&sum).iter().zip(&sum).map(|(f, sum)| f + sum).collect()
}

fn by_row(x: &[f64], cols: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks_exact(cols).flat_map(f).collect()
}

fn widened(weight: &Weight, case: &Case, seed: u64) -> Vec<f64> {
    let mut values = vec![0.0; weight.outputs * weight.inputs];
    weight.stored(seed, case.in_bf16).widen(0, &mut values);
    values
}

fn linear(x: &[f64], rows: usize, weight: &Weight, case: &Case, bias: &[f64]) -> Vec<f64> {
    let w = widened(weight, case, case.seed);
    let first = weight.part.as_ref().map_or(0, |part| part.start);
    let mut y = Vec::with_capacity(rows * bias.len());
    for row in 0..rows {
        for (out, bias) in bias.iter().enumerate() {
            let at = |i: usize| match weight.orientation {
                Orientation::RowPerOutput => w[(first + out) * weight.inputs + i],
                Orientation::RowPerInput => w[i * weight.outputs + first + out],
            };
            y.push((0..weight.inputs).map(|i| x[row * weight.inputs + i] * at(i)).sum::<f64>() + bias);
        }
    }
    y
}

fn rope(case: &Case, x: &[f64], rows: usize, heads: usize, dim: usize, pairing: Pairing) -> Vec<f64> {
    let (angles, positions) = (case.angles(dim / 2), case.indices(0, rows, POSITIONS));
    let mut y = vec![0.0; x.len()];
    for row in 0..rows {
        for head in 0..heads {
            let start = (row * heads + head) * dim;
            for pair in 0..dim / 2 {
                let (a, b) = match pairing {
                    Pairing::Halves => (start + pair, start + pair + dim / 2),
                    Pairing::Neighbours => (start + 2 * pair, start + 2 * pair + 1),
                };
                let (sin, cos) = angles[positions[row] * (dim / 2) + pair].sin_cos();
                y[a] = x[a] * cos - x[b] * sin;
                y[b] = x[a] * sin + x[b] * cos;
            }
        }
    }
    y
}

/// What is added to the score of a query and a key.
pub fn bias(table: Option<&[f64]>, head: usize, query: usize, key: usize) -> f64 {
    table.map_or(0.0, |table| table[head * DISTANCES + column(query, key)])
}

/// The column of the table of biases that a query and a key have.
pub fn column(query: usize, key: usize) -> usize {
    (key + NO_DISTANCE).saturating_sub(query).min(DISTANCES - 1)
}

fn attention(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    heads: (usize, usize),
    dim: usize,
    segments: &Segments,
    table: Option<&[f64]>,
) -> Vec<f64> {
    let mut output = vec![0.0; q.len()];
    for segment in segments.as_slice() {
        for query in segment.queries.clone() {
            let own = segment.own.start..segment.own.start + segments.visible()[query];
            let keys: Vec<usize> = segment.context.iter().cloned().flatten().chain(own).collect();
            for head in 0..heads.0 {
                let key_head = head / (heads.0 / heads.1);
                let at = (query * heads.0 + head) * dim;
                let weight = |key: usize| {
                    let dot: f64 = (0..dim).map(|i| q[at + i] * k[(key * heads.1 + key_head) * dim + i]).sum();
                    (SCALE * dot + bias(table, head, query, key)).exp()
                };
                let total: f64 = keys.iter().map(|&key| weight(key)).sum();
                for &key in &keys {
                    for i in 0..dim {
                        output[at + i] += weight(key) / total * v[(key * heads.1 + key_head) * dim + i];
                    }
                }
            }
        }
    }
    output
}

fn activation(function: Activation, x: f64) -> f64 {
    let pi = std::f64::consts::PI;
    match function {
        Activation::Relu => x.max(0.0),
        Activation::Gelu => x * libm::erfc(-x / 2f64.sqrt()) / 2.0,
        Activation::GeluTanh => x / 2.0 * (1.0 + ((2.0 / pi).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}
