"""Classes that overlap, as whole tumour, tumour core and enhancing tumour do, in one label map.

A label map has one value a voxel. So classes are painted in order, a later one over an earlier one, and a class is the
union of all that is painted with a value of it. That says everything where each class keeps a value of its own: the
voxels painted last with it belong to the same classes, whichever of its values they had.

Source: nnU-Net, "Region-based training" (`regions_class_order`), Apache-2.0: the same union and the same painting.

Here a class is its number, 1 to K, in the order of painting; `values[k - 1]` lists its values in label files.
"""

from collections.abc import Mapping, Sequence

from voxprior.errors import Refusal

Values = Sequence[Sequence[int]]


def painted_values(values: Values) -> list[list[int]]:
    """Lists, per class, the values that it is painted with: its own, less those of the classes after it."""
    later = [{value for others in values[place:] for value in others} for place in range(1, len(values) + 1)]
    return [[value for value in some if value not in over] for some, over in zip(values, later, strict=True)]


def memberships(values: Values) -> list[list[int]]:
    """Lists, per class, the classes that a voxel painted with it belongs to, itself among them.

    Returns:
        One list per class, or [] where no value belongs to two classes: a plain label map.

    Example:
        >>> memberships([[1, 2, 3], [2, 3], [3]])
        [[1], [1, 2], [1, 2, 3]]
    """
    every = [value for some in values for value in set(some)]
    if len(every) == len(set(every)):
        return []
    return [
        [number for number, others in enumerate(values, 1) if number == own or (painted and painted[0] in others)]
        for own, painted in enumerate(painted_values(values), 1)
    ]


def chosen(classes: Sequence[str], values: Mapping[str, Sequence[int]]) -> list[list[int]]:
    """Lists the memberships of a study's classes by the values that its dataset gives them."""
    return memberships([values.get(name, []) for name in classes])


def demand_paintable(names: Sequence[str], values: Values, where: str) -> None:
    """Refuses classes that no label map can hold in this order; `where` begins the sentence.

    Raises:
        Refusal: a class is covered whole by later ones, or painting loses to which classes a value belongs.
    """
    painted = painted_values(values)
    for name, some, left in zip(names, values, painted, strict=True):
        if some and not left:
            raise Refusal(
                f"{where}: class {name} is covered whole by classes painted after it, so nothing of it would be left: "
                "put larger classes before the smaller ones that they hold, and leave out a class that stands twice"
            )
        held = {value: {n for n, others in zip(names, values, strict=True) if value in others} for value in left}
        for value in left[1:]:
            if held[value] != held[left[0]]:
                more = held[value] ^ held[left[0]]
                raise Refusal(
                    f"{where}: values {left[0]} and {value} would both be painted as class {name}, and only one "
                    f"of them belongs to {', '.join(sorted(more))}: add a class of the values that are shared, or "
                    "change the order"
                )


def union(memberships_K: Sequence[Sequence[int]], number: int) -> list[int]:
    """Lists the painted classes that make up class `number`: itself alone where nothing overlaps."""
    return [own for own, of in enumerate(memberships_K, 1) if number in of] if memberships_K else [number]
