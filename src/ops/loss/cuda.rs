//! `cross_entropy` on a GPU: `kernels/loss.cu` between two matrix products, a chunk of the vocabulary after another; where
//! the head is trained a chunk of the rows.

use super::Found;
use crate::device::{Arg, Buffer, CudaDevice, Grid, Kind};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::indices;
use crate::ops::gemm::Product;
use crate::ops::gemm::cuda::{Block, matmul, weight_product, widen};
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use crate::weights::{Matrix, Resident};
use std::ops::Range;

/// Logits held at once, at most, unless a chunk of [`MIN_CHUNK`] tokens has more.
const MAX_LOGITS: usize = 4 * 1024 * 1024;
/// Tokens of a chunk, at most: more would not keep a GPU any busier.
const MAX_CHUNK: usize = 16 * 1024;
const MIN_CHUNK: usize = 512;
/// Elements of a chunk of a head that has to be widened, at most, unless a chunk of [`MIN_CHUNK`] tokens has more.
const MAX_WIDENED: usize = 16 * 1024 * 1024;

/// Tokens of a chunk for so many rows, `most` at most unless that is too few.
fn chunk(rows: usize, vocabulary: usize, most: usize) -> usize {
    (MAX_LOGITS / rows.max(1)).min(most).max(MIN_CHUNK).min(vocabulary)
}

/// Tokens of a chunk where the head is held in the type computed in.
pub(crate) fn plain_chunk(rows: usize, vocabulary: usize) -> usize {
    chunk(rows, vocabulary, MAX_CHUNK)
}

/// Threads of a block of `loss.cu`.
const THREADS: u32 = 256;
/// `struct Running`: a double and two floats.
const RUNNING_BYTES: usize = 16;

/// The loss of row `i` predicting `labels[i]`, each row counting `scales[i]`.
pub(super) fn cross_entropy(
    cuda: &CudaDevice,
    hidden: &Tensor,
    head: &Matrix,
    labels: &[u32],
    scales: &[f64],
    with_gradient: bool,
) -> Result<Found> {
    let (device, dtype, rows, width) = (hidden.device(), hidden.dtype(), hidden.rows(), hidden.cols());
    let scratch = |rows, cols, dtype| Tensor::scratch(device, rows, cols, dtype, Kind::Workspace);
    let labels = as_indices(cuda, labels.iter().map(|&label| label as usize))?;
    let scales = Tensor::from_f64(device, rows, 1, DType::F32, scales, Kind::Workspace)?;
    let held = head.on(cuda, dtype)?;
    let mut walk = Walk::new(cuda, hidden, head, &held);
    let mut picked = scratch(rows, 1, DType::F32);
    let mut sums = with_gradient.then(|| scratch(rows, width, DType::F32));
    // Of a head that is widened chunk by chunk, the labels' rows are kept on the way.
    let is_widened = matches!(*held, Resident::Stored { .. });
    let mut label_rows = (with_gradient && is_widened).then(|| scratch(rows, width, dtype));
    while let Some(tokens) = walk.next() {
        let panel = walk.panel(&tokens)?;
        walk.find_logits(panel.block(), &tokens)?;
        walk.normalise(&tokens, sums.as_mut(), Some((&labels, &mut picked)))?;
        if let Some(sums) = &mut sums {
            walk.add_to(sums, panel.block(), &tokens)?;
        }
        if let (Some(target), Panel::Widened(panel)) = (&mut label_rows, &panel) {
            let args = [
                Arg::tensor_mut(target), // T* target
                Arg::tensor(panel),      // const T* panel
                Arg::buffer(&labels),    // const int* labels
                Arg::int(tokens.start),  // int start
                Arg::int(tokens.len()),  // int tokens
                Arg::int(width),         // int width
            ];
            // SAFETY: the target has a row for each of `rows` labels; the panel holds the rows of `tokens`.
            unsafe { cuda.kernel("loss", "loss_label_rows", dtype)?.run(Grid::new(rows, THREADS), &args) }?;
        }
    }
    let mut loss = Tensor::zeros(device, 1, 1, DType::F32, Kind::Workspace);
    let nll = find_nll(cuda, &walk.running, &picked, None, Some((&mut loss, &scales)))?;
    let gradient = match (&sums, &label_rows, &*held) {
        (Some(sums), Some(rows), _) => Some(walk.finish(sums, rows, None, &scales)?),
        (Some(sums), None, Resident::Plain(head)) => Some(walk.finish(sums, head, Some(&labels), &scales)?),
        _ => None,
    };
    Ok(Found { loss, nll, gradient, head_gradient: None })
}

