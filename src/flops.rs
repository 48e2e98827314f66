//! The arithmetic of a step, counted: what the gradient needs and nothing else; what is computed a second time by choice is
//! not counted.
//!
//! A product of `[m, k]` and `[k, n]` counts `2 m n k`. Symbols: L layers, width d, P prompt rows, N packed example rows,
//! M = P + N, R scored rows.

use crate::layout::Layout;
use crate::models::ModelConfig;

/// A matrix product that a step computes `count` times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// The length of the sums.
    pub k: usize,
    /// How often.
    pub count: usize,
}

impl Product {
    /// Floating-point operations of all of them.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64 * self.count as f64
    }
}

/// The products with frozen matrices of one forward and backward pass over `layout`.
pub fn frozen_products(config: &ModelConfig, layout: &Layout) -> Vec<Product> {
    products(config, layout, false)
}

/// The products with matrices that are trained: each with its input, and of the result's gradient with both.
pub fn trained_products(config: &ModelConfig, layout: &Layout) -> Vec<Product> {
    products(config, layout, true)
}

fn products(config: &ModelConfig, layout: &Layout, trained: bool) -> Vec<Product> {
    let (all, scored, prompt) = (layout.rows(), layout.scored_rows.len(), layout.total_prompt_rows());
    let layers = config.num_hidden_layers;
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let gates = config.mlp_inputs();
    let mut products = Vec::new();
    for layer in 0..layers {
        let asking = if layer + 1 == layers { scored } else { all };
        // The first layer's projections send gradient to the prompt's rows alone, unless all rows are trained.
        let (back, back_asking) = if layer == 0 && !trained { (prompt, asking.min(prompt)) } else { (all, asking) };
        let mut both = |forward, backward, outputs, inputs, count| {
            products.push(Product { m: forward, n: outputs, k: inputs, count });
            products.push(Product { m: backward, n: inputs, k: outputs, count });
            if trained {
                products.push(Product { m: outputs, n: inputs, k: forward, count });
            }
        };
        both(asking, back_asking, queries, width, 1);
        both(all, back, keys, width, 2);
        both(asking, asking, width, queries, 1);
        both(asking, asking, inner, width, gates);
        both(asking, asking, width, inner, 1);
    }
    products.push(Product { m: scored, n: config.vocab_size, k: width, count: 1 });
    products.push(Product { m: scored, n: width, k: config.vocab_size, count: 1 });
    if trained {
        products.push(Product { m: config.vocab_size, n: width, k: scored, count: 1 });
    }
    merge(products)
}

fn merge(products: Vec<Product>) -> Vec<Product> {
    let mut merged: Vec<Product> = Vec::new();
    for product in products {
        match merged.iter_mut().find(|other| (other.m, other.n, other.k) == (product.m, product.n, product.k)) {
            Some(other) => other.count += product.count,
            None => merged.push(product),
        }
    }
    merged
}

/// The attention's floating-point operations of one forward and backward pass: two products forward and five backward
/// for each query and key it sees, of which the first layer needs only what reaches the prompt.
pub fn attention_flops(config: &ModelConfig, layout: &Layout) -> f64 {
    let pairs = |segments: &crate::layout::Segments| -> f64 {
        let seen = segments.as_slice().iter().map(|segment| {
            let context: usize = segment.context.iter().map(|span| span.len()).sum();
            let own: usize = segments.visible()[segment.queries.clone()].iter().sum();
            segment.queries.len() * context + own
        });
        seen.sum::<usize>() as f64
    };
    let per_pair = 2.0 * (config.head_dim * config.num_attention_heads) as f64;
    let middle = config.num_hidden_layers.saturating_sub(1) as f64;
    per_pair * 7.0 * (middle * pairs(&layout.all) + pairs(&layout.scored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Batch;

    #[test]
    fn trained_matrices_have_a_third_product_and_the_first_layer_a_whole_backward_pass() {
        for name in ["gpt2", "smollm2-135m"] {
            let config = ModelConfig::named(name).unwrap();
            let mut batch = Batch::new();
            batch.push(&[1, 2, 3], &[4, 5]).unwrap();
            batch.push(&[1, 2, 3, 4, 5, 6], &[7]).unwrap();
            let layout = batch.layout(0).unwrap();
            let total = |products: Vec<Product>| products.iter().map(Product::flops).sum::<f64>();
            let frozen = total(frozen_products(&config, &layout));
            let trained = total(trained_products(&config, &layout));
            // Worked by hand: each matrix's elements times the rows it is applied to, which are fewer in the last layer.
            let (rows, scored) = (10.0, 3.0);
            let (width, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
            let queries = (config.num_attention_heads * config.head_dim) as f64;
            let keys = (config.num_key_value_heads * config.head_dim) as f64;
            let in_mlp = (config.mlp_inputs() + 1) as f64;
            let (kept, rest) = (2.0 * width * keys, width * (2.0 * queries + in_mlp * inner));
            let last = rows * kept + scored * rest;
            let layers = (config.num_hidden_layers - 1) as f64 * rows * (kept + rest) + last;
            let forward = 2.0 * (layers + scored * width * config.vocab_size as f64);
            assert!((trained / (3.0 * forward) - 1.0).abs() < 1e-12, "{name}: {trained} and {forward}");
            // Without a prompt, nothing goes back through the first layer's projections of frozen weights.
            let spared = 2.0 * rows * (kept + width * queries);
            assert!((frozen / (2.0 * forward - spared) - 1.0).abs() < 1e-12, "{name}: {frozen} and {forward}");
        }
    }
}
