"""Which operations run as one kernel: as written each on its own, compiled as torch's compiler would join them.

Compiled, a value made element by element is not written but made again from what lies in memory wherever it is used,
in the backward pass too, as long as few values are read for it; it is written where a product, or an operation that
stands alone, needs it, and where nobody reads it (a result). Reductions write what they give. Kernels over equally
many values that read something in common run as one, if nothing between them must be finished first: what a reduction
over more than PERSISTENT values gives must be. What only its own kernel reads is not written. Parts of a step are
compiled apart, but for the forward and the backward pass: what one gives another is written.

Source: torch/_inductor: `ir.StorageBox.mark_reuse` and `config.realize_reads_threshold` (values that are read again),
`scheduler.Scheduler.fuse_nodes` (what runs as one), `config.realize_acc_reads_threshold`,
`Scheduler.can_buffer_be_removed_through_fusion`.
"""

from dataclasses import dataclass, field

from tape import PERSISTENT, Operation

READ_AGAIN = 4  # values that are read for one that is used twice
READ_ONCE = 8  # and for any
NEAR = 64  # kernels back to which one may be joined
WRITTEN = ("views", "between")  # parts of a step that no compiler sees

Value = tuple[int, int]  # a storage, and how often it had been written


@dataclass
class Kernel:
    """Operations that run as one, and the bytes that they read and write."""

    operations: list[int] = field(default_factory=list)
    reads: dict[Value, int] = field(default_factory=dict)
    writes: dict[Value, int] = field(default_factory=dict)
    open: bool = False
    voxels: int = 0
    reduced: int = 1

    @property
    def bytes(self) -> int:
        """What it moves."""
        return sum(self.reads.values()) + sum(self.writes.values())


def as_written(operations: list[Operation]) -> list[Kernel]:
    """Makes a kernel of each operation; what is marked as one stays one."""
    groups: list[Kernel] = []
    joined: dict[str, Kernel] = {}
    written: dict[int, int] = {}
    for at, operation in enumerate(operations):
        kind = operation.kind
        if operation.again and operations[at - 1].reduced <= PERSISTENT:
            group = groups[-1]
        elif kind.startswith("together") and kind in joined:
            group = joined[kind]
        else:
            group = Kernel(voxels=operation.voxels)
            groups.append(group)
            joined[kind] = group
        group.operations.append(at)
        for place, size in operation.reads.items():
            value = place, written.get(place, 0)
            if value not in group.writes:
                group.reads[value] = max(group.reads.get(value, 0), size)
        for place, size in operation.writes.items():
            written[place] = written.get(place, 0) + 1
            group.writes[place, written[place]] = size
    return groups


def keep_inside(operations: list[Operation], group: Kernel, users: dict[int, int]) -> None:
    """Takes off what a kernel of several operations writes for itself alone; `users`: the last reader of a storage."""
    end = max(group.operations)
    if len(group.operations) > 1 and (operations[end].kind.startswith("together") or operations[end].again):
        group.writes = {value: size for value, size in group.writes.items() if users.get(value[0], end + 1) > end}


