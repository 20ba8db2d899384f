"""Which of a run's processes this one is, as the environment says. The standard library alone: launchers import it.

torchrun, and `--processes`, set RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; Slurm's srun sets names of its own.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from voxprior.errors import Refusal

PARENT = "VOXPRIOR_PARENT"  # process id of the launcher, without which its processes end
MEET = "VOXPRIOR_MEET"  # a file by which processes of one machine find one another
_FIRST_PORT, _PORTS = 20000, 10000


@dataclass(frozen=True)
class Member:
    """One process of `size`, number `rank`; on its machine one of `local_size`, number `local_rank`. Counted from 0."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def tasks_here(text: str, nodes_before: int) -> int:
    """Reads how many tasks run on a node from Slurm's short form: "4(x2),3" is 4, 4, 3."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[min(nodes_before, len(counts) - 1)]


def found(environment: Mapping[str, str] = os.environ) -> Member:
    """Finds this process among those of its run; alone where nobody started several.

    Raises:
        Refusal: srun started several tasks that cannot find one another, or a variable is missing or no number.
    """
    try:
        if int(environment.get("WORLD_SIZE", 1)) > 1:
            size = int(environment["WORLD_SIZE"])
            local_size = int(environment.get("LOCAL_WORLD_SIZE", size))
            return Member(int(environment["RANK"]), size, int(environment["LOCAL_RANK"]), local_size)
        # A batch script has SLURM_PROCID too; only srun's own steps have the number of the step's tasks.
        if "WORLD_SIZE" in environment or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
            return Member()
        size, node = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment.get("SLURM_NODEID", 0))
        local_size = tasks_here(environment.get("SLURM_STEP_TASKS_PER_NODE", str(size)), node)
        member = Member(int(environment["SLURM_PROCID"]), size, int(environment["SLURM_LOCALID"]), local_size)
    except (KeyError, ValueError) as error:
        raise Refusal(
            f"the environment names several processes, but {error} is missing or no number in RANK, WORLD_SIZE, "
            "LOCAL_RANK: start them with --processes, torchrun or srun"
        ) from None
    if "MASTER_ADDR" not in environment:
        raise Refusal(
            f"srun started {size} tasks of one command and MASTER_ADDR is not set: export the first node's name as "
            "MASTER_ADDR, or start one task with --processes"
        )
    return member


def export(member: Member, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Lists the variables by which torch's processes find one another, and are still to be set: srun sets none."""
    port = _FIRST_PORT + int(environment.get("SLURM_JOB_ID", 0)) % _PORTS
    wanted = {"RANK": member.rank, "WORLD_SIZE": member.size, "LOCAL_RANK": member.local_rank, "MASTER_PORT": port}
    return {name: str(value) for name, value in wanted.items() if name not in environment}
