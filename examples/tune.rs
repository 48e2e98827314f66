//! The engine in a training loop of one's own: `cargo run --release --example tune -- MODEL`.

use softprompt::optim::{AdamWConfig, Optimizer, OptimizerConfig};
use softprompt::{Batch, Device, Model, ModelOptions};

fn main() -> softprompt::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "demo/cache/SmolLM2-135M-Instruct.Q4_1.gguf".into());
    let model = Model::open(path, &Device::cpu(None)?, ModelOptions::default())?;
    let tokenizer = model.require_tokenizer()?;

    let mut batch = Batch::new();
    for (input, target) in [("Sky:", " blue"), ("Grass:", " green"), ("Blood:", " red"), ("Snow:", " white")] {
        batch.push(&tokenizer.encode(input)?, &tokenizer.encode(target)?)?;
    }
    // Four rows, started from the embedding of a word that suits the task.
    let rows = 4;
    let mut prompt = model.prompt_from(rows, &model.embedding_row(tokenizer.encode(" colour")?[0])?.repeat(rows))?;
    let mut optimizer = Optimizer::new(&OptimizerConfig::AdamW(AdamWConfig::default()), &prompt)?;
    for step in 0..20 {
        let result = model.loss_and_grad(&prompt, &batch)?;
        println!("step {step:2}  loss {:.4}", result.loss.mean);
        optimizer.step(&mut prompt, &result.grad, 1e-2)?;
    }
    Ok(())
}
