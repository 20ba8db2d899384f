"""What a training step would cost: counted on the meta device, where tensors have shapes and no content.

Nothing is computed and no memory is taken, so the largest configuration is counted on a laptop. It is the method's own
code that runs, with fake scans.

Axes: B samples, C channels, Z Y X voxels; H heads, Q queries, K keys, E width of a head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from voxprior.engine.flops import counter
from voxprior.engine.recompute import around, watchers
from voxprior.engine.step import Recipe, parameter_groups, reduce_terms
from voxprior.maths.batch import Batch
from voxprior.maths.boxes import Region

META = torch.device("meta")
# What autocast computes in bfloat16, and what it insists to compute in float32.
_PRODUCTS = {F.linear, F.conv3d, F.conv_transpose3d, torch.matmul, torch.bmm, torch.mm, torch.einsum, Tensor.matmul}
_PRODUCTS |= {Tensor.__matmul__, Tensor.bmm, Tensor.mm}
_STATISTICS = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cross_entropy, F.mse_loss, F.cosine_similarity}
_STATISTICS |= {torch.softmax, torch.log_softmax, torch.norm, Tensor.softmax, Tensor.log_softmax, Tensor.norm}


@dataclass(frozen=True)
class Cost:
    """What one step costs, and what it holds. Bytes are those of one device.

    parameters: trainable ones; `encoder`: those that segmentation inherits; `teacher`: those that follow.
    flops: of a step in the middle of the run: matrix products, convolutions and attention, two per multiply-add.
    decoder_flops: those of them in modules called `decoder`, the teacher's too; 0 for methods without one.
    saved_bytes: what autograd keeps from the forward pass for the backward pass, each storage once, weights left out.
    kernels: operations of forward and backward pass that compute something, each a launch as they are written.
    """

    parameters: int
    encoder: int
    teacher: int
    flops: int
    decoder_flops: int
    weight_bytes: int
    gradient_bytes: int
    optimiser_bytes: int
    saved_bytes: int
    input_bytes: int
    kernels: int

    @property
    def memory_bytes(self) -> int:
        """Adds them up. What kernels need for a moment, and what the allocator cannot use, comes on top."""
        held = self.weight_bytes + self.gradient_bytes + self.optimiser_bytes
        return held + self.saved_bytes + self.input_bytes


class _Fused(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: its inputs, its result and one number per query."""

    @staticmethod
    def forward(ctx: Any, query_BHQE: Tensor, key_BHKE: Tensor, value_BHKE: Tensor) -> Tensor:
        """Computes without the softmax, which costs no products and keeps nothing here."""
        mixed_BHQE = (query_BHQE @ key_BHKE.transpose(-1, -2)) @ value_BHKE
        ctx.save_for_backward(query_BHQE, key_BHKE, value_BHKE, mixed_BHQE, query_BHQE.new_empty(query_BHQE.shape[:3]))
        return mixed_BHQE

    @staticmethod
    def backward(ctx: Any, gradient_BHQE: Tensor) -> tuple[Tensor, ...]:
        """Computes four products, as the mathematics asks for."""
        query_BHQE, key_BHKE, value_BHKE, _, _ = ctx.saved_tensors
        weight_BHQK = gradient_BHQE @ value_BHKE.transpose(-1, -2)
        to_query, to_key = weight_BHQK @ key_BHKE, weight_BHQK.transpose(-1, -2) @ query_BHQE
        return to_query, to_key, weight_BHQK.transpose(-1, -2) @ gradient_BHQE


class _AsOnAGpu(TorchFunctionMode):
    """Gives meta tensors what torch gives them on a GPU alone: autocast to bfloat16, and fused attention."""

    def __init__(self, bf16: bool) -> None:
        super().__init__()
        self.bf16 = bf16

    def __torch_function__(self, function: Callable[..., Any], types: Any, given: Any = (), named: Any = None) -> Any:
        """Casts the arguments as autocast does; other functions see what they are given."""
        named = named or {}
        if function is F.scaled_dot_product_attention:
            query, key, value = (self._cast(part, torch.bfloat16) for part in given[:3])
            return _Fused.apply(query, key, value)
        if function in _PRODUCTS or function in _STATISTICS:
            to = torch.bfloat16 if function in _PRODUCTS else torch.float32
            given = tuple(self._cast(part, to) for part in given)
            named = {name: self._cast(part, to) for name, part in named.items()}
        return function(*given, **named)

    def _cast(self, value: Any, to: torch.dtype) -> Any:
        floating = isinstance(value, Tensor) and value.dtype in (torch.float32, torch.bfloat16)
        return value.to(to) if self.bf16 and floating else value


