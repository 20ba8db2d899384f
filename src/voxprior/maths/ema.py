"""Exponential moving average of a network's weights: the teacher follows the student."""

import torch
from torch import Tensor, nn


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
