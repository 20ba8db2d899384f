"""Counts floating-point operations, so that the same step costs the same on every device.

Matrix products, convolutions and attention are counted, two operations per multiply-add; norms and element-wise steps
are not. torch's own counter knows some attention kernels and not others (on the CPU it counts none), and adds to the
backward pass of the fused ones what they compute again. Here every kernel counts as what the mathematics asks for: two
matrix products forward and four backward. Work that is only repeated is no useful work, which is how model FLOPs
utilisation is defined: Chowdhery et al., "PaLM", 2022, appendix B.

Axes: B batch, H heads, Q queries, K keys, E width of a query or key, V width of a value.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_aten = torch.ops.aten
# Where query, key and value stand among the arguments: first forward, after the gradient backward.
_FORWARD = (
    _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_efficient_attention,
    _aten._scaled_dot_product_cudnn_attention,
)
_BACKWARD = (
    _aten._scaled_dot_product_flash_attention_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
    _aten._scaled_dot_product_efficient_attention_backward,
    _aten._scaled_dot_product_cudnn_attention_backward,
)


def _attention(query_BHQE: Any, key_BHKE: Any, value_BHKV: Any) -> int:
    """Counts query x key and weights x value."""
    b, h, q, e = query_BHQE
    return 2 * b * h * q * key_BHKE[2] * (e + value_BHKV[3])


def _forward(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return _attention(query, key, value)


def _backward(
    gradient: Any, query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any
) -> int:
    return 2 * _attention(query, key, value)


class _Repeated(threading.local):
    depth = 0


_repeated = _Repeated()  # of a thread: autograd recomputes in one of its own


@contextmanager
def uncounted() -> Iterator[None]:
    """Leaves out what runs inside: work that is only repeated."""
    _repeated.depth += 1
    try:
        yield
    finally:
        _repeated.depth -= 1


class _Counter(FlopCounterMode):
    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        return out if _repeated.depth else super()._count_flops(func_packet, out, args, kwargs)


def counter() -> FlopCounterMode:
    """Makes a context that counts what runs inside; `get_total_flops()` tells."""
    mapping = {**dict.fromkeys(_FORWARD, _forward), **dict.fromkeys(_BACKWARD, _backward)}
    return _Counter(display=False, custom_mapping=mapping)
