//! `attention` on a GPU: the kernels of `kernels/attention*.cu`.

use super::plan::{KeyPlan, QueryPlan, Records};
use super::{Heads, PositionBias, Saved};
use crate::device::{Arg, Buffer, CudaDevice, Device, Grid, Kind};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Segments;
use crate::ops::columns;
use crate::tape::Accumulate;
use crate::tensor::Tensor;
use std::sync::{Arc, Mutex, PoisonError};

/// Threads of a block that works on a tile, and of one that does not.
const TILE_THREADS: u32 = 128;
const THREADS: u32 = 256;
/// Partial sums of a bias's gradient, at most: with the heads they fill a GPU.
const BIAS_PARTS: usize = 64;

/// A head size that the kernels are compiled for, and what its blocks hold, as `kernels/attention_d*.cu` say.
pub(crate) struct Shape {
    op: &'static str,
    pub(crate) dim: usize,
    /// Stacked queries of a tile of queries, keys of a tile of keys.
    pub(crate) tile: usize,
    /// Bytes of a row in shared memory.
    row: usize,
    /// Rows of each of the buffers behind a tile, in the forward and the backward pass, and how many there are.
    forward_rows: usize,
    backward_rows: usize,
    buffers: usize,
    /// Blocks that make the gradients of one tile of keys: `dk` and `dv` together, or one each.
    key_parts: usize,
    /// Keys that a block of the bias's gradient works on at once.
    bias_keys: usize,
}

impl Shape {
    pub(crate) fn new(heads: Heads, dtype: DType) -> Result<Self> {
        const SIZES: [(usize, &str); 5] = [
            (32, "attention_d32"),
            (64, "attention_d64"),
            (96, "attention_d96"),
            (128, "attention_d128"),
            (256, "attention_d256"),
        ];
        let &(dim, op) = SIZES
            .iter()
            .find(|&&(dim, _)| heads.dim <= dim)
            .ok_or_else(|| Error::op("attention", "heads of at most 256 elements on a GPU", heads.dim.to_string()))?;
        let is_wide = dim == 256;
        // The padding of a row is 16 bytes.
        let row = dim * dtype.size() + 16;
        Ok(if dtype == DType::BF16 {
            let (forward_rows, backward_rows) = (if dim <= 64 { 64 } else { 32 }, if is_wide { 16 } else { 32 });
            Self {
                op,
                dim,
                tile: 64,
                row,
                forward_rows,
                backward_rows,
                buffers: 2,
                key_parts: 1 + usize::from(is_wide),
                bias_keys: backward_rows,
            }
        } else {
            let rows = if is_wide { 16 } else { 32 };
            let bias_keys = if is_wide { 8 } else { 32 };
            Self {
                op,
                dim,
                tile: 32,
                row,
                forward_rows: rows,
                backward_rows: rows,
                buffers: 1,
                key_parts: 1,
                bias_keys,
            }
        })
    }

    pub(crate) fn kernel(&self, name: &str) -> String {
        format!("attention_{name}_d{}", self.dim)
    }

    /// Bytes of shared memory of a block of the forward pass.
    pub(crate) fn forward_shared(&self) -> usize {
        (self.tile + 2 * self.buffers * self.forward_rows) * self.row
    }

    /// Bytes of shared memory of a block of the backward pass.
    pub(crate) fn backward_shared(&self) -> usize {
        2 * (self.tile + self.buffers * self.backward_rows) * self.row
    }

    /// Bytes of shared memory of a block of the bias's gradient: rows, and the gradients of their scores.
    pub(crate) fn bias_shared(&self) -> usize {
        2 * (self.tile + self.bias_keys) * self.row + self.tile * (self.bias_keys + 1) * size_of::<f32>()
    }
}

/// What the GPU knows of some [`Segments`], made once for all layers.
#[derive(Default)]
struct Plans {
    queries: Kept<(usize, usize), OnGpu<QueryPlan, 3>>,
    keys: Kept<(usize, usize, usize, usize, usize), OnGpu<KeyPlan, 3>>,
}

/// Values by device and key.
struct Kept<K, T>(Mutex<Vec<(CudaDevice, K, Arc<T>)>>);

