"""Exponential moving average of a network's weights: the teacher follows the student."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def taught(teacher: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Asks a teacher without recording anything for a gradient; the answer is an ordinary, detached tensor.

    Inference mode saves what `no_grad` still counts (versions and views of every intermediate tensor). Its results
    must not be saved for a backward pass, hence the copy. While a graph is compiled `no_grad` says the same to the
    compiler, which removes that cost by itself.
    """
    if torch.compiler.is_compiling():
        with torch.no_grad():
            return teacher(*arguments)
    with torch.inference_mode():
        answer = teacher(*arguments)
    return answer.clone()


@torch.no_grad()
def relative_distance(here: dict[str, Tensor], there: dict[str, Tensor]) -> float:
    """Tells how far two sets of weights lie apart: ||here - there|| / ||there|| over all floating-point tensors."""
    names = [name for name, tensor in there.items() if tensor.is_floating_point()]
    apart = sum(float((here[name].double() - there[name].double()).square().sum()) for name in names)
    return (apart / sum(float(there[name].double().square().sum()) for name in names)) ** 0.5


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moves the teacher towards the student in place: teacher = momentum * teacher + (1 - momentum) * student.

    Floating-point parameters and buffers are averaged, all in a few kernels; integer buffers (counters) are copied.
    After n steps behind a student that stands still the distance to it is momentum ** n of the first.

    Raises:
        ValueError: the two networks do not have the same parameters and buffers in the same order.
    """
    pairs: list[tuple[Tensor, Tensor]] = [*zip(teacher.parameters(), student.parameters(), strict=True)]
    pairs += zip(teacher.buffers(), student.buffers(), strict=True)
    moving = [(mine, its) for mine, its in pairs if mine.is_floating_point()]
    if moving:
        torch._foreach_lerp_([mine for mine, _ in moving], [its for _, its in moving], 1.0 - momentum)
    for mine, its in pairs:
        if not mine.is_floating_point():
            mine.copy_(its)
