// Activation functions: f(x) and, with it, f'(x), in f32. A NaN stays one.
#pragma once

#include "common.cuh"

struct ValueAndSlope {
  float value, slope;
};

// max(x, 0)
struct Relu {
  DEVICE static float value(float x) { return x < 0.0f ? 0.0f : x; }
  DEVICE static ValueAndSlope both(float x) { return {value(x), x > 0.0f ? 1.0f : 0.0f}; }
};

// x Φ(x)
struct Gelu {
  DEVICE static float phi(float x) { return 0.5f * (1.0f + erff(x * 0.7071067811865475f)); }
  DEVICE static float value(float x) { return x * phi(x); }
  DEVICE static ValueAndSlope both(float x) {
    const float p = phi(x), density = 0.3989422804014327f * expf(-0.5f * x * x);
    return {x * p, p + x * density};
  }
};

// x/2 (1 + tanh u), u = √(2/π) (x + 0.044715 x³). As 1 + tanh u = 2 σ(2u), without the sum's cancellation: x σ(2u).
struct GeluTanh {
  static constexpr float ROOT = 0.7978845608028654f, CUBIC = 0.044715f;
  DEVICE static float sigmoid(float x) { return 1.0f / (1.0f + expf(-2.0f * ROOT * (x + CUBIC * x * x * x))); }
  DEVICE static float value(float x) { return x * sigmoid(x); }
  DEVICE static ValueAndSlope both(float x) {
    const float s = sigmoid(x), inner = ROOT * (1.0f + 3.0f * CUBIC * x * x);
    return {x * s, s + 2.0f * x * s * (1.0f - s) * inner};
  }
};

// x / (1 + e⁻ˣ)
struct Silu {
  DEVICE static float value(float x) { return x / (1.0f + expf(-x)); }
  DEVICE static ValueAndSlope both(float x) {
    const float sigmoid = 1.0f / (1.0f + expf(-x));
    return {x * sigmoid, sigmoid * (1.0f + x * (1.0f - sigmoid))};
  }
};