impl<K, T> Default for Kept<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, T> Kept<K, T> {
    fn get(&self, cuda: &CudaDevice, key: K, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((.., value)) = values.iter().find(|(device, of, _)| device.is(cuda) && *of == key) {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(make()?);
        values.push((cuda.clone(), key, Arc::clone(&value)));
        Ok(value)
    }
}

/// A plan with its lists in a GPU's memory.
struct OnGpu<P, const N: usize> {
    plan: P,
    lists: [Buffer; N],
}

fn upload<const N: usize>(cuda: &CudaDevice, records: &Records<N>) -> Result<Buffer> {
    let bytes: &[u8] = bytemuck::cast_slice(records.as_flattened());
    let mut buffer = Device::Cuda(cuda.clone()).allocate(bytes.len(), Kind::Workspace);
    buffer.upload(bytes)?;
    Ok(buffer)
}

fn query_plan(cuda: &CudaDevice, heads: Heads, segments: &Segments, tile: usize) -> Result<Arc<OnGpu<QueryPlan, 3>>> {
    let group = heads.queries / heads.keys;
    segments.derive(|| Ok(Plans::default()))?.queries.get(cuda, (group, tile), || {
        let plan = QueryPlan::new(segments, group, tile);
        let lists = [upload(cuda, &plan.tiles)?, upload(cuda, &plan.spans)?, upload(cuda, &plan.limits)?];
        Ok(OnGpu { plan, lists })
    })
}

fn key_plan(
    cuda: &CudaDevice,
    heads: Heads,
    segments: &Segments,
    tile: usize,
    output_rows: usize,
    key_rows: usize,
) -> Result<Arc<OnGpu<KeyPlan, 3>>> {
    let group = heads.queries / heads.keys;
    let key = (group, heads.keys, tile, output_rows, key_rows);
    segments.derive(|| Ok(Plans::default()))?.keys.get(cuda, key, || {
        let plan = KeyPlan::new(segments, group, heads.keys, tile, output_rows, key_rows);
        let lists = [upload(cuda, &plan.tasks)?, upload(cuda, &plan.visits)?, upload(cuda, &plan.sums)?];
        Ok(OnGpu { plan, lists })
    })
}

/// The kernels count queries times heads, and stacked queries times heads, in 32 bits.
fn check_sizes(heads: Heads, segments: &Segments) -> Result<()> {
    let (queries, keys) = (segments.query_rows(), segments.key_rows());
    let group = heads.queries / heads.keys;
    let largest = (queries * heads.queries * group).max(keys * heads.keys);
    if i32::try_from(largest).is_err() {
        return Err(Error::op("attention", "rows times heads times group below 2^31", format!("{largest}")));
    }
    Ok(())
}

/// A [`PositionBias`] in a GPU's memory, or none.
struct Bias<'a> {
    bias: &'a PositionBias,
    query_positions: Arc<Buffer>,
    key_positions: Arc<Buffer>,
}

impl<'a> Bias<'a> {
    fn new(cuda: &CudaDevice, bias: Option<&'a PositionBias>) -> Result<Option<Self>> {
        let Some(bias) = bias else { return Ok(None) };
        let (query_positions, key_positions) = (bias.query_positions.on(cuda)?, bias.key_positions.on(cuda)?);
        Ok(Some(Self { bias, query_positions, key_positions }))
    }

    fn args<'b>(this: Option<&'b Self>) -> [Arg<'b>; 5] {
        let table = this.map(|bias| bias.bias.table.tensor());
        [
            table.map_or(Arg::null(), Arg::tensor), // const float* bias
            this.map_or(Arg::null(), |bias| Arg::buffer(&bias.query_positions)), // const int* query_positions
            this.map_or(Arg::null(), |bias| Arg::buffer(&bias.key_positions)), // const int* key_positions
            Arg::int(table.map_or(0, Tensor::cols)), // int bias_width
            Arg::int(this.map_or(0, |bias| bias.bias.offset)), // int bias_offset
        ]
    }
}

fn sizes<'a>(heads: Heads) -> [Arg<'a>; 4] {
    [
        Arg::int(heads.keys),                 // int key_heads
        Arg::int(heads.queries / heads.keys), // int group
        Arg::int(heads.dim),                  // int dim
        Arg::float(heads.scale),              // float scale
    ]
}

/// Memory for the bits of an output that bf16 leaves out, a byte for each element: `δ` is too coarse without them where
/// `do·v − δ` cancels. Other types need none.
pub(super) fn output_low(cuda: &CudaDevice, output: &Tensor) -> Option<Buffer> {
    (output.dtype() == DType::BF16).then(|| Device::Cuda(cuda.clone()).allocate(output.len(), Kind::SavedActivations))
}

