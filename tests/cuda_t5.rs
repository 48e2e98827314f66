//! Encoder–decoders on a GPU: losses and prompt gradients against what PEFT and transformers compute in float64, and what
//! they write.

mod common;
#[path = "common/cuda.rs"]
mod gpu;

use common::t5::{Case, part, rows};
use common::{Golden, close_absolute, golden, golden_meta, golden_t5_cases};
use gpu::{cuda, cuda_with, squared_error};
use softprompt::device::{CudaOptions, Matmul};
use softprompt::generate::{Generator, Sampling};
use softprompt::models::Recompute;
use softprompt::{DType, Device, ModelOptions};

fn options(dtype: DType) -> ModelOptions {
    ModelOptions { dtype, ..ModelOptions::default() }
}

/// Two models in every case, the others in the main one. `factor`: how many times the reference's own float32 error f32 may
/// be off.
fn check_golden(device: &Device, factor: f64, dtypes: &[DType]) {
    let cases = golden_t5_cases().into_iter();
    let cases = cases.filter(|(name, case)| case == "main" || ["t5_v10", "t5_buckets"].contains(&name.as_str()));
    let cases: Vec<_> = cases.collect();
    assert!(cases.len() >= 6 + 2 * 10, "golden files are missing: {cases:?}");
    for (name, case) in cases {
        // What is lost where f32 weights are rounded to bf16 is no error of ours.
        let is_exact = |dtype| dtype == DType::F32 || golden_meta(&name).unwrap()["weights_dtype"] == "torch.bfloat16";
        for &dtype in dtypes.iter().filter(|&&dtype| is_exact(dtype)) {
            let found = Case::open_on(device, &name, &case, options(dtype));
            let loss = found.file.numbers(&format!("{case}.losses_f64"))[0];
            let want = found.file.numbers(&format!("{case}.grad_f64"));
            let result = found.model.loss_and_grad(&found.prompt, &found.batch).unwrap();
            let (what, grad) = (&found.what, result.grad.to_f64_vec().unwrap());
            if dtype == DType::F32 {
                let unit = f64::from(f32::EPSILON);
                let allowed = factor * found.number("f32_peft_loss_abs_diff").max(loss * unit);
                close_absolute(&format!("{what} loss"), &[result.loss.mean], &[loss], allowed);
                let largest = found.number("grad_max_abs");
                let allowed = factor * found.number("f32_peft_grad_max_abs_diff").max(2.0 * largest * unit);
                close_absolute(&format!("{what} gradient"), &grad, &want, allowed);
            } else {
                // As of causal models in bf16.
                close_absolute(&format!("{what} loss"), &[result.loss.mean], &[loss], 0.01 * loss);
                let error = squared_error(&grad, &want);
                println!("{what}: normalised squared error of the gradient {error:e}");
                assert!(error < 1e-2, "{what}: normalised squared error of the gradient {error:e}");
            }
        }
    }
}

#[test]
fn losses_and_gradients_are_those_of_peft_and_transformers() {
    // The library adds in an order of its own.
    check_golden(&cuda(), 8.0, &[DType::F32, DType::BF16]);
}

#[test]
fn losses_and_gradients_without_cublaslt_are_those_of_peft_and_transformers() {
    check_golden(&cuda_with(CudaOptions { matmul: Matmul::Own, ..CudaOptions::default() }), 8.0, &[DType::F32]);
}

#[test]
fn recomputing_changes_no_bit() {
    let device = cuda();
    for dtype in [DType::F32, DType::BF16] {
        let of = |recompute| {
            let found = Case::open_on(&device, "t5_v11", "on_both", ModelOptions { recompute, ..options(dtype) });
            let result = found.model.loss_and_grad(&found.prompt, &found.batch).unwrap();
            (result.loss.mean.to_bits(), result.grad.to_f64_vec().unwrap())
        };
        let plain = of(Recompute::None);
        assert_eq!(of(Recompute::Mlp), plain);
        assert_eq!(of(Recompute::Layer), plain);
    }
}

#[test]
fn gradients_of_all_weights_are_those_of_pytorch() {
    for name in ["t5_v10", "t5_v11"] {
        let want = Golden::read(&golden(name).join("weight_grads.safetensors"));
        let trainable = ModelOptions { trainable: true, ..options(DType::F32) };
        let found = Case::open_on(&cuda(), name, "main", trainable);
        let result = found.model.loss_and_weight_grads(&found.batch).unwrap();
        close_absolute(name, &[result.loss.mean], &want.numbers("loss"), 1e-6);
        // The library adds in an order of its own.
        let allowed = 8.0 * want.numbers("f32_error")[0];
        for (parameter, grad) in found.model.parameters().iter().zip(&result.grads) {
            let what = format!("{name} {}", parameter.place().name);
            close_absolute(&what, &grad.to_f64_vec().unwrap(), &part(&want, "grad", parameter), allowed);
        }
    }
}

#[test]
fn what_is_written_is_what_a_cpu_writes() {
    for case in ["main", "on_both"] {
        let write = |device: &Device| {
            let found = Case::open_on(device, "t5_buckets", case, options(DType::F32));
            let inputs: Vec<Vec<u32>> = rows(&found.file, case).into_iter().map(|(input, _)| input).collect();
            let inputs: Vec<&[u32]> = inputs.iter().map(Vec::as_slice).collect();
            let generator = Generator::new(&found.model, &found.prompt).unwrap();
            generator.generate(&inputs, 8, Sampling::GREEDY, &mut |_| false).unwrap()
        };
        assert_eq!(write(&cuda()), write(&Device::cpu(Some(2)).unwrap()));
    }
}
