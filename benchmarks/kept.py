"""How much memory a compiled step takes: networks are divided by torch's own partitioner, and nothing is computed.

Each network is traced forward and backward as torch's compiler does it, with its decompositions, and its min-cut
partitioner decides what the forward pass keeps and what the backward pass makes again. Traced networks then stand in
the step for the real ones: they give back memory that nobody touches, so that a laptop lays out a step of 40 GiB, and
every tensor is watched from its making to its end.

Inside a network what its kernels write is alive until its last reader: results of products, of reductions and of other
operations that stand alone, what these read, what is given back, and what several read but much must be read for. Any
other value made element by element lies nowhere. What a kernel needs inside itself, and what the allocator cannot use,
comes on top.

Source: torch, `torch/_functorch/partitioners.py: min_cut_rematerialization_partition`.
"""

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import arms  # noqa: F401  # puts the checkout on the path
import torch
import torch.nn.functional as F
from fusing import READ_AGAIN
from tape import Tape
from torch import Tensor, fx, nn
from torch._functorch.aot_autograd import aot_module
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.utils._pytree import tree_leaves, tree_map_only

from voxprior.engine import estimate
from voxprior.engine.step import networks, reduce_terms

CPU = torch.device("cpu")
# Operations that stand alone begin with these: what they read and what they make lies in memory.
_ALONE = ("convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot", "sort", "topk", "cumsum", "scatter", "index")
_ALONE += ("max_pool", "avg_pool", "gather")
_REDUCTIONS = ("sum", "mean", "var", "var_mean", "amax", "amin", "max", "min", "any", "all", "argmax", "prod")


def size_of(value: Any) -> int:
    """Counts the bytes of what a node makes; several results are counted where they are taken apart."""
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    first = schema.arguments[0].alias_info if schema is not None and schema.arguments else None
    return first is not None and not first.is_write


class Graph:
    """Which values of a traced graph lie in memory, and for how long.

    Args:
        graph: operations, with the tensors they make as `meta["val"]`.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.root: dict[fx.Node, fx.Node] = {}  # a view is what it looks at
        for node in self.nodes:
            seen = node.args[0] if node.op == "call_function" and node.args else None
            if isinstance(seen, fx.Node) and (_is_view(node) or (_name(node) == "getitem" and _is_view(seen))):
                self.root[node] = self.root[seen]
            else:
                self.root[node] = node
        self.results = {self.root[node] for node in self.nodes[-1].all_input_nodes}
        self.in_memory = {node for node in self.nodes if node.op == "placeholder"} | self.results
        self.last: dict[fx.Node, int] = {}  # the last reader of what lies in memory
        self._place()

    def _place(self) -> None:
        """Finds what lies in memory and who reads it last, through values that lie nowhere."""
        own = [node for node in self.nodes[:-1] if node.op == "call_function" and self.root[node] is node]
        for node in own:
            maker = node.args[0] if _name(node) == "getitem" else node
            if _name(maker).startswith(_ALONE):
                self.in_memory |= {node, *(self.root[given] for given in maker.all_input_nodes)}
            elif _name(maker) in _REDUCTIONS:
                self.in_memory.add(node)
        lands: dict[fx.Node, set[fx.Node]] = {}  # where a value goes, through values that lie nowhere
        for node in reversed(self.nodes[:-1]):
            lands[node] = set()
            for user in node.users:
                there = self.root[user] is user and user in self.in_memory
                lands[node] |= {user} if there else lands.get(user, set())
        sources: dict[fx.Node, set[fx.Node]] = {}  # what must be read for a value
        for at, node in enumerate(self.nodes[:-1]):
            if self.root[node] is not node:
                continue
            reads: set[fx.Node] = set()
            for given in map(self.root.__getitem__, node.all_input_nodes):
                reads |= {given} if given in self.in_memory else sources.get(given, set())
            sources[node] = reads
            # Several read it, and not in one kernel: a reduction must be finished before others go on.
            apart = len({_name(user) in _REDUCTIONS for user in lands[node]}) == 2
            if apart and len(reads) > READ_AGAIN and size_of(node.meta.get("val")):
                self.in_memory.add(node)
            self.last |= dict.fromkeys(reads, at)

    def extra_bytes(self, inputs_end: bool) -> int:
        """Tells how much more than before is alive at the fullest moment inside.

        Args:
            inputs_end: what is handed over is let go after its last reader, as the backward pass does.
        """
        ends: dict[int, list[int]] = {}
        for node, at in self.last.items():
            if node not in self.results and (inputs_end or node.op != "placeholder"):
                ends.setdefault(at, []).append(size_of(node.meta.get("val")))
        alive = most = 0
        for at, node in enumerate(self.nodes[:-1]):
            made = size_of(node.meta.get("val")) if node in self.in_memory and node.op == "call_function" else 0
            over = ends.get(at, [])
            # A kernel that goes element by element writes over what it reads last, if that is as large.
            apart = _name(node).startswith(_ALONE) or _name(node) in _REDUCTIONS
            most = max(most, alive + made - (made if made in over and not apart else 0))
            alive += made - sum(over)
        return max(most, alive)


class Watch(Tape):
    """Adds up what is alive of the step's own tensors, each storage once; notes no operations."""

    def reach(self, more: int) -> None:
        """Notes a moment at which so much more is alive."""
        self.peak_bytes, before = 0, self.peak_bytes
        self.hold([])
        self.peak_bytes = max(before, self.peak_bytes + more)

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        """Runs an operation and counts what it makes; what the tracing makes is not of the step."""
        made = function(*given, **(named or {}))
        self.hold(part for part in tree_leaves(made) if type(part) is Tensor and part.device == CPU)
        return made


