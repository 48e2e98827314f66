// y[i] = x[i-1] + x[i] + x[i+1], with zeros outside, and count = the number of positive y.
//
// BUG 1: every block writes the same element
// BUG 2: in place: blocks read what others write
// BUG 3: counts without an atomic
// BUG 4: reads the count that other blocks are adding to
// BUG 5: neighbouring threads of a block in place, with no barrier
// BUG 6: a block reads what another wrote with an atomic
#ifndef BUG
#define BUG 0
#endif

extern "C" __global__ void neighbours(float* x, float* y, int* count, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int lead = threadIdx.x == 0, end = threadIdx.x == blockDim.x - 1;
  const float left = i > 0 && !(BUG == 5 && lead) ? x[i - 1] : 0.f;
  const float right = i + 1 < n && !(BUG == 5 && end) ? x[i + 1] : 0.f;
  const float sum = left + x[i] + right;
  if (BUG == 2 || BUG == 5)
    x[i] = sum;
  else
    y[BUG == 1 ? threadIdx.x : i] = sum;
  if (sum > 0.f) {
#if BUG == 3
    *count += 1;
#else
    atomicAdd(count, 1);
#endif
  }
#if BUG == 4 || BUG == 6
  const bool last = threadIdx.x == 0 && blockIdx.x == gridDim.x - 1;
#endif
#if BUG == 4
  if (last) y[i] = *(volatile int*)count;
#elif BUG == 6
  if (last) y[i] = *count;
#endif
}
