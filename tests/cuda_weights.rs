//! Full fine-tuning on a GPU: whole models' weight gradients against the CPU's, whatever is recomputed; steps that move the
//! weights, also where they become graphs; and that no bit depends on the order of blocks.

mod cases;
#[path = "common/cuda.rs"]
mod gpu;

use cases::models::{batch, gpt2, llama, qwen2, t5, t5_v11};
use gpu::{cuda, cuda_with};
use softprompt::device::{CudaOptions, Kind, Matmul};
use softprompt::models::{ModelConfig, Recompute};
use softprompt::ops::Activation;
use softprompt::optim::{AdafactorConfig, AdamWConfig, OptimizerConfig, WeightOptimizer, clip_factor, grad_norm};
use softprompt::{DType, Device, Model, ModelOptions, Tensor};

/// One example has a single input token; ids repeat.
const LENGTHS: [(usize, usize); 4] = [(3, 2), (1, 4), (40, 1), (2, 2)];

fn open(config: &ModelConfig, device: &Device, dtype: DType, recompute: Recompute) -> Model {
    let options = ModelOptions { dtype, recompute, trainable: true, ..ModelOptions::default() };
    Model::random(config.clone(), 5, device, options).unwrap()
}

fn values(tensors: &[Tensor]) -> Vec<Vec<f64>> {
    tensors.iter().map(|tensor| tensor.to_f64_vec().unwrap()).collect()
}

/// `Σ (a−b)² / Σ b²` of all together.
fn squared_error(got: &[Vec<f64>], want: &[Vec<f64>]) -> f64 {
    let pairs = || {
        got.iter().zip(want).flat_map(|(got, want)| {
            assert_eq!(got.len(), want.len());
            got.iter().zip(want)
        })
    };
    pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>() / pairs().map(|(_, b)| b * b).sum::<f64>()
}

#[test]
fn every_weights_gradient_is_the_cpus() {
    let (cpu, gpu) = (Device::cpu(Some(1)).unwrap(), cuda());
    let own = cuda_with(CudaOptions { matmul: Matmul::Own, pooled: gpu::is_real(), ..CudaOptions::default() });
    for config in [llama(3), qwen2(2), gpt2(2), t5(2), t5_v11(1)] {
        let batch = batch(&config, &LENGTHS, 3);
        let model = open(&config, &cpu, DType::F64, Recompute::None);
        let want = model.loss_and_weight_grads(&batch).unwrap();
        let wanted = values(&want.grads);
        // In bf16 what is near 0 may fall on the other side of a ReLU's kink.
        let most_bf16 = if config.activation == Activation::Relu { 1e-2 } else { 1e-3 };
        for (device, dtype, most_loss, most) in
            [(&gpu, DType::F32, 1e-6, 1e-12), (&own, DType::F32, 1e-6, 1e-12), (&gpu, DType::BF16, 1e-2, most_bf16)]
        {
            let what = format!("{:?} {dtype}", config.family);
            let model = open(&config, device, dtype, Recompute::None);
            let found = model.loss_and_weight_grads(&batch).unwrap();
            assert!((found.loss.mean - want.loss.mean).abs() <= most_loss * want.loss.mean, "{what}");
            let got = values(&found.grads);
            let error = squared_error(&got, &wanted);
            println!("{what}: normalised squared error {error:e}");
            assert!(error <= most, "{what}: {error:e}");
            // Of each by itself, where it is not lost among the large ones.
            let size = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>();
            let largest = wanted.iter().map(|values| size(values)).fold(0.0, f64::max);
            for ((parameter, got), want) in model.parameters().iter().zip(&got).zip(&wanted) {
                assert_eq!(parameter.value().dtype(), dtype);
                let one = |values: &[f64]| [values.to_vec()];
                if size(want) > 1e-6 * largest {
                    let error = squared_error(&one(got), &one(want));
                    assert!(error <= 10.0 * most, "{what} {}: {error:e}", parameter.place().name);
                }
            }
        }
    }
}

