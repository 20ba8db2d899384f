"""Chance that is counted, not carried: numbers that are a function of (seed, step, sample, stream, position).

A generator has a state that must be saved, restored and kept apart between workers and ranks. Here every draw is
integer arithmetic on a key, so it is the same on CPU and CUDA, for any batching, worker count or number of processes,
and a resumed run needs no state at all.

Axes: B samples. Keys are int64 tensors of shape (B,).

The mixing function is SplitMix64's finaliser. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014; constants by David Stafford (mix 13).
"""

import math
import zlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Reads a 64-bit pattern as the signed integer that torch.int64 holds."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask removes the copies of the sign.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Scrambles int64 values of any shape, one to one (SplitMix64's finaliser)."""
    x = x + _signed(_GOLDEN)
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def keys(seed: int, step: int | Tensor, sample: Tensor) -> Tensor:
    """Makes one key per sample from (seed, step, sample index).

    Args:
        seed: the run's seed.
        step: the step, or a tensor that broadcasts against `sample`.
        sample: (B,) int64 index of each sample in the global batch.

    Returns:
        (B,) int64 keys on the device of `sample`.
    """
    step_B = torch.as_tensor(step, dtype=torch.int64, device=sample.device).expand_as(sample)
    seed_B = torch.full_like(sample, seed, dtype=torch.int64)
    return mix(mix(mix(seed_B) ^ step_B) ^ sample.to(torch.int64))


@torch.compiler.assume_constant_result  # a compiler cannot look into crc32 and would break the graph at every draw
def _stream_number(stream: str) -> int:
    return zlib.crc32(stream.encode())


def start(key_B: Tensor, stream: str) -> Tensor:
    """Makes the number from which a stream counts: (B,) int64; its element n is `mix(start + n * golden ratio)`."""
    # Filled on the device: torch.tensor would copy from the host and wait for the copy.
    name = torch.full((), _stream_number(stream), dtype=torch.int64, device=key_B.device)
    return mix(key_B ^ mix(name))


def bits(key_B: Tensor, stream: str, shape: tuple[int, ...]) -> Tensor:
    """Draws 64 random bits per element: (B, *shape) int64. Streams with different names are independent."""
    start_B = start(key_B, stream)
    count = math.prod(shape)
    position = torch.arange(count, dtype=torch.int64, device=key_B.device)
    # The factor comes from a tensor: torch's compiler multiplies an index by a number as if integers had no end.
    golden_B1 = ((start_B & 0) + _signed(_GOLDEN))[:, None]
    drawn_BN = mix(start_B[:, None] + position[None, :] * golden_B1)
    return drawn_BN.reshape(key_B.shape[0], *shape)


def uniform(key_B: Tensor, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Draws from [0, 1): (B, *shape) float32 with 24 random bits, bit-equal on every device.

    Example:
        >>> key_B = keys(0, 7, torch.arange(2))
        >>> uniform(key_B, "flip", (3,)).shape
        torch.Size([2, 3])
    """
    return _shift_right(bits(key_B, stream, shape), 40).to(torch.float32) * 2.0**-24


def integers(key_B: Tensor, stream: str, high_B: Tensor) -> Tensor:
    """Draws one integer in [0, high) per sample; `high_B` is (B,) or (B, N) and at least 1."""
    shape = tuple(high_B.shape[1:])
    drawn = (uniform(key_B, stream, shape).double() * high_B).floor().to(torch.int64)
    return torch.minimum(drawn, high_B.to(torch.int64) - 1)


def permutation(key_B: Tensor, stream: str, count: int) -> Tensor:
    """Draws one permutation of 0..count-1 per sample: (B, count) int64."""
    return bits(key_B, stream, (count,)).argsort(dim=1, stable=True)


def normal(key_B: Tensor, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Draws standard normal values by Box and Muller: (B, *shape) float32.

    The logarithm and cosine may differ between devices in the last bit: keep it out of bit-identity claims.
    """
    radius = torch.sqrt(-2.0 * torch.log1p(-uniform(key_B, stream + "/radius", shape)))
    return radius * torch.cos(2.0 * math.pi * uniform(key_B, stream + "/angle", shape))