class _AsCompiledForAGpu(estimate._AsOnAGpu):
    """Autocast and the operations as they are on a GPU."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, given: Any = (), named: Any = None) -> Any:
        """Gives attention to the flash kernel; group norms of single channels are instance norms."""
        if function is F.scaled_dot_product_attention:
            query, key, value = (self._cast(part, torch.bfloat16) for part in given[:3])
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        if function is F.group_norm and given[1] == given[0].shape[1]:
            return F.instance_norm(
                given[0], **dict(zip(("weight", "bias", "eps"), given[2:], strict=False)), **(named or {})
            )
        return super().__torch_function__(function, types, given, named)


class Traced:
    """Stands for a network: traces it at its first call with tensors of such shapes, and gives back empty memory."""

    def __init__(self, part: nn.Module, watch: Watch) -> None:
        self.part = copy.copy(part)  # shares the weights; `part.forward` is what will be replaced
        self.watch = watch
        self.traced: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Calls it."""
        leaves = [
            (leaf.shape, leaf.dtype, leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
            for leaf in tree_leaves((given, named))
        ]
        signature = (*leaves, torch.is_grad_enabled())
        if signature not in self.traced:
            self.traced[signature] = aot_module(
                copy.copy(self.part),
                fw_compiler=lambda graph, _: self._stand_in(graph, inputs_end=False),
                bw_compiler=lambda graph, _: self._stand_in(graph, inputs_end=True),
                partition_fn=min_cut_rematerialization_partition,
                decompositions=select_decomp_table(),
            )
        return self.traced[signature](*given, **named)

    def _stand_in(self, module: fx.GraphModule, inputs_end: bool) -> Callable[..., Any]:
        graph = Graph(module.graph)
        more = graph.extra_bytes(inputs_end)
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        (results,) = graph.nodes[-1].args

        def run(given: list[Any]) -> list[Any]:
            self.watch.reach(more)
            there = dict(zip(inputs, given, strict=True))
            given.clear()
            storages: dict[fx.Node, Any] = {}

            def make(node: Any) -> Any:
                value = node.meta["val"] if isinstance(node, fx.Node) else node
                if node in there or not isinstance(value, Tensor):
                    return there.get(node, value) if isinstance(node, fx.Node) else node
                root = graph.root[node]
                if root not in storages:
                    base = there.get(root)
                    empty = torch.empty(value.untyped_storage().nbytes(), dtype=torch.uint8)
                    storages[root] = (empty if base is None else base).untyped_storage()
                made = torch.empty(0, dtype=value.dtype)
                return made.set_(storages[root], value.storage_offset(), value.shape, value.stride())

            return [make(node) for node in results]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


def peak_bytes(model: Any, region: Any, samples: int, optimiser_bytes: int, labels: bool = False) -> int:
    """Tells how much is alive at the fullest moment of a compiled step in bfloat16, optimiser and batch included.

    Args:
        model: a method's model on the meta device; it is not fit for anything else afterwards.
        region: what the loader reads.
        samples: per step.
        optimiser_bytes: what the optimiser keeps.
        labels: the loader reads label maps too.
    """
    batch, key_B = estimate.fake_batch(region, samples, channels=model.encoder.channels_in, labels=labels)
    with torch.no_grad():
        views = model.train().views(batch, key_B)
    model.to_empty(device=CPU)
    views, batch = tree_map_only(Tensor, lambda part: torch.zeros(part.shape, dtype=part.dtype), (views, batch))
    watch = Watch()
    watch.hold([*model.parameters(), *model.buffers(), *tree_leaves((views, batch))])
    for _, part in networks(model):
        part.forward = Traced(part, watch)
    with watch:
        # While a graph is traced nothing that it makes may be remembered for later (`maths/positions.py`).
        with mock.patch.object(torch.compiler, "is_compiling", return_value=True), _AsCompiledForAGpu(True):
            loss, _, _ = reduce_terms(model(views, 0.5))
        loss.backward()
    return watch.peak_bytes + optimiser_bytes
