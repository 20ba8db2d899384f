"""A stand-in for the command `conda`: what Snakemake 9 asks of it, on rattler's real solver and installer.

`conda-forge` means the local channel that STANDIN_CHANNEL names; no other channel is asked, so that what it shows is
that the files are right and `--use-conda` works, and not what the public channel holds.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from rattler import (
    Channel,
    ChannelPriority,
    Gateway,
    MatchSpec,
    Platform,
    VirtualPackage,
    install,
    solve,
)

VERSION = "26.7.1"


async def create(file: Path, prefix: Path) -> None:
    """Solves, installs, and hands the pip section to the new environment's pip, as `conda env create` does."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert content["channels"] == ["conda-forge"], content["channels"]
    entries = content["dependencies"]
    specs = [MatchSpec(entry) for entry in entries if isinstance(entry, str)]
    records = await solve(
        sources=[Channel(Path(os.environ["STANDIN_CHANNEL"]).as_uri())],
        specs=specs,
        gateway=Gateway(),
        platforms=[Platform.current(), Platform("noarch")],
        virtual_packages=VirtualPackage.detect(),
        channel_priority=ChannelPriority.Strict,
    )
    await install(records, prefix, cache_dir=prefix.parent / "packages", show_progress=False)
    for lines in (entry["pip"] for entry in entries if isinstance(entry, dict)):
        with tempfile.NamedTemporaryFile("w", suffix=".txt", dir=file.parent) as requirements:  # paths are the file's
            requirements.write("\n".join(lines))
            requirements.flush()
            pip = [prefix / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", requirements.name]
            subprocess.run(pip, check=True, cwd=file.parent)


def main(words: list[str]) -> None:
    """Answers one call."""

    def option(name: str) -> Path:
        return Path(words[words.index(name) + 1])

    root = Path(sys.argv[1])
    if words == ["--version"]:
        print("conda", VERSION)
    elif words[0] == "info":
        platform = str(Platform.current())
        print(json.dumps({"conda_prefix": str(root), "platform": platform, "envs_dirs": [], "conda_version": VERSION}))
    elif words[0] == "config":
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif words[:2] == ["env", "create"]:
        asyncio.run(create(option("--file"), option("--prefix")))
    elif words[0] != "clean":
        sys.exit(f"the stand-in for conda does not know: {' '.join(words)}")


if __name__ == "__main__":
    main(sys.argv[2:])