/// [`cross_entropy`] with the gradient of the head, which is held in the type of `hidden`: rows are taken as many at a time
/// as make `at_once` logits. The head's gradient is summed in f32 where that takes more than one chunk.
pub(super) fn cross_entropy_trained(
    cuda: &CudaDevice,
    hidden: &Tensor,
    head: &Matrix,
    labels: &[u32],
    scales: &[f64],
    at_once: usize,
) -> Result<Found> {
    let (device, dtype, rows, width) = (hidden.device(), hidden.dtype(), hidden.rows(), hidden.cols());
    let vocabulary = head.out_features();
    let labels = as_indices(cuda, labels.iter().map(|&label| label as usize))?;
    let scales = Tensor::from_f64(device, rows, 1, DType::F32, scales, Kind::Workspace)?;
    let held = head.on(cuda, dtype)?;
    let Resident::Plain(weights) = &*held else {
        return Err(Error::op("cross_entropy", format!("a trained head in {dtype}"), "one as it is stored"));
    };
    let taken = (at_once / vocabulary.max(1)).clamp(1, rows.max(1));
    let ld = vocabulary.next_multiple_of(4);
    let mut logits = device.allocate(taken.min(rows) * ld * size_of::<f32>(), Kind::Workspace);
    let mut running = device.allocate(rows * RUNNING_BYTES, Kind::Workspace);
    let mut picked = Tensor::scratch(device, rows, 1, DType::F32, Kind::Workspace);
    let mut gradient = Tensor::scratch(device, rows, width, dtype, Kind::Gradients);
    let sum_dtype = if rows > taken { DType::F32 } else { dtype };
    let mut head_gradient = match rows {
        0 => Tensor::zeros(device, vocabulary, width, sum_dtype, Kind::Gradients),
        _ => Tensor::scratch(device, vocabulary, width, sum_dtype, Kind::Gradients),
    };
    let weights = Block::rows(weights, 0..vocabulary);
    for start in (0..rows).step_by(taken) {
        let range = start..(start + taken).min(rows);
        let h = Block::rows(hidden, range.clone());
        let found = Block::within(&logits, range.len(), vocabulary, ld, DType::F32);
        // SAFETY: the logits are this function's own, and what used them before is earlier in the stream.
        unsafe { matmul(cuda, found, Accumulate::Replace, h, weights, Product::Transposed, None) }?;
        let args = [
            Arg::buffer_mut(&mut logits),  // float* logits
            Arg::buffer_mut(&mut running), // Running* running
            Arg::tensor_mut(&mut picked),  // float* picked
            Arg::buffer(&labels),          // const int* labels
            Arg::tensor(&scales),          // const float* scales
            Arg::int(start),               // int first_row
            Arg::int(vocabulary),          // int tokens
            Arg::int(ld),                  // int ld
        ];
        // SAFETY: the logits have `ld` ≥ `tokens` floats for each row of the range; the others an element for each of all
        // rows, the labels below the vocabulary, which the op has checked.
        unsafe { cuda.kernel("loss", "loss_softmax", dtype)?.run(Grid::new(range.len(), THREADS), &args) }?;
        let ld = ld * size_of::<f32>() / dtype.size();
        let d_logits = Block::within(&logits, range.len(), vocabulary, ld, dtype);
        let accumulate = if start == 0 { Accumulate::Replace } else { Accumulate::Add };
        let dh = Block::rows_mut(&mut gradient, range);
        // SAFETY: both gradients are this function's own.
        unsafe {
            matmul(cuda, dh, Accumulate::Replace, d_logits, weights, Product::AsStored, None)?;
            weight_product(cuda, Block::whole_mut(&mut head_gradient), accumulate, d_logits, h)?;
        }
    }
    if sum_dtype != dtype {
        head_gradient = rounded(cuda, &head_gradient, dtype)?;
    }
    let mut loss = Tensor::zeros(device, 1, 1, DType::F32, Kind::Workspace);
    let nll = find_nll(cuda, &running, &picked, None, Some((&mut loss, &scales)))?;
    Ok(Found { loss, nll, gradient: Some(gradient), head_gradient: Some(head_gradient) })
}

