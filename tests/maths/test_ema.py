import copy

import pytest
import torch
from torch import nn

from voxprior.maths.ema import follow


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3))


def test_teacher_behind_a_still_student_follows_the_closed_form():
    teacher, student = _network().double(), _network().double()
    start = copy.deepcopy(teacher.state_dict())
    for _ in range(7):
        follow(teacher, student, 0.9)
    for name, moved in teacher.state_dict().items():
        goal = student.state_dict()[name]
        if moved.is_floating_point():
            torch.testing.assert_close(moved, goal + 0.9**7 * (start[name] - goal), rtol=1e-12, atol=1e-12)


def test_integer_buffers_are_copied():
    teacher, student = _network(), _network()
    student[1].num_batches_tracked += 41
    follow(teacher, student, 0.999)
    assert teacher[1].num_batches_tracked == 41


def test_momentum_0_and_1_copy_and_keep():
    teacher, student = _network(), _network()
    before = copy.deepcopy(teacher.state_dict())
    follow(teacher, student, 1.0)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    follow(teacher, student, 0.0)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in teacher.state_dict().items())


def test_different_networks_are_an_error():
    with pytest.raises(ValueError):
        follow(_network(), nn.Conv3d(1, 3, 3), 0.9)
