"""What a finished run wrote, kept beside its working state under the name of all that it depended on.

A workflow removes a job's outputs before it runs the job again, also where nothing that the run reads has changed: two
scans more in a dataset write its index anew, and a fine-tuning on four of the old ones would be repeated bit for bit.
Then the files are given back. They are links to the outputs and take no room while those are there.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path

from voxprior.whole import whole, write_json

FOLDER = "finished"


def keep(output: Path, work: Path, card_hash: str, reads: str, names: Sequence[str]) -> None:
    """Keeps the finished files `names` of `output` below `work`; where links cannot be made, nothing.

    `card_hash` and `reads` name all that they depend on, as in `step.Plan`.
    """
    folder = work / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with contextlib.suppress(OSError):
        for name in names:
            os.link(output / name, folder / name)
        sha256 = {name: _sha256(folder / name) for name in names}
        write_json(folder / "kept.json", {"card_hash": card_hash, "reads": reads, "sha256": sha256})


def give_back(output: Path, work: Path, card_hash: str, reads: str) -> bool:
    """Puts the files of a run that finished on the same card and data back into `output`; tells whether it did.

    What is damaged or of another run is left alone.
    """
    folder = work / FOLDER
    try:
        content = json.loads((folder / "kept.json").read_text(encoding="utf-8"))
        same = (content["card_hash"], content["reads"]) == (card_hash, reads)
        if not same or any(_sha256(folder / name) != told for name, told in content["sha256"].items()):
            return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    for name in content["sha256"]:
        with whole(output / name) as part:
            shutil.copyfile(folder / name, part)
    keep(output, work, card_hash, reads, list(content["sha256"]))
    print(
        f"voxprior: {output} is given back as it was, card and data are those of the finished run: remove {folder} to "
        "train again",
        file=sys.stderr,
    )
    return True


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