#[allow(clippy::too_many_arguments, reason = "those of the CPU's, and the device")]
pub(super) fn forward(
    cuda: &CudaDevice,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    segments: &Segments,
    bias: Option<&PositionBias>,
    output: &mut Tensor,
    output_low: Option<&mut Buffer>,
    lse: &mut Tensor,
) -> Result<()> {
    check_sizes(heads, segments)?;
    let shape = Shape::new(heads, q.dtype())?;
    let on_gpu = query_plan(cuda, heads, segments, shape.tile)?;
    let [tiles, spans, limits] = &on_gpu.lists;
    let args = [
        Arg::tensor(q),                                  // const T* q
        Arg::tensor(k),                                  // const T* k
        Arg::tensor(v),                                  // const T* v
        Arg::tensor_mut(output),                         // T* o
        output_low.map_or(Arg::null(), Arg::buffer_mut), // signed char* o_low
        Arg::tensor_mut(lse),                            // float* lse
        Arg::buffer(tiles),                              // const QueryTile* tiles
        Arg::buffer(spans),                              // const Span* spans
        Arg::buffer(limits),                             // const int* limits
    ];
    let grid = Grid::new_3d([on_gpu.plan.tiles.len(), heads.keys, 1], TILE_THREADS).shared(shape.forward_shared());
    let kernel = cuda.kernel(shape.op, &shape.kernel("forward"), q.dtype())?;
    // SAFETY: the op has checked q, k and v against heads and segments, o is like q, o_low has a
    // byte for each element of it, and lse has a number for each head
    // of a query; the plan names rows of these segments only. A bias has a position for each query and key, and a row of
    // `bias_width` numbers for each head.
    let bias = Bias::new(cuda, bias)?;
    unsafe { kernel.run(grid, &[&args[..], &Bias::args(bias.as_ref()), &sizes(heads)].concat()) }
}

