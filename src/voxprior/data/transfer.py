"""Downloads that survive a bad line: resumed with Range, retried with back-off.

What arrives is `<file>.part` until the whole length is there; checking the hash is the caller's work.
"""

from collections.abc import Callable
from pathlib import Path

import requests
import tenacity

from voxprior.errors import Refusal

STALLED = 6  # attempts in a row without a new byte before giving up
BLOCK_BYTES = 1 << 16  # a broken connection loses the block that was under way
TIMEOUT_S = (15, 60)  # to connect; between two blocks


class _Dropped(Exception):
    """The server is busy or the line broke: worth another attempt."""


def download(url: str, target: Path, pause: Callable[[int], float] = lambda attempt: min(2.0**attempt, 60.0)) -> None:
    """Downloads a URL to `target`, going on where an earlier attempt, or an earlier process, stopped.

    Busy answers (429, 5xx) and broken connections are tried again as long as new bytes arrive now and then.

    Args:
        url: http or https.
        target: written by rename from `<target>.part`, which stays for the next time when this fails.
        pause: seconds to wait after the n-th failed attempt.

    Raises:
        Refusal: the server refuses (4xx) or stays out of reach.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    progress = {"bytes": -1, "failures": 0}

    def give_up(state: tenacity.RetryCallState) -> bool:
        arrived = part.stat().st_size if part.exists() else 0
        progress["failures"] = 1 if arrived > progress["bytes"] else progress["failures"] + 1
        progress["bytes"] = max(arrived, progress["bytes"])
        return progress["failures"] >= STALLED

    try:
        tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((_Dropped, requests.ConnectionError, requests.Timeout)),
            wait=lambda state: pause(progress["failures"]),
            stop=give_up,
            reraise=True,
        )(_attempt, url, part)
    except (_Dropped, requests.RequestException) as error:
        raise Refusal(f"{url} cannot be fetched ({error}): run again to go on, or name a mirror that has it") from None
    part.replace(target)


def _attempt(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    # identity: a compressed transfer would count other bytes than the file's.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 416:
            # The part is as long as the file, or longer: whole if the server says so, else from another file.
            if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()
            raise _Dropped("what is here is longer than the file")
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _Dropped(f"answer {answer.status_code}")
        answer.raise_for_status()
        if answer.status_code != 206:
            have = 0  # the server does not know Range and sends everything
        expected = answer.headers.get("Content-Length")
        with open(part, "ab" if have else "wb") as file:
            try:
                for block in answer.iter_content(BLOCK_BYTES):
                    file.write(block)
            except requests.RequestException as error:
                raise _Dropped(f"connection broke off: {type(error).__name__}") from None
        arrived = part.stat().st_size - have
        if expected is not None and arrived < int(expected):
            raise _Dropped(f"{arrived} of {expected} bytes arrived")
