"""How much memory may still be taken: the machine's, or less where a container or a job has a limit of its own."""

from pathlib import Path


def free_bytes(root: Path = Path("/")) -> int | None:
    """Says how much memory this process may still take, in bytes; None where the system does not tell (no Linux).

    Files that the kernel keeps in memory count as free: it drops them when asked.

    Args:
        root: where `proc` and `sys` are.
    """
    known = [_machine(root / "proc/meminfo"), *(_group(folder) for folder in _groups(root))]
    found = [value for value in known if value is not None]
    return max(0, min(found)) if found else None


def _machine(path: Path) -> int | None:
    for line in _text(path).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _groups(root: Path) -> list[Path]:
    """Lists the control groups whose limits hold for this process: its own and all above, of version 2 and 1."""
    folders = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
        else:
            continue
        inner = top / path.lstrip("/")
        # Inside a container the group's path is often the host's, and only the top is there.
        folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(top)]
    return folders


def _group(folder: Path) -> int | None:
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        most, taken = _text(folder / limit).strip(), _text(folder / used).strip()
        if most.isdigit() and taken.isdigit():
            kept = {line.split()[0]: int(line.split()[1]) for line in _text(folder / "memory.stat").splitlines()}
            return int(most) - int(taken) + kept.get("total_inactive_file", kept.get("inactive_file", 0))
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
