"""stub"""

from pathlib import Path


def working_folder(results: Path, work: Path) -> Path:
    """Names where the jobs of a results folder keep their working state."""
    here = Path.cwd()
    inside = results.relative_to(here) if results.is_absolute() and results.is_relative_to(here) else results
    return work / str(inside).lstrip("/")
