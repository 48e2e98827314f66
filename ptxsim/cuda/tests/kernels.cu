// The kernels of tests/cudarc.rs, as kernels.ptx:
//   nvcc -std=c++17 -O3 -lineinfo -ptx -arch=compute_80 kernels.cu, with .version lowered to 7.1

// y = a x + y
extern "C" __global__ void saxpy(float a, const float* __restrict__ x, float* __restrict__ y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = a * x[i] + y[i];
}

// y[i] = table[i % 4], which the host fills
__device__ float table[4];
extern "C" __global__ void look_up(float* __restrict__ y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = table[i % 4];
}

// Reverses each block's elements through as much dynamic shared memory as the launch gives.
extern "C" __global__ void __launch_bounds__(256) reverse(int* y) {
  extern __shared__ int buffer[];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  buffer[threadIdx.x] = y[i];
  __syncthreads();
  y[i] = buffer[blockDim.x - 1 - threadIdx.x];
}
