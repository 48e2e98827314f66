//! Attention in bf16 as a framework computes it op by op: every matrix is stored in bf16 between products that add in
//! wider types. What a fused kernel's error is measured against.

use super::{bias, column};
use crate::cases::{Case, DISTANCES, Op, SCALE};
use half::bf16;

fn rounded(x: f64) -> f64 {
    bf16::from_f64(x).to_f64()
}

/// Output, and gradients of q, k, v and the table of biases, of which `d_output` is the gradient, for an attention case with operands `x`.
pub fn attention(case: &Case, x: &[Vec<f64>], d_output: &[f64]) -> [Vec<f64>; 5] {
    let Op::Attention { heads, dim, mask, bias: has_bias, .. } = &case.op else { unreachable!("an attention case") };
    let (segments, group) = (mask.segments(), heads.0 / heads.1);
    let table = has_bias.then(|| case.bias_table(heads.0));
    let [q, k, v] = [&x[0], &x[1], &x[2]];
    let mut output = vec![0.0; q.len()];
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let mut d_table = vec![0.0; heads.0 * DISTANCES];
    for segment in segments.as_slice() {
        for query in segment.queries.clone() {
            let own = segment.own.start..segment.own.start + segments.visible()[query];
            let keys: Vec<usize> = segment.context.iter().cloned().flatten().chain(own).collect();
            for head in 0..heads.0 {
                let at = (query * heads.0 + head) * dim;
                let row = |key: usize| (key * heads.1 + head / group) * dim;
                let dot = |a: &[f64], a_at: usize, b: &[f64], b_at: usize| -> f64 {
                    (0..*dim).map(|i| a[a_at + i] * b[b_at + i]).sum()
                };
                let score = |&key: &usize| {
                    let score = rounded(SCALE * rounded(dot(q, at, k, row(key))));
                    rounded(score + bias(table.as_deref(), head, query, key))
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|s| rounded((s - top).exp() / total)).collect();
                for i in 0..*dim {
                    output[at + i] = rounded(keys.iter().zip(&p).map(|(&key, p)| p * v[row(key) + i]).sum());
                }
                if at >= d_output.len() {
                    continue;
                }
                let dp: Vec<f64> = keys.iter().map(|&key| rounded(dot(d_output, at, v, row(key)))).collect();
                let mean: f64 = dp.iter().zip(&p).map(|(dp, p)| dp * p).sum();
                for ((&key, p), dp) in keys.iter().zip(&p).zip(&dp) {
                    let ds = rounded(p * (dp - mean));
                    d_table[head * DISTANCES + column(query, key)] += ds;
                    let ds = rounded(SCALE * ds);
                    for i in 0..*dim {
                        dq[at + i] += ds * k[row(key) + i];
                        dk[row(key) + i] += ds * q[at + i];
                        dv[row(key) + i] += p * d_output[at + i];
                    }
                }
            }
        }
    }
    [output, dq, dk, dv, d_table].map(|values| values.into_iter().map(rounded).collect())
}
