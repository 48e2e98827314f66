"""Writes `adafactor.safetensors`: every intermediate quantity of Adafactor as T5X computes it, in float64.

Usage: python make_adafactor.py      (numpy and safetensors)

The update of t5x/adafactor.py without momentum, step t counted from 0, in its order:

    beta = 1 - (t + offset + 1)^-c                  the share of the old second moment; T5X's step_offset is -offset
    s    = g^2 + eps
    v    = beta v + (1 - beta) s                    or, where both dimensions reach `min_dim_factored`,
    r, k = the same of the means of s along rows and along columns, and v = r k / mean(r)
    u    = g / sqrt(v)
    y    = u / max(1, RMS(u) / clip)
    z    = 1, or max(RMS(p), scale) where a scale is given (T5X's multiply_by_parameter_scale, for weights)
    p    = (1 - wd) p - lr z y                      the decay is not multiplied by lr

T5X does this in float32, where 1 - beta near 1.5e-5 is known to half a percent; here it is exact.
"""
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
STEPS = 6
PAPER = dict(c=0.8, eps=1e-30, clip=1.0, wd=1e-5, lr=0.3, offset=0, min_dim_factored=128, scale=0.0)

# name -> (shape, what differs from the paper's constants)
CASES = {
    "fresh": ((5, 7), {}),
    "late": ((5, 7), dict(offset=1_100_000)),
    "decay": ((4, 3), dict(wd=0.1, lr=0.05)),
    "constants": ((4, 3), dict(c=0.5, eps=1e-3, clip=0.25, lr=1.5)),
    "factored": ((6, 9), dict(min_dim_factored=6)),
    "factored_tall": ((9, 6), dict(min_dim_factored=6, wd=0.02)),
    "factored_late": ((6, 9), dict(min_dim_factored=6, offset=1_100_000)),
    "one_dimension_short": ((5, 9), dict(min_dim_factored=6)),
    "scaled": ((5, 7), dict(wd=0.0, lr=0.2, scale=1e-3)),
    "scaled_factored": ((6, 9), dict(min_dim_factored=6, lr=0.2, scale=1e-3)),
    "scaled_by_the_least": ((5, 7), dict(lr=0.01, scale=10.0)),
}


def steps(shape, rng, c, eps, clip, wd, lr, offset, min_dim_factored, scale):
    """The start, and what each step computes."""
    factored = min(shape) >= min_dim_factored
    p = rng.normal(size=shape)
    tensors = {"p": p}
    v, r, k = np.zeros(shape), np.zeros(shape[0]), np.zeros(shape[1])
    for t in range(STEPS):
        # Sizes that differ by row and from step to step, and a number that has no gradient.
        g = rng.normal(size=shape) * 10.0 ** rng.integers(-4, 2, size=(shape[0], 1)) * (5.0 if t == 3 else 1.0)
        g[1, 1] = 0.0
        share = float(t + offset + 1) ** -c  # 1 - beta, without the digits that subtracting twice would lose
        beta = 1.0 - share
        s = g * g + eps
        found = dict(g=g, beta=np.array([beta]))
        if factored:
            r = beta * r + share * s.mean(1)
            k = beta * k + share * s.mean(0)
            u = g * ((r / r.mean()) ** -0.5)[:, None] * (k**-0.5)[None, :]
            found |= dict(v_row=r, v_col=k)
        else:
            v = beta * v + share * s
            u = g * v**-0.5
            found |= dict(v=v)
        rms = np.sqrt(np.mean(u * u))
        y = u / max(1.0, rms / clip)
        z = max(np.sqrt(np.mean(p * p)), scale) if scale > 0 else 1.0
        p = (1 - wd) * p - lr * z * y
        found |= dict(u=u, rms=np.array([rms]), y=y, z=np.array([z]), p=p)
        tensors |= {f"{t}.{name}": value for name, value in found.items()}
    return tensors


def main():
    tensors = {}
    for index, (name, (shape, other)) in enumerate(CASES.items()):
        constants = PAPER | other
        tensors[f"{name}.constants"] = np.array([float(value) for value in constants.values()])  # in PAPER's order
        found = steps(shape, np.random.default_rng(index), **constants)
        tensors |= {f"{name}.{key}": np.ascontiguousarray(value) for key, value in found.items()}
        print(f"{name:20} RMS before clipping {', '.join(format(found[f'{t}.rms'][0], '.3g') for t in range(STEPS))}")
    save_file(tensors, HERE / "adafactor.safetensors")


if __name__ == "__main__":
    main()
