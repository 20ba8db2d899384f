"""What a step does, operation by operation, and how much memory is alive meanwhile: noted on the meta device.

A tensor is its storage and its bytes here. Operations that torch makes of others are noted as those; a norm is noted
as its statistics and what is made with them.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PERSISTENT = 4096  # values that torch's compiler reduces and uses in one kernel
# An operation on a list of tensors is launched for so many chunks of so many numbers, and for so many tensors of one,
# two ... lists. Source: torch, aten/src/ATen/native/cuda/MultiTensorApply.cuh.
CHUNK, CHUNKS, TENSORS = 65536, 320, (110, 64, 48, 36, 30)
LOW = (torch.bfloat16, torch.float16)
_NORMS = {"native_layer_norm", "native_group_norm", "native_batch_norm", "cudnn_batch_norm", "_softmax", "_log_softmax"}
_NORMS |= {f"{name}_backward" for name in ("native_layer_norm", "native_group_norm", "native_batch_norm")}
_NORMS |= {"_softmax_backward_data", "_log_softmax_backward_data", "_native_batch_norm_legit"}
_REDUCTIONS = {"sum", "mean", "var", "var_mean", "std", "std_mean", "amax", "max", "min", "norm", "linalg_vector_norm"}
_FILLS = {"copy", "zero", "fill", "uniform", "normal", "random"}  # in place: what was there is not read
_ALONE = {"sort", "argsort", "topk", "cumsum", "max_pool3d_with_indices", "avg_pool3d", "avg_pool3d_backward"}


@dataclass
class Operation:
    """One noted operation: what it reads and writes, by storage, in bytes."""

    name: str
    kind: str  # product, reduction, pointwise, alone
    flops: int
    low: bool  # in bfloat16 or float16
    reads: dict[int, int]
    writes: dict[int, int]
    voxels: int  # of its largest tensor
    reduced: int = 1  # values that become one
    part: str = ""
    launches: int = 1
    waits: bool = False  # the host, until the device has done it
    again: bool = False  # the second half of the operation before it


def touched(tensor: Tensor) -> int:
    """Counts the bytes of a tensor that are different ones: what is repeated by a stride of 0 is read once."""
    count = 1
    for side, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= side if stride else 1
    return min(count * tensor.element_size(), tensor.untyped_storage().nbytes())


def _scatter(reads: dict[int, int], writes: dict[int, int], into: Tensor, at: Any, given: Tensor, *add: bool) -> None:
    """Corrects what is moved where values are put in places: they alone, and not the rest of the tensor.

    Where they are added, as in the backward pass of a gather, torch sorts the places first (not counted), and where
    the indexed axes do not stand side by side it copies the whole tensor to another order and back.
    Source: torch, aten/src/ATen/native/cuda/Indexing.cu, `index_put_with_sort_kernel`.
    """
    place, moved = into.untyped_storage()._cdata, given.numel() * given.element_size()
    indexed = [axis for axis, index in enumerate(at) if index is not None]
    whole = 0
    if add and add[0]:
        reads[place] = moved
        apart = indexed[-1] - indexed[0] >= len(indexed) or indexed[0] > 0
        whole = 2 * touched(into) if apart else 0
    else:
        reads.pop(place, None)
    if whole:
        reads[place] = moved + whole
    for written in writes:
        writes[written] = moved + whole


def launches_of(name: str, lists: list[list[Tensor]]) -> int:
    """Counts the kernels that an operation launches: one, or what lists of tensors are divided into."""
    if not name.startswith(("_foreach", "_fused", "_amp_foreach")) or not lists:
        return 1
    tensors = max(lists, key=len)
    chunks = sum(math.ceil(tensor.numel() / CHUNK) for tensor in tensors)
    at_once = TENSORS[min(len(lists), len(TENSORS)) - 1]
    return max(1, math.ceil(chunks / CHUNKS), math.ceil(len(tensors) / at_once))


class Tape(TorchDispatchMode):
    """Notes every operation on the device that runs inside, and the most bytes that are alive there.

    What is on the CPU is the host's own work and is not noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.part = ""
        self.together: int | None = None
        self.peak_bytes = 0
        # As long as a storage is weakly held its address is not given to another one.
        self._seen: dict[int, StorageWeakRef] = {}
        self._alive: dict[int, int] = {}  # bytes
        self._bytes = 0

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that are there before they are used."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen[storage._cdata] = StorageWeakRef(storage)
                self._alive[storage._cdata] = storage.nbytes()
                self._bytes += storage.nbytes()
        if self._bytes > self.peak_bytes:  # if all of it is still there; looking is slow
            self._alive = {place: size for place, size in self._alive.items() if not self._seen[place].expired()}
            self._bytes = sum(self._alive.values())
            self.peak_bytes = max(self.peak_bytes, self._bytes)

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        """Runs the operation and notes it, unless it only looks at its input in another way."""
        if function.overloadpacket not in flop_registry and function._can_decompose():
            # Where gradients are not recorded, torch hands over what it would otherwise have taken apart.
            with self:
                made = function.decompose(*given, **(named or {}))
            if made is not NotImplemented:
                return made
        flat, _ = torch.utils._pytree.tree_flatten((given, named))
        inputs = [part for part in flat if isinstance(part, Tensor)]
        made = self.run(function, given, named or {}, inputs)
        outputs = [part for part in torch.utils._pytree.tree_flatten(made)[0] if isinstance(part, Tensor)]
        if all(tensor.device.type != "cpu" for tensor in (*inputs[:1], *outputs)):
            self.note(function, given, named or {}, made, inputs, outputs)
        return made

    def run(self, function: Any, given: Any, named: dict[str, Any], inputs: list[Tensor]) -> Any:
        """Runs one operation."""
        return function(*given, **named)

    def note(self, function: Any, given: Any, named: Any, made: Any, inputs: Any, outputs: Any) -> None:
        """Notes one operation."""
        places = {tensor.untyped_storage()._cdata for tensor in inputs}
        changes = function._schema.is_mutable
        fresh = [tensor for tensor in outputs if changes or tensor.untyped_storage()._cdata not in places]
        name = function.overloadpacket.__name__
        lists = [part for part in given if isinstance(part, list | tuple) and part and isinstance(part[0], Tensor)]
        if changes and not fresh:  # an operation on lists gives nothing back
            fresh = list(lists[0]) if lists else []
        if self.together is None:
            self.hold((*inputs, *outputs))
        else:  # inside a fused kernel nothing of it is alive; what comes out is seen where it is used
            self._seen |= {s._cdata: StorageWeakRef(s) for s in (t.untyped_storage() for t in outputs)}
        if not fresh or name.startswith(("empty", "new_empty")):
            return
        flops = 0
        if function.overloadpacket in flop_registry:
            flops = int(flop_registry[function.overloadpacket](*given, **named, out_val=made))
        bare = name.rstrip("_")
        kind = "pointwise"
        if flops:
            kind = "product"
        elif bare in _ALONE:
            kind = "alone"
        elif bare in _NORMS or bare in _REDUCTIONS:
            kind = "reduction"
        largest = max((tensor.numel() for tensor in (*inputs, *fresh)), default=1)
        least = min(tensor.numel() for tensor in fresh) if bare in _REDUCTIONS else fresh[-1].numel()
        gathers = name in ("index_select", "gather", "index")
        reads: dict[int, int] = {}
        for tensor in inputs[1:] if changes and bare in _FILLS else inputs:
            place = tensor.untyped_storage()._cdata
            size = fresh[0].numel() * tensor.element_size() if gathers else touched(tensor)
            reads[place] = max(reads.get(place, 0), min(size, touched(tensor)))
        writes = {tensor.untyped_storage()._cdata: touched(tensor) for tensor in fresh}
        if bare == "index_put":
            _scatter(reads, writes, *given)
        low = any(tensor.dtype in LOW for tensor in inputs)
        reduced, launches = max(1, largest // max(1, least)), launches_of(name, lists)
        operation = Operation(name, kind, flops, low, reads, writes, largest, reduced, self.part, launches)
        if self.together is not None:
            operation.kind = f"together {self.together}"
        elif bare in _NORMS:
            # Statistics first, and then the input again, which is read twice where it is long.
            statistic = -len(self.operations) - 1
            first = Operation(name, kind, 0, low, reads, {statistic: 8 * least}, largest, reduced, self.part)
            self.operations.append(first)
            operation.kind, operation.reduced, operation.again = "pointwise", 1, True
            operation.reads = {**reads, statistic: 8 * least}
        self.operations.append(operation)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Takes all operations inside for one kernel."""
        before, self.together = self.together, len(self.operations)
        try:
            yield
        finally:
            self.together = before