class _Kernels(TorchDispatchMode):
    """Counts operations, but not those that only look at their input in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        """Runs the operation and counts it."""
        made = function(*given, **(named or {}))
        places = {part.untyped_storage()._cdata for part in tree_leaves((given, named)) if isinstance(part, Tensor)}
        writes = [part for part in tree_leaves(made) if isinstance(part, Tensor)]
        fresh = any(part.untyped_storage()._cdata not in places for part in writes)
        empty = function.overloadpacket.__name__.startswith(("empty", "new_empty"))
        self.count += (fresh or bool(writes and function._schema.is_mutable)) and not empty
        return made


def fake_batch(
    region: Region, samples: int, device: torch.device = META, channels: int = 1, labels: bool = False
) -> tuple[Batch, Tensor]:
    """Makes a batch as the loader hands it over, without content on the meta device, and its keys (B,)."""
    batch = {
        "region_BCZYX": torch.zeros(samples, channels, *region.size_vox, dtype=torch.int16, device=device),
        "quantum_B": torch.full((samples,), 1e-3, device=device),
        "spacing_mm_B3": torch.ones(samples, 3, device=device),
        "valid_lo_B3": torch.zeros(samples, 3, dtype=torch.int64, device=device),
        "valid_hi_B3": torch.zeros(samples, 3, dtype=torch.int64, device=device),
    }
    for axis, side in enumerate(region.size_vox):
        batch["valid_hi_B3"][:, axis] = side
    if labels:
        batch["labels_BZYX"] = torch.zeros(samples, *region.size_vox, dtype=torch.uint8, device=device)
    return batch, torch.arange(samples, device=device)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def cost(model: Any, region: Region, samples: int, precision: str, recipe: Recipe, labels: bool = False) -> Cost:
    """Counts a step of `samples` samples, at 0.5 of the run, when every part of a method is at work.

    Args:
        model: a method's model, built on the meta device.
        region: what the loader reads.
        samples: per step.
        precision: fp32 or bf16. Attention is taken to be fused in both.
        recipe: its optimiser holds two numbers per trainable parameter (AdamW) or one (LARS).
        labels: the loader reads label maps too.
    """
    batch, key_B = fake_batch(region, samples, channels=model.encoder.channels_in, labels=labels)
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}
    kept = []  # a storage that is let go would give its address to the next one

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
            kept.append(storage)
        return tensor

    with torch.no_grad():
        views = model.train().views(batch, key_B)
    with _Kernels() as kernels, counter() as counted:
        watched = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        watchers.append(keep)
        with watched, _AsOnAGpu(precision == "bf16"):
            loss, _, _ = reduce_terms(model(views, 0.5))
        watchers.remove(keep)
        saved_bytes = sum(saved.values())
        around.append(lambda: _AsOnAGpu(precision == "bf16"))
        loss.backward()
        around.clear()
    trained = [parameter for group in parameter_groups(model, recipe) for parameter in group["params"]]
    seen = [view for view in views if isinstance(view, Tensor)]
    teacher = getattr(model, "teacher", nn.Module())
    return Cost(
        parameters=sum(parameter.numel() for parameter in trained),
        encoder=sum(parameter.numel() for parameter in model.encoder.parameters()),
        teacher=sum(parameter.numel() for parameter in teacher.parameters()),
        flops=counted.get_total_flops(),
        decoder_flops=_inside("decoder", counted.get_flop_counts()),
        weight_bytes=_bytes([*model.parameters(), *model.buffers()]),
        gradient_bytes=_bytes(trained),
        optimiser_bytes=_bytes(trained) * (1 if recipe.optimiser == "lars" else 2),
        saved_bytes=saved_bytes,
        input_bytes=_bytes([*batch.values(), *seen]),
        kernels=kernels.count,
    )


def _inside(module: str, counts: dict[str, dict[Any, int]]) -> int:
    """Adds up what was counted in modules of this name, wherever they are: `Model.decoder`, `Model.teacher.decoder`."""
    own = [some for name, some in counts.items() if name.endswith(f".{module}") and name.count(module) == 1]
    return sum(sum(some.values()) for some in own)


def short_of(memory_bytes: int, cost: Cost) -> bool:
    """Tells whether a step is likely not to fit: a tenth of the memory is left to kernels and the allocator."""
    return cost.memory_bytes > 0.9 * memory_bytes


def steps_for(voxels: int, samples: int, voxels_per_sample: int) -> int:
    """Counts the steps that a budget pays for, at least two: a schedule has a start and an end."""
    return max(2, math.ceil(voxels / (samples * voxels_per_sample)))