#[test]
fn recomputing_changes_no_bit_and_parts_of_a_batch_add_up() {
    let device = cuda();
    for config in [llama(3), gpt2(3), t5(2), t5_v11(2)] {
        for dtype in [DType::F32, DType::BF16] {
            let whole = batch(&config, &LENGTHS, 3);
            let grads = |recompute| {
                let model = open(&config, &device, dtype, recompute);
                device.reset_peak();
                let grads = values(&model.loss_and_weight_grads(&whole).unwrap().grads);
                (grads, device.memory().peak(Kind::SavedActivations))
            };
            let (want, most) = grads(Recompute::None);
            let mut peak = most;
            for recompute in [Recompute::Mlp, Recompute::Layer] {
                let (got, saved) = grads(recompute);
                assert!(got == want, "{:?} {dtype} {recompute:?}", config.family);
                assert!(saved < peak, "{recompute:?} keeps {saved} bytes, {peak} before");
                peak = saved;
            }
            let model = open(&config, &device, dtype, Recompute::None);
            let examples = cases::models::examples(&config, &LENGTHS, 3);
            let mut grads = Vec::new();
            for part in examples.chunks(3) {
                let part = cases::models::batch_of(part);
                grads = model.loss_and_weight_grads_of_part(&part, whole.label_tokens(), grads).unwrap().grads;
            }
            let error = squared_error(&values(&grads), &want);
            let most = if dtype == DType::F32 { 1e-12 } else { 1e-4 };
            assert!(error < most, "{:?} {dtype}: {error:e}", config.family);
        }
    }
    assert_eq!(device.memory().current_total(), 0, "what models held is given back");
}

fn adamw() -> OptimizerConfig {
    OptimizerConfig::AdamW(AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() })
}

/// Weights after steps over batches of one shape with other tokens, with one of another shape between them, and
/// the losses on the way.
fn trained(device: &Device, config: &ModelConfig, dtype: DType, optimizer: &OptimizerConfig) -> Vec<f64> {
    let model = open(config, device, dtype, Recompute::Mlp);
    let mut optimizer = WeightOptimizer::new(optimizer, model.parameters()).unwrap();
    let mut numbers = Vec::new();
    for step in 0..9 {
        let lengths: &[(usize, usize)] = if step == 6 { &[(3, 1), (9, 2)] } else { &[(6, 2), (6, 1), (5, 2)] };
        let found = model.loss_and_weight_grads(&batch(config, lengths, 10 + step)).unwrap();
        let factor = clip_factor(grad_norm(&found.grads).unwrap(), 1.0);
        optimizer.step(found.grads, 0.01, factor).unwrap();
        numbers.push(found.loss.mean);
    }
    let weights: Vec<Tensor> = model.parameters().iter().map(|parameter| parameter.value()).collect();
    numbers.extend(values(&weights).concat());
    numbers
}

#[test]
fn steps_that_move_weights_are_the_cpus_and_the_same_as_graphs() {
    let cpu = Device::cpu(Some(1)).unwrap();
    for config in [llama(2), gpt2(1), t5(1), t5_v11(1)] {
        for dtype in [DType::F32, DType::BF16] {
            let options = CudaOptions { pooled: true, graphs: true, ..CudaOptions::default() };
            let (with, without) = (cuda_with(options), cuda_with(CudaOptions { graphs: false, ..options }));
            let got = trained(&with, &config, dtype, &adamw());
            assert!(got == trained(&without, &config, dtype, &adamw()), "{:?} {dtype}", config.family);
            let launches = |device: &Device| match device {
                Device::Cuda(gpu) => gpu.graph_launches(),
                Device::Cpu(_) => unreachable!(),
            };
            println!("{:?} {dtype}: {} of 9 steps were a graph", config.family, launches(&with));
            assert!(launches(&with) >= 3, "{} of 9 steps were a graph", launches(&with));
            assert_eq!(launches(&without), 0);
            assert_eq!(with.memory().current_total(), 0, "all memory is given back");
            let want = trained(&cpu, &config, if dtype == DType::F32 { dtype } else { DType::F64 }, &adamw());
            // A first step of Adam goes by the sign of a gradient, so one near 0 may go the other way.
            let (most_loss, most) = if dtype == DType::F32 { (1e-5, 1e-6) } else { (2e-2, 5e-2) };
            for (got, want) in got[..9].iter().zip(&want[..9]) {
                assert!((got - want).abs() <= most_loss * want, "{:?} {dtype}: {got} {want}", config.family);
            }
            let error = squared_error(&[got[9..].to_vec()], &[want[9..].to_vec()]);
            println!("{:?} {dtype}: weights after 9 steps off by {error:e}", config.family);
            assert!(error <= most, "{:?} {dtype}: {error:e}", config.family);
        }
    }
}