class Compiler:
    """Joins operations into kernels."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        self.groups: list[Kernel] = []
        self.written: dict[int, int] = {}
        self.made: dict[Value, tuple[dict[Value, int], list[int], int]] = {}  # not in memory: from what, how, its bytes
        self.home: dict[Value, tuple[int, bool]] = {}  # in memory: the kernel that wrote it, whether it may be joined
        self.together: dict[str, int] = {}
        self.uses: dict[Value, int] = {}
        self._count()

    def _count(self) -> None:
        """Counts the uses of every value."""
        written: dict[int, int] = {}
        for operation in self.operations:
            for place in operation.reads:
                value = place, written.get(place, 0)
                self.uses[value] = self.uses.get(value, 0) + 1
            for place in operation.writes:
                written[place] = written.get(place, 0) + 1

    def run(self) -> list[Kernel]:
        """Goes through the operations."""
        for at, operation in enumerate(self.operations):
            inputs = {(place, self.written.get(place, 0)): size for place, size in operation.reads.items()}
            fluid = operation.kind in ("pointwise", "reduction") and operation.part not in WRITTEN
            sources, chain = self._sources(inputs, operation, at) if fluid else (self._settled(inputs), [at])
            outputs: dict[Value, int] = {}
            for place, size in operation.writes.items():
                self.written[place] = self.written.get(place, 0) + 1
                outputs[place, self.written[place]] = size
            if fluid and operation.kind == "pointwise":
                for value, size in outputs.items():
                    self.made[value] = sources, chain, size
                    if self.uses.get(value, 0) > 1 and len(sources) > READ_AGAIN:
                        self._write(value)
            elif fluid:
                self._place(sources, outputs, chain, operation.reduced)
            else:
                self._alone(inputs, outputs, at)
        for value in [value for value in self.made if not self.uses.get(value)]:
            self._write(value)
        return self.groups

    def _sources(self, inputs: dict[Value, int], operation: Operation, at: int) -> tuple[dict[Value, int], list[int]]:
        """Finds what must be read for an operation, and all operations in between."""
        found: dict[Value, int] = {}
        chain: set[int] = {at}
        for value, size in inputs.items():
            if value in self.made:
                sources, through, _ = self.made[value]
                maker = self.operations[max(through)].part
                apart = maker != operation.part and (maker, operation.part) != ("forward", "backward")
                if apart or len(sources) + len(found) > READ_ONCE:
                    self._write(value)
            if value in self.made:
                sources, through, _ = self.made[value]
                found |= {source: max(found.get(source, 0), count) for source, count in sources.items()}
                chain |= set(through)
            else:
                found[value] = max(found.get(value, 0), size)
        return found, sorted(chain)

    def _settled(self, inputs: dict[Value, int]) -> dict[Value, int]:
        """Has all inputs written."""
        for value in inputs:
            if value in self.made:
                self._write(value)
        return inputs

    def _write(self, value: Value) -> None:
        """Writes a value into memory."""
        sources, chain, size = self.made.pop(value)
        self._place(sources, {value: size}, chain, 1)

    def _alone(self, inputs: dict[Value, int], outputs: dict[Value, int], at: int) -> None:
        """Makes a kernel that nothing joins, or adds to the one that the operation belongs to."""
        kind = self.operations[at].kind
        if not kind.startswith("together") or kind not in self.together:
            self.together[kind] = len(self.groups)
            self.groups.append(Kernel(voxels=self.operations[at].voxels))
        number = self.together[kind]
        group = self.groups[number]
        group.operations.append(at)
        group.reads |= {value: size for value, size in inputs.items() if value not in group.writes}
        group.writes |= outputs
        self.home |= dict.fromkeys(outputs, (number, False))

    def _place(self, sources: dict[Value, int], outputs: dict[Value, int], chain: list[int], reduced: int) -> None:
        """Adds to a kernel, the latest one that can be joined, or makes one."""
        operation = self.operations[chain[-1]]
        first = 0
        for value in sources:
            if value in self.home:
                number, may = self.home[value]
                first = max(first, number + (not may))
        for number in range(len(self.groups) - 1, max(first, len(self.groups) - NEAR) - 1, -1):
            group = self.groups[number]
            same = group.open and group.voxels == operation.voxels
            if same and self.operations[group.operations[0]].part == operation.part:
                common = any(value in group.reads or value in group.writes for value in sources)
                if common and (reduced == 1 or group.reduced in (1, reduced)):
                    break
        else:
            number = len(self.groups)
            group = Kernel(open=True, voxels=operation.voxels)
            # A chain may begin in the forward pass; the kernel belongs to where it ends.
            self.groups.append(group)
        group.operations += [at for at in reversed(chain) if at not in group.operations]
        group.reads |= {v: max(size, group.reads.get(v, 0)) for v, size in sources.items() if v not in group.writes}
        group.writes |= outputs
        group.reduced = max(group.reduced, reduced)
        self.home |= dict.fromkeys(outputs, (number, reduced <= PERSISTENT))


def leave_inside(groups: list[Kernel], uses: dict[Value, int]) -> None:
    """Takes off what a joined kernel would write although no other reads it; results, which nobody reads, stay."""
    read = {value for group in groups for value in group.reads}
    for group in groups:
        if group.open:
            group.writes = {v: size for v, size in group.writes.items() if v in read or not uses.get(v)}


def kernels(operations: list[Operation], compiled: bool) -> list[Kernel]:
    """Groups operations into kernels."""
    if compiled:
        compiler = Compiler(operations)
        groups = compiler.run()
        leave_inside(groups, compiler.uses)
    else:
        groups = as_written(operations)
    users = {place: at for at, operation in enumerate(operations) for place in operation.reads}
    for group in groups:
        if not group.open:
            keep_inside(operations, group, users)
    return groups