/// A gradient in f32 in a narrower type.
fn rounded(cuda: &CudaDevice, gradient: &Tensor, dtype: DType) -> Result<Tensor> {
    let mut narrow = Tensor::scratch(gradient.device(), gradient.rows(), gradient.cols(), dtype, Kind::Gradients);
    let args = [
        Arg::tensor(gradient),        // const float* x
        Arg::tensor_mut(&mut narrow), // T* y
        Arg::long(gradient.len()),    // long long count
    ];
    // SAFETY: both hold `count` elements. A thread has 8 of them.
    unsafe { cuda.kernel("cast", "cast_f32", dtype)?.run(Grid::cover(gradient.len().div_ceil(8), 256), &args) }?;
    Ok(narrow)
}

/// The negative log-likelihoods of the `wanted` (row, token) pairs.
pub(super) fn negative_log_likelihoods(
    cuda: &CudaDevice,
    hidden: &Tensor,
    head: &Matrix,
    wanted: &[(usize, u32)],
) -> Result<Vec<f64>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let count = wanted.len();
    let rows = as_indices(cuda, wanted.iter().map(|&(row, _)| row))?;
    let of_rows = as_indices(cuda, wanted.iter().map(|&(_, token)| token as usize))?;
    let held = head.on(cuda, hidden.dtype())?;
    let mut walk = Walk::new(cuda, hidden, head, &held);
    let mut picked = Tensor::scratch(hidden.device(), count, 1, DType::F32, Kind::Workspace);
    while let Some(tokens) = walk.next() {
        walk.find_logits(walk.panel(&tokens)?.block(), &tokens)?;
        let args = [
            Arg::tensor_mut(&mut picked), // float* picked
            Arg::buffer(&walk.logits),    // const float* logits
            Arg::buffer(&rows),           // const int* rows
            Arg::buffer(&of_rows),        // const int* wanted
            Arg::int(count),              // int count
            Arg::int(tokens.start),       // int start
            Arg::int(tokens.len()),       // int tokens
            Arg::int(walk.ld),            // int ld
        ];
        // SAFETY: `picked`, `rows` and `of_rows` have `count` elements. The rows are rows of `hidden`, which the op has
        // checked, and the logits have `ld` ≥ `tokens` floats for each of them.
        unsafe { cuda.kernel_named("loss", "loss_pick")?.run(Grid::cover(count, THREADS), &args) }?;
        walk.normalise(&tokens, None, None)?;
    }
    find_nll(cuda, &walk.running, &picked, Some(&rows), None)?.to_f64_vec()
}

/// `gradient *= factor`, a number that only the GPU need know: `[1, 1]` f32.
pub(super) fn scale(cuda: &CudaDevice, gradient: &mut Tensor, factor: &Tensor) -> Result<()> {
    let (elements, dtype) = (gradient.len(), gradient.dtype());
    let args = [
        Arg::tensor_mut(gradient), // T* gradient
        Arg::tensor(factor),       // const float* factor
        Arg::long(elements),       // long long elements
    ];
    // SAFETY: the gradient has `elements` elements; the factor is the gradient of the loss, one float.
    unsafe { cuda.kernel("loss", "loss_scale", dtype)?.run(Grid::elements(elements, dtype), &args) }
}

fn as_indices(cuda: &CudaDevice, values: impl Iterator<Item = usize>) -> Result<Buffer> {
    indices::upload(cuda, &values.collect::<Vec<_>>())
}