/// Writes every row of `dq`, `dk` and `dv`, and of `d_bias` where that is wanted.
#[allow(clippy::too_many_arguments, reason = "those of the CPU's, and the device")]
pub(super) fn backward(
    cuda: &CudaDevice,
    saved: &Saved,
    d_output: &Tensor,
    heads: Heads,
    segments: &Segments,
    [dq, dk, dv]: [&mut Tensor; 3],
    d_bias: Option<&mut Tensor>,
) -> Result<()> {
    check_sizes(heads, segments)?;
    let bias = Bias::new(cuda, saved.bias.as_ref())?;
    if d_output.rows() < saved.query_grad_rows || d_output.rows() > segments.query_rows() {
        let expected = format!("{} to {} gradient rows", saved.query_grad_rows, segments.query_rows());
        return Err(Error::op("attention", expected, d_output.rows().to_string()));
    }
    let dtype = d_output.dtype();
    let shape = Shape::new(heads, dtype)?;
    let workspace =
        |rows: usize, cols: usize| Tensor::scratch(d_output.device(), rows, cols, DType::F32, Kind::Workspace);

    let mut delta = workspace(d_output.rows(), heads.queries);
    let args = [
        Arg::tensor(&saved.o),                                 // const T* o
        saved.o_low.as_ref().map_or(Arg::null(), Arg::buffer), // const signed char* o_low
        Arg::tensor(d_output),                                 // const T* d_o
        Arg::tensor_mut(&mut delta),                           // float* delta
        Arg::int(d_output.rows() * heads.queries),             // int count
        Arg::int(heads.dim),                                   // int dim
    ];
    let grid = Grid::cover(d_output.rows() * heads.queries * 8, THREADS);
    // SAFETY: d_o has as many columns as o and no more rows, o_low has a byte for each element of o if that is bf16, and
    // delta has a number for each head of d_o.
    unsafe { cuda.kernel("attention", "attention_delta", dtype)?.run(grid, &args) }?;

    let query_plan = query_plan(cuda, heads, segments, shape.tile)?;
    let [tiles, spans, limits] = &query_plan.lists;
    let inputs = [
        Arg::tensor(&saved.q),   // const T* q
        Arg::tensor(&saved.k),   // const T* k
        Arg::tensor(&saved.v),   // const T* v
        Arg::tensor(d_output),   // const T* d_o
        Arg::tensor(&saved.lse), // const float* lse
        Arg::tensor(&delta),     // const float* delta
    ];
    let args = [
        Arg::tensor_mut(dq), // T* dq
        Arg::buffer(tiles),  // const QueryTile* tiles
        Arg::buffer(spans),  // const Span* spans
        Arg::buffer(limits), // const int* limits
    ];
    let rows = [Arg::int(saved.query_grad_rows)]; // int query_rows
    let count = query_plan.plan.tiles_before(saved.query_grad_rows, heads.queries / heads.keys);
    let grid = Grid::new_3d([count, heads.keys, 1], TILE_THREADS).shared(shape.backward_shared());
    let kernel = cuda.kernel(shape.op, &shape.kernel("backward_queries"), dtype)?;
    // SAFETY: as in the forward pass; of q and d_o the kernel reads the first `query_grad_rows` rows, which both and dq
    // have, and of k and v those that these queries see, which were saved.
    unsafe { kernel.run(grid, &[&inputs[..], &args, &Bias::args(bias.as_ref()), &rows, &sizes(heads)].concat()) }?;

    if let (Some(bias), Some(d_bias)) = (&bias, d_bias) {
        let count = query_plan.plan.tiles_before(d_output.rows(), heads.queries / heads.keys);
        let parts = count.min(BIAS_PARTS);
        let mut partial = workspace(parts, d_bias.len());
        let args = [
            Arg::tensor_mut(&mut partial), // float* partial
            Arg::buffer(tiles),            // const QueryTile* tiles
            Arg::buffer(spans),            // const Span* spans
            Arg::buffer(limits),           // const int* limits
        ];
        let counts = [Arg::int(count), Arg::int(d_output.rows())]; // int tile_count, int query_rows
        let grid = Grid::new_3d([parts, heads.keys, 1], TILE_THREADS).shared(shape.bias_shared());
        let kernel = cuda.kernel(shape.op, &shape.kernel("backward_bias"), dtype)?;
        // SAFETY: as in the forward pass; the kernel reads the queries that d_o has a row for and the keys that they see,
        // all of which were saved. A part has a number for each of the table's.
        unsafe { kernel.run(grid, &[&inputs[..], &args, &Bias::args(Some(bias)), &counts, &sizes(heads)].concat()) }?;
        columns::join(cuda, &partial, columns::Sum { out: d_bias, accumulate: Accumulate::Replace })?;
    }

    let key_plan = key_plan(cuda, heads, segments, shape.tile, d_output.rows(), saved.key_grad_rows)?;
    let [tasks, visits, sums] = &key_plan.lists;
    let width = heads.keys * heads.dim;
    let mut dk_partial = workspace(key_plan.plan.slots * shape.tile, width);
    let mut dv_partial = workspace(key_plan.plan.slots * shape.tile, width);
    let args = [
        Arg::tensor_mut(dk),              // T* dk
        Arg::tensor_mut(dv),              // T* dv
        Arg::tensor_mut(&mut dk_partial), // float* dk_partial
        Arg::tensor_mut(&mut dv_partial), // float* dv_partial
        Arg::buffer(tasks),               // const KeyTask* tasks
        Arg::buffer(visits),              // const Visit* visits
        Arg::buffer(limits),              // const int* limits
    ];
    let grid = Grid::new_3d([key_plan.plan.tasks.len(), heads.keys, shape.key_parts], TILE_THREADS)
        .shared(shape.backward_shared());
    let kernel = cuda.kernel(shape.op, &shape.kernel("backward_keys"), dtype)?;
    // SAFETY: the plan names the first `key_grad_rows` keys, which k, v, dk and dv have, queries that d_o has a row for,
    // and slots below `slots`, each of a tile of rows.
    unsafe { kernel.run(grid, &[&inputs[..], &args, &Bias::args(bias.as_ref()), &sizes(heads)].concat()) }?;

    let args = [
        Arg::tensor(&dk_partial), // const float* dk_partial
        Arg::tensor(&dv_partial), // const float* dv_partial
        Arg::tensor_mut(dk),      // T* dk
        Arg::tensor_mut(dv),      // T* dv
        Arg::buffer(sums),        // const KeySum* sums
        Arg::int(shape.tile),     // int tile
        Arg::int(width),          // int width
    ];
    let per_block = THREADS as usize * 16 / dtype.size();
    let blocks = (shape.tile * width).div_ceil(per_block);
    let grid = Grid::new_3d([key_plan.plan.sums.len(), blocks, 2], THREADS);
    // SAFETY: the sums name slots and key rows as the tasks do.
    unsafe { cuda.kernel("attention", "attention_reduce", dtype)?.run(grid, &args) }
}
