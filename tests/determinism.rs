//! One input, one answer, bit for bit: for any number of threads, and with two models at work at once.

mod cases;
mod common;

use cases::models::{batch, gpt2, llama, prompt};
use common::{golden, golden_cases};
use softprompt::models::ModelConfig;
use softprompt::{Batch, DType, Device, LossAndGrad, Model, ModelOptions, Tensor, WeightStorage};

const THREADS: [usize; 5] = [1, 2, 3, 4, 8];
const LENGTHS: [(usize, usize); 7] = [(7, 1), (0, 2), (13, 3), (1, 1), (24, 1), (2, 5), (19, 2)];

fn bits(result: &LossAndGrad) -> Vec<u64> {
    let by_example = result.loss.by_example.iter().map(|x| x.to_bits());
    let gradient = result.grad.to_f64_vec().unwrap().into_iter().map(f64::to_bits);
    std::iter::once(result.loss.mean.to_bits()).chain(by_example).chain(gradient).collect()
}

fn check(what: &str, open: impl Fn(&Device, ModelOptions) -> Model, rows: usize, lengths: &[(usize, usize)]) {
    for dtype in [DType::F32, DType::F64] {
        let mut first: Option<Vec<u64>> = None;
        for threads in THREADS {
            let device = Device::cpu(Some(threads)).unwrap();
            let model =
                open(&device, ModelOptions { dtype, weights: WeightStorage::Mapped, ..ModelOptions::default() });
            let (prompt, batch) = (prompt(&model, rows, 3), batch(model.config(), lengths, 4));
            for round in 0..2 {
                let found = bits(&model.loss_and_grad(&prompt, &batch).unwrap());
                let want = first.get_or_insert_with(|| found.clone());
                assert!(found == *want, "{what} {dtype}: {threads} threads, round {round} differ");
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let mut folders: Vec<String> = golden_cases().into_iter().map(|(folder, _)| folder).collect();
    folders.dedup();
    assert!(folders.len() >= 4);
    for folder in folders {
        check(&folder, |device, options| Model::open(golden(&folder), device, options).unwrap(), 5, &LENGTHS);
    }
    // Many panels, chunks of the vocabulary, tiles and groups of segments.
    let larger = ModelConfig { hidden_size: 200, intermediate_size: 410, head_dim: 34, vocab_size: 5003, ..llama(3) };
    let many: Vec<(usize, usize)> = (0..70).map(|i| (i % 7, 1 + i % 3)).collect();
    check("a larger model", |device, options| Model::random(larger.clone(), 5, device, options).unwrap(), 60, &many);
}

#[test]
fn two_models_work_side_by_side() {
    let run = |model: &Model| {
        let (prompt, batch) = (prompt(model, 9, 1), batch(model.config(), &LENGTHS, 2));
        (0..5).map(|_| bits(&model.loss_and_grad(&prompt, &batch).unwrap())).collect::<Vec<_>>()
    };
    let device = Device::cpu(Some(2)).unwrap();
    let options = ModelOptions::default();
    // Two on one device, and one of them used by two threads at once.
    let (a, b) =
        (Model::random(llama(2), 1, &device, options).unwrap(), Model::random(gpt2(2), 2, &device, options).unwrap());
    let alone = [run(&a), run(&b), run(&a)];
    let together = std::thread::scope(|scope| {
        let handles = [&a, &b, &a].map(|model| scope.spawn(move || run(model)));
        handles.map(|handle| handle.join().unwrap())
    });
    assert!(alone == together);
}

#[test]
fn what_embedders_share_is_send_and_sync() {
    fn shared<T: Send + Sync>() {}
    shared::<Model>();
    shared::<Tensor>();
    shared::<Device>();
    shared::<Batch>();
    shared::<LossAndGrad>();
    shared::<softprompt::Error>();
}