/// Rows of the head in the working type.
enum Panel<'a> {
    Held(Block<'a>),
    Widened(Tensor),
}

impl Panel<'_> {
    fn block(&self) -> Block<'_> {
        match self {
            Self::Held(block) => *block,
            Self::Widened(panel) => Block::rows(panel, 0..panel.rows()),
        }
    }
}

/// The walk over the vocabulary, and what it keeps of each row.
struct Walk<'a> {
    cuda: &'a CudaDevice,
    hidden: &'a Tensor,
    head: &'a Resident,
    vocabulary: usize,
    /// Tokens of a chunk.
    chunk: usize,
    /// The first token not yet walked over.
    start: usize,
    /// From row to row of the logits, in floats: a multiple of 4.
    ld: usize,
    /// f32 logits, and then, in their place, exponentials in the type of `hidden`.
    logits: Buffer,
    /// Of each row, the maximum so far and the sum under it.
    running: Buffer,
}

impl<'a> Walk<'a> {
    fn new(cuda: &'a CudaDevice, hidden: &'a Tensor, matrix: &Matrix, head: &'a Resident) -> Self {
        let (device, rows, vocabulary) = (hidden.device(), hidden.rows(), matrix.out_features());
        let most = match head {
            Resident::Plain(_) => MAX_CHUNK,
            Resident::Stored { .. } => MAX_CHUNK.min(MAX_WIDENED / hidden.cols().max(1)),
        };
        let chunk = chunk(rows, vocabulary, most);
        let ld = chunk.next_multiple_of(4);
        let logits = device.allocate(rows * ld * size_of::<f32>(), Kind::Workspace);
        let running = device.allocate(rows * RUNNING_BYTES, Kind::Workspace);
        // No rows, no walk.
        let start = if rows == 0 { vocabulary } else { 0 };
        Self { cuda, hidden, head, vocabulary, chunk, start, ld, logits, running }
    }

    /// The next chunk.
    fn next(&mut self) -> Option<Range<usize>> {
        let tokens = self.start..(self.start + self.chunk).min(self.vocabulary);
        self.start = tokens.end;
        (!tokens.is_empty()).then_some(tokens)
    }

