"""Which process this one is, from what torchrun and Slurm put into the environment."""

import pytest

from voxprior.engine.members import Member, export, found, tasks_here
from voxprior.errors import Refusal

SLURM = {
    "SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4,2", "MASTER_ADDR": "node1", "SLURM_JOB_ID": "12345",
}  # fmt: skip


def test_alone_where_nobody_started_several():
    assert found({}) == Member(0, 1, 0, 1)
    assert found({"WORLD_SIZE": "1", "RANK": "0"}) == Member()
    # A batch script of several tasks: Slurm numbers it 0, and starts no other.
    assert found({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Member()


def test_torchruns_variables_win_over_slurms():
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert found({**SLURM, **told}) == Member(3, 4, 1, 2)
    assert found({**SLURM, "WORLD_SIZE": "1"}) == Member()


def test_sruns_tasks_are_processes():
    assert found(SLURM) == Member(4, 6, 0, 2)
    assert export(found(SLURM), SLURM) == {"RANK": "4", "WORLD_SIZE": "6", "LOCAL_RANK": "0", "MASTER_PORT": "22345"}


@pytest.mark.parametrize(("text", "counts"), [("4", [4]), ("4(x2),3", [4, 4, 3]), ("2,1(x2)", [2, 1, 1])])
def test_slurms_short_form_of_tasks_per_node(text, counts):
    assert [tasks_here(text, node) for node in range(len(counts))] == counts


def test_tasks_that_cannot_meet_are_refused_and_do_not_train_side_by_side():
    with pytest.raises(Refusal, match="6 tasks of one command and MASTER_ADDR is not set"):
        found({name: value for name, value in SLURM.items() if name != "MASTER_ADDR"})
    with pytest.raises(Refusal, match="'RANK' is missing or no number"):
        found({"WORLD_SIZE": "2"})
