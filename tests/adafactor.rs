//! Adafactor, step by step, against T5X's formulas in float64 (`golden/make_adafactor.py`).

mod common;

use common::{Golden, close, golden};
use softprompt::device::Kind;
use softprompt::optim::{AdafactorConfig, Optimizer, OptimizerConfig};
use softprompt::{DType, Device, Tensor};

struct Case<'a> {
    name: &'a str,
    file: &'a Golden,
    dtype: DType,
    config: AdafactorConfig,
    lr: f64,
}

impl<'a> Case<'a> {
    fn read(name: &'a str, file: &'a Golden, dtype: DType) -> Self {
        let constants = file.numbers(&format!("{name}.constants"));
        let [decay_exponent, eps, clip_threshold, weight_decay, lr, offset, min_dim, scale] = constants[..] else {
            panic!("{name}: {constants:?}")
        };
        let (step_offset, min_dim_factored) = (offset as u64, min_dim as usize);
        let parameter_scale = (scale > 0.0).then_some(scale);
        let config = AdafactorConfig {
            decay_exponent,
            eps,
            clip_threshold,
            weight_decay,
            min_dim_factored,
            step_offset,
            parameter_scale,
        };
        Self { name, file, dtype, config, lr }
    }

    fn numbers(&self, key: &str) -> Vec<f64> {
        self.file.numbers(&format!("{}.{key}", self.name))
    }

    fn tensor(&self, key: &str) -> Tensor {
        let shape = self.file.shape(&format!("{}.{key}", self.name));
        let device = Device::cpu(Some(1)).unwrap();
        Tensor::from_f64(&device, shape[0], shape[1], self.dtype, &self.numbers(key), Kind::Optimizer).unwrap()
    }

    fn check(&self) {
        let tolerance = if self.dtype == DType::F64 { 1e-12 } else { 2e-5 };
        let mut params = self.tensor("p");
        let mut optimizer = Optimizer::new(&OptimizerConfig::Adafactor(self.config.clone()), &params).unwrap();
        for step in 0.. {
            let key = |name: &str| format!("{step}.{name}");
            if !self.file.has(&format!("{}.{}", self.name, key("g"))) {
                assert_eq!(step, 6, "{}: steps", self.name);
                break;
            }
            let before = params.to_f64_vec().unwrap();
            optimizer.step(&mut params, &self.tensor(&key("g")), self.lr).unwrap();
            let after = params.to_f64_vec().unwrap();
            let what = |name: &str| format!("{} {} step {step}: {name}", self.name, self.dtype);

            // β, by what it makes of the second moment; then the second moment itself.
            let state = optimizer.state().unwrap();
            let moments: Vec<_> = state.iter().filter(|(name, _)| name != "step").collect();
            assert_eq!(moments.len(), if self.file.has(&format!("{}.0.v_row", self.name)) { 2 } else { 1 });
            for (name, values) in moments {
                let (got, want) = (values.to_vec::<f64>(), self.numbers(&key(name)));
                for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                    // Relative: a row's numbers may be far below another's. In f32 ε may be below what can be told.
                    let error = (got - want).abs() / want.abs().max(1e-35);
                    assert!(error <= tolerance, "{}[{at}]: got {got}, want {want}", what(name));
                }
                assert_eq!(got.len(), want.len());
            }
            // The clipped update, from how the parameters moved; then the parameters.
            let keep = 1.0 - self.config.weight_decay;
            let lr = self.lr * self.numbers(&key("z"))[0];
            let update: Vec<f64> = before.iter().zip(&after).map(|(p, q)| (keep * p - q) / lr).collect();
            close(&what("y"), &update, &self.numbers(&key("y")), 10.0 * tolerance);
            let rms = self.numbers(&key("rms"))[0];
            let largest = self.numbers(&key("u")).iter().fold(0f64, |a, u| a.max(u.abs()));
            let clipped = largest / (rms / self.config.clip_threshold).max(1.0);
            close(&what("RMS"), &[update.iter().fold(0f64, |a, y| a.max(y.abs()))], &[clipped], 10.0 * tolerance);
            close(&what("p"), &after, &self.numbers(&key("p")), tolerance);
        }
    }
}

#[test]
fn every_step_is_t5xs() {
    let file = Golden::read(&golden("adafactor.safetensors"));
    let mut names: Vec<String> =
        file.names().iter().filter_map(|name| Some(name.strip_suffix(".constants")?.to_string())).collect();
    names.sort();
    assert_eq!(names.len(), 11, "{names:?}");
    for name in &names {
        for dtype in [DType::F64, DType::F32] {
            Case::read(name, &file, dtype).check();
        }
    }
}