    fn panel(&self, tokens: &Range<usize>) -> Result<Panel<'a>> {
        Ok(match self.head {
            Resident::Plain(head) => Panel::Held(Block::rows(head, tokens.clone())),
            Resident::Stored { bytes, format } => {
                let (width, dtype) = (self.hidden.cols(), self.hidden.dtype());
                Panel::Widened(widen(self.cuda, bytes, *format, tokens.clone(), width, dtype)?)
            }
        })
    }

    /// `logits = hidden · panelᵀ`
    fn find_logits(&self, panel: Block<'_>, tokens: &Range<usize>) -> Result<()> {
        let logits = Block::within(&self.logits, self.hidden.rows(), tokens.len(), self.ld, DType::F32);
        let hidden = Block::rows(self.hidden, 0..self.hidden.rows());
        // SAFETY: the logits are this walk's own, and what used them before is earlier in the stream.
        unsafe { matmul(self.cuda, logits, Accumulate::Replace, hidden, panel, Product::Transposed, None) }
    }

    /// Logits to exponentials under the new maxima, and what was summed under the old ones scaled. Keeps the labels'
    /// logits.
    fn normalise(
        &mut self,
        tokens: &Range<usize>,
        sums: Option<&mut Tensor>,
        labels: Option<(&Buffer, &mut Tensor)>,
    ) -> Result<()> {
        let (rows, width, dtype) = (self.hidden.rows(), self.hidden.cols(), self.hidden.dtype());
        let (labels, picked) = match labels {
            Some((labels, picked)) => (Arg::buffer(labels), Arg::tensor_mut(picked)),
            None => (Arg::null(), Arg::null()),
        };
        let args = [
            Arg::buffer_mut(&mut self.logits),         // float* logits
            Arg::buffer_mut(&mut self.running),        // Running* running
            sums.map_or(Arg::null(), Arg::tensor_mut), // float* sums
            labels,                                    // const int* labels
            picked,                                    // float* picked
            Arg::int(tokens.start),                    // int start
            Arg::int(tokens.len()),                    // int tokens
            Arg::int(self.ld),                         // int ld
            Arg::int(width),                           // int width
        ];
        // SAFETY: logits, running, sums, labels and picked have `rows` rows: of `ld` ≥ `tokens` floats, a Running, `width`
        // floats, one int and one float. The sums are written before they are scaled: by the first chunk's product.
        unsafe { self.cuda.kernel("loss", "loss_chunk", dtype)?.run(Grid::new(rows, THREADS), &args) }
    }

    /// `sums (+)= exponentials · panel`
    fn add_to(&self, sums: &mut Tensor, panel: Block<'_>, tokens: &Range<usize>) -> Result<()> {
        let dtype = self.hidden.dtype();
        let ld = self.ld * size_of::<f32>() / dtype.size();
        let exponentials = Block::within(&self.logits, self.hidden.rows(), tokens.len(), ld, dtype);
        let accumulate = if tokens.start == 0 { Accumulate::Replace } else { Accumulate::Add };
        // SAFETY: the sums are borrowed mutably, so nothing else uses their memory.
        unsafe { matmul(self.cuda, Block::whole_mut(sums), accumulate, exponentials, panel, Product::AsStored, None) }
    }

    /// The gradient of the sums. The row of label `i` is row `index[i]` of `label_rows`, or row `i`.
    fn finish(&self, sums: &Tensor, label_rows: &Tensor, index: Option<&Buffer>, scales: &Tensor) -> Result<Tensor> {
        let (rows, width, dtype) = (self.hidden.rows(), self.hidden.cols(), self.hidden.dtype());
        let mut gradient = Tensor::scratch(self.hidden.device(), rows, width, dtype, Kind::Workspace);
        let args = [
            Arg::tensor_mut(&mut gradient),         // T* gradient
            Arg::tensor(sums),                      // const float* sums
            Arg::buffer(&self.running),             // const Running* running
            Arg::tensor(label_rows),                // const T* head
            index.map_or(Arg::null(), Arg::buffer), // const int* rows
            Arg::tensor(scales),                    // const float* scales
            Arg::int(width),                        // int width
            Arg::int(label_rows.cols()),            // int ld
        ];
        // SAFETY: gradient, sums, running and scales have `rows` rows; the index has as many, of labels below the
        // vocabulary, which the op has checked, or `label_rows` has a row for each.
        unsafe { self.cuda.kernel("loss", "loss_finish", dtype)?.run(Grid::new(rows, THREADS), &args) }?;
        Ok(gradient)
    }
}

/// `[pairs, 1]` for the logits `picked`, of row `rows[i]` or `i`; and the loss, where each counts as `scales` says.
fn find_nll(
    cuda: &CudaDevice,
    running: &Buffer,
    picked: &Tensor,
    rows: Option<&Buffer>,
    loss: Option<(&mut Tensor, &Tensor)>,
) -> Result<Tensor> {
    let count = picked.rows();
    let mut nll = Tensor::scratch(picked.device(), count, 1, DType::F32, Kind::Workspace);
    let (loss, scales) = match loss {
        Some((loss, scales)) => (Arg::tensor_mut(loss), Arg::tensor(scales)),
        None => (Arg::null(), Arg::null()),
    };
    let args = [
        Arg::tensor_mut(&mut nll),             // float* nll
        loss,                                  // float* loss
        Arg::buffer(running),                  // const Running* running
        Arg::tensor(picked),                   // const float* picked
        rows.map_or(Arg::null(), Arg::buffer), // const int* rows
        scales,                                // const float* scales
        Arg::int(count),                       // int count
    ];
    // SAFETY: nll, picked, rows and scales have `count` elements; running has an element for each row that is named.
    unsafe { cuda.kernel_named("loss", "loss_nll")?.run(Grid::new(1, THREADS), &args) }?;
    Ok(nll)
}
