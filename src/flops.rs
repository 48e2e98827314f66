//! The arithmetic of a step, counted: what the gradient needs and nothing else; what is computed a second time by choice is
//! not counted.
//!
//! A product of `[m, k]` and `[k, n]` counts `2 m n k`. Symbols: L layers, width d, P prompt rows, N packed example rows,
//! M = P + N, R scored rows.

use crate::layout::{Layout, Segments};
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

/// The products of one step, as they are found.
struct Found {
    trained: bool,
    products: Vec<Product>,
}

impl Found {
    /// A matrix from `inputs` to `outputs` on `forward` rows, `backward` of which send gradient on; `count` times.
    fn add(&mut self, forward: usize, backward: usize, outputs: usize, inputs: usize, count: usize) {
        self.products.push(Product { m: forward, n: outputs, k: inputs, count });
        self.products.push(Product { m: backward, n: inputs, k: outputs, count });
        if self.trained {
            self.products.push(Product { m: outputs, n: inputs, k: forward, count });
        }
    }

    /// The layers of a stack over `rows` rows, of which `asking` are read behind the last layer and the first `prompt` carry
    /// gradient in front of the first; `encoded` rows are seen by cross-attention, where there is any.
    fn stack(
        &mut self,
        config: &ModelConfig,
        layers: usize,
        [rows, asking, prompt]: [usize; 3],
        encoded: Option<usize>,
    ) {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        for layer in 0..layers {
            let asking = if layer + 1 == layers { asking } else { rows };
            // The first layer's projections send gradient to the prompt's rows alone, unless all rows are trained.
            let is_first = layer == 0 && !self.trained;
            let (back, back_asking) = if is_first { (prompt, asking.min(prompt)) } else { (rows, asking) };
            // Behind attention every row carries gradient, if any did before.
            let spread = if back > 0 { asking } else { 0 };
            self.add(asking, back_asking, queries, width, 1);
            self.add(rows, back, keys, width, 2);
            self.add(asking, if encoded.is_some() { spread } else { asking }, width, queries, 1);
            if let Some(encoded) = encoded {
                self.add(asking, spread, queries, width, 1);
                self.add(encoded, encoded, keys, width, 2);
                self.add(asking, asking, width, queries, 1);
            }
            self.add(asking, asking, inner, width, config.mlp_inputs());
            self.add(asking, asking, width, inner, 1);
        }
    }
}

fn products(config: &ModelConfig, layout: &Layout, trained: bool) -> Vec<Product> {
    let scored = layout.scored_rows.len();
    let stream = [layout.rows(), scored, layout.total_prompt_rows()];
    let mut found = Found { trained, products: Vec::new() };
    match (&layout.encoder, config.encoder_decoder) {
        (Some(encoder), Some(more)) => {
            let rows = encoder.positions.len();
            found.stack(config, config.num_hidden_layers, [rows, rows, encoder.prompt_index.len()], None);
            found.stack(config, more.num_decoder_layers, stream, Some(rows));
        }
        _ => found.stack(config, config.num_hidden_layers, stream, None),
    }
    let (width, vocabulary) = (config.hidden_size, config.vocab_size);
    found.add(scored, scored, vocabulary, width, 1);
    merge(found.products)
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
    let pairs = |segments: &Segments| -> f64 {
        let seen = segments.as_slice().iter().map(|segment| {
            let context: usize = segment.context.iter().map(|span| span.len()).sum();
            let own: usize = segments.visible()[segment.queries.clone()].iter().sum();
            segment.queries.len() * context + own
        });
        seen.sum::<usize>() as f64
    };
    let per_pair = 2.0 * (config.head_dim * config.num_attention_heads) as f64;
    let of_stack =
        |layers: usize, all: &Segments, scored: &Segments| layers.saturating_sub(1) as f64 * pairs(all) + pairs(scored);
    let mut seen = match config.encoder_decoder {
        Some(more) => of_stack(more.num_decoder_layers, &layout.all, &layout.scored),
        None => of_stack(config.num_hidden_layers, &layout.all, &layout.scored),
    };
    if let (Some(encoder), Some(cross), Some(more)) = (&layout.encoder, &layout.cross, config.encoder_decoder) {
        seen += config.num_hidden_layers as f64 * pairs(&encoder.all);
        seen += of_stack(more.num_decoder_layers, &cross.all, &cross.scored);
    }
    per_pair * 7.0 * seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Batch;

    #[test]
    fn an_encoder_decoder_has_two_stacks() {
        let config = ModelConfig::named("t5-small").unwrap();
        let mut batch = Batch::new();
        batch.push(&[1, 2, 3], &[4, 5]).unwrap();
        batch.push(&[1, 2, 3, 4, 5, 6], &[7]).unwrap();
        let place = crate::layout::PromptPlace::default();
        let layout = Batch::encoder_decoder_layout(&[&batch], &[4], place, 0).unwrap();
        let total = |products: Vec<Product>| products.iter().map(Product::flops).sum::<f64>();
        // Worked by hand: 9 tokens and 4 prompt rows each on the encoder, 3 on the decoder.
        let (encoder, decoder) = (9.0 + 2.0 * 4.0, 3.0);
        let (attention, mlp) = (4.0 * 512.0 * 512.0, 2.0 * 512.0 * 2048.0);
        let cross = decoder * attention / 2.0 + encoder * attention / 2.0;
        let layers = 6.0 * (encoder * (attention + mlp) + decoder * (attention + mlp) + cross);
        let forward = 2.0 * (layers + decoder * 512.0 * 32_128.0);
        assert!((total(trained_products(&config, &layout)) / (3.0 * forward) - 1.0).abs() < 1e-12);
        // To the prompt nothing goes through the first projections of texts, nor through the decoder's first attention and
        // what asks of the encoder behind it.
        let spared = 2.0 * (9.0 * 0.75 * attention + decoder * (attention + attention / 4.0));
        assert!((total(frozen_products(&config, &layout)) / (2.0 * forward - spared) - 1.0).abs() < 1e-12);
    }

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