#[test]
fn adafactor_moves_weights_as_on_the_cpu() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let constants = AdafactorConfig { min_dim_factored: 16, parameter_scale: Some(1e-3), ..AdafactorConfig::default() };
    let adafactor = OptimizerConfig::Adafactor(constants);
    for dtype in [DType::F32, DType::BF16] {
        let device = cuda();
        let got = trained(&device, &llama(2), dtype, &adafactor);
        let want = trained(&cpu, &llama(2), if dtype == DType::F32 { dtype } else { DType::F64 }, &adafactor);
        let (most_loss, most) = if dtype == DType::F32 { (1e-5, 1e-7) } else { (2e-2, 5e-3) };
        for (got, want) in got[..9].iter().zip(&want[..9]) {
            assert!((got - want).abs() <= most_loss * want, "{dtype}: {got} {want}");
        }
        let error = squared_error(&[got[9..].to_vec()], &[want[9..].to_vec()]);
        println!("{dtype}: weights after 9 steps of Adafactor off by {error:e}");
        assert!(error <= most, "{dtype}: {error:e}");
    }
}

#[test]
fn weights_and_gradients_are_counted_and_a_step_waits_for_its_loss_and_its_norm() {
    let device = cuda();
    let Device::Cuda(gpu) = &device else { unreachable!() };
    for (config, dtype) in [llama(2), t5(1)].into_iter().flat_map(|c| [(c.clone(), DType::F32), (c, DType::BF16)]) {
        let model = open(&config, &device, dtype, Recompute::None);
        let elements: usize = model.parameters().iter().map(|parameter| parameter.value().len()).sum();
        assert_eq!(device.memory().current(Kind::Weights), elements * dtype.size());
        let batch = batch(model.config(), &LENGTHS, 3);
        // Tables that stay are made by the first step.
        drop(model.loss_and_weight_grads(&batch).unwrap());
        let adamw = OptimizerConfig::AdamW(AdamWConfig::default());
        let mut optimizer = WeightOptimizer::new(&adamw, model.parameters()).unwrap();
        let waited = gpu.synchronizations();
        let found = model.loss_and_weight_grads(&batch).unwrap();
        assert_eq!(device.memory().current(Kind::Gradients), elements * dtype.size());
        assert_eq!(gpu.synchronizations() - waited, 1, "only the loss is waited for");
        let factor = clip_factor(grad_norm(&found.grads).unwrap(), 1.0);
        optimizer.step(found.grads, 0.01, factor).unwrap();
        assert_eq!(gpu.synchronizations() - waited, 2, "and one norm of all gradients");
        let copies = if dtype == DType::BF16 { 3 } else { 2 };
        assert_eq!(device.memory().current(Kind::Optimizer), copies * elements * 4, "{dtype}");
        assert_eq!(device.memory().current(Kind::Gradients), 0);
    }
}

/// A hash of the bits of a few steps, printed for [`no_bit_depends_on_the_order_of_blocks`].
#[test]
fn print_bits() {
    let device = cuda();
    let mut bits = Vec::new();
    for config in [qwen2(2), gpt2(2), t5(1), t5_v11(1)] {
        for dtype in [DType::F32, DType::BF16] {
            let model = open(&config, &device, dtype, Recompute::Layer);
            let batch = batch(&config, &LENGTHS, 3);
            let steps = [(); 2].map(|()| {
                let found = model.loss_and_weight_grads(&batch).unwrap();
                let numbers = std::iter::once(found.loss.mean).chain(values(&found.grads).concat());
                numbers.flat_map(|x| x.to_bits().to_le_bytes()).collect::<Vec<u8>>()
            });
            assert!(steps[0] == steps[1], "{:?} {dtype}: two steps of one input differ", config.family);
            bits.extend(&steps[0]);
        }
    }
    println!("bits {}", softprompt::values::sha256_hex(&bits));
}

#[test]
fn no_bit_depends_on_the_order_of_blocks() {
    gpu::assert_order_of_blocks_changes_no_bit();
}
