"""What the processes of a run agree on."""

import os

import pytest
import torch
import torch.distributed as dist

from voxprior.engine import group
from voxprior.engine.members import MEET, Member


def test_one_process_agrees_with_itself_and_says_what_it_says():
    with group.joined(torch.device("cpu")) as here:
        assert here == group.member() == Member()
        assert group.share() == {"rank": 0, "world_size": 1}
        assert group.agree("SIGTERM", False) == ("SIGTERM", False)
        assert group.agree(None, True) == (None, True)
        assert group.first_says(lambda: "mine") == "mine"
        assert [group.added(2.5), group.added(None)] == [2.5, None]
        assert not group.was_lost(RuntimeError("gloo"))


def _one_of_two(rank: int, folder: str) -> None:
    names = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, MEET: f"{folder}/meet"}
    os.environ |= {name: str(value) for name, value in names.items()}
    with group.joined(torch.device("cpu")) as here:
        said = [here.rank, group.share(), group.first_says(lambda: {"asked": rank})]
        said.append(group.agree("SIGUSR1" if rank == 1 else None, rank == 1))  # only process 0 says when to save
        said.append(group.agree(None, rank == 0))
        said.append([group.added(rank + 1.5), group.added(None if rank else 1.0)])
    assert not dist.is_initialized()
    torch.save(said, f"{folder}/{rank}.pt")


def test_a_signal_to_any_process_is_all_processes_and_the_first_says_when_to_save(tmp_path):
    torch.multiprocessing.start_processes(_one_of_two, args=(str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        own, share, said, stop, save, sums = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert own == rank
        assert share == {"rank": rank, "world_size": 2}
        assert said == {"asked": 0}
        assert stop == ("SIGUSR1", False)
        assert save == (None, True)
        assert sums == [4.0, None]


def _loses_another(rank: int, folder: str) -> None:
    names = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, MEET: f"{folder}/meet"}
    os.environ |= {name: str(value) for name, value in names.items()}
    with group.joined(torch.device("cpu")):
        group.agree(None, False)
        if rank:
            os._exit(0)
        with pytest.raises(RuntimeError) as lost:
            group.agree(None, False)
        torch.save(group.was_lost(lost.value), f"{folder}/told.pt")
        os._exit(0)


def test_a_process_that_is_gone_is_noticed_by_the_others(tmp_path):
    torch.multiprocessing.start_processes(_loses_another, args=(str(tmp_path),), nprocs=2, start_method="fork")
    assert torch.load(tmp_path / "told.pt", weights_only=True) is True
