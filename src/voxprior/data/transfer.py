"""Downloads that survive a bad line: resumed with Range, retried with back-off, never spliced of two files.

What arrives is `<file>.part`; `<file>.part.json` notes from where, how long the whole is, and the validator (ETag or
Last-Modified) by which the server can tell whether it still has the same file. The whole length is checked here, the
hash by the caller.

Source of Range, If-Range and their validators: RFC 9110, sections 13.1.5 and 14.
"""

import errno
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import urlsplit

import requests
import tenacity
from urllib3.exceptions import HTTPError

from voxprior.errors import Refusal
from voxprior.whole import no_room

STALLED = 8  # attempts in a row without a new byte before giving up: about four minutes of waiting
UNREACHED = 4  # the same where there is no connection at all: a machine without network should hear of it soon
RESTARTS = 3  # times that a file may change under our hands
BLOCK_BYTES = 1 << 16  # a broken connection loses the block that was under way
TIMEOUT_S = (15, 60)  # to connect; between two blocks
LONGEST_WAIT_S = 120.0  # of our own back-off
LONGEST_ASKED_S = 600.0  # what a server's Retry-After may ask for
TOLD_EVERY_S = 30.0
BUSY = (408, 425, 429)  # and 500 to 599


class _Dropped(Exception):
    """The server is busy or the line broke: worth another attempt, after the seconds that the server asks for."""

    def __init__(self, reason: str, asked_s: float = 0.0) -> None:
        super().__init__(reason)
        self.asked_s = asked_s


class _Note(NamedTuple):
    """What is known of the file that a part belongs to; `bytes` is the length of the whole."""

    url: str
    validator: str | None
    bytes: int | None


def download(
    url: str,
    target: Path,
    lengths: Collection[int] = (),
    blind: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Downloads a URL to `target`, going on where an earlier attempt, or an earlier process, stopped.

    Busy answers (408, 425, 429, 5xx) and broken connections are tried again as long as new bytes arrive now and then;
    waits double from about 2 s, at random between half and the whole, and are never shorter than a Retry-After.

    Args:
        url: http or https.
        target: written by rename from `<target>.part`, which stays for the next time when this fails.
        lengths: lengths in bytes that the file may have; empty = any.
        blind: go on with a part even where the server offers no validator, because a hash is known that will judge.
        sleep: waits for so many seconds.

    Returns:
        Whether a part was continued without a validator: if the hash is wrong then, a fresh start may mend it.

    Raises:
        Refusal: the server refuses, stays out of reach or has a file of another length; or the disk is full.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    attempt = _Attempts(url, part, lengths, blind)
    try:
        tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_worth_another),
            wait=attempt.wait_s,
            stop=attempt.is_over,
            sleep=sleep,
            reraise=True,
        )(attempt)
    except (_Dropped, requests.RequestException) as error:
        raise Refusal(f"{url} cannot be fetched ({_said(error)}): run again to go on, or name a mirror") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_room(target, attempt.left_bytes()) from None
    part.replace(target)
    _note_of(part).unlink(missing_ok=True)
    return attempt.went_on_blindly


class _Attempts:
    """The attempts at one file, and what they know of one another."""

    def __init__(self, url: str, part: Path, lengths: Collection[int], blind: bool) -> None:
        self.url, self.part, self.lengths, self.blind = url, part, lengths, blind
        self.went_on_blindly = False
        self.is_ours = self._note_to_go_on() is not None  # the part there, if any
        self.most_bytes, self.failures, self.restarts = self._have() - 1, 0, 0

    def __call__(self) -> None:
        """Makes one attempt, and counts the failures since the last new byte."""
        try:
            self._go()
        except (_Dropped, requests.RequestException):
            self.failures = 1 if self._have() > self.most_bytes else self.failures + 1
            self.most_bytes = max(self._have(), self.most_bytes)
            raise

    def _go(self) -> None:
        note = self._note_to_go_on()
        have = self._have() if note else 0
        # identity: a compressed transfer would count other bytes than the file's.
        headers = {"Accept-Encoding": "identity", "User-Agent": "voxprior"}
        if note and have:
            headers["Range"] = f"bytes={have}-"
            if note.validator:
                headers["If-Range"] = note.validator
        with requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
            _check_answer(answer, self.url)
            if answer.status_code == 416:
                if note and _total(answer) == have == (note.bytes or have):
                    return  # all of it was here already
                self._start_over("the file has become shorter")
            note = self._begin(answer, note, have)
            self.went_on_blindly |= answer.status_code == 206 and note.validator is None
            self._take(answer, note)
        if note.bytes is not None and self._have() != note.bytes:
            raise _Dropped(f"{self._have():,} of {note.bytes:,} bytes arrived")

    def _begin(self, answer: requests.Response, note: _Note | None, have: int) -> _Note:
        """Checks the head of an answer against what is here, and writes down what is new."""
        total = _total(answer)
        if answer.status_code == 206:
            fits = note is not None and _first_byte(answer) == have and total in (None, note.bytes or total)
            if note is None or not fits or (note.validator and _validator(answer) not in (None, note.validator)):
                self._start_over("the file changed during the download")
            note = note._replace(bytes=note.bytes or total)
        else:  # the whole file
            have, note = 0, _Note(self.url, _validator(answer), total)
        if note.bytes is not None and self.lengths and note.bytes not in self.lengths:
            wanted = " or ".join(f"{length:,}" for length in sorted(self.lengths))
            raise Refusal(
                f"{self.url} is another file, it has {note.bytes:,} bytes where {wanted} are expected: name a mirror "
                "that has the right one, or correct the dataset's file"
            )
        if not have:
            self.part.unlink(missing_ok=True)
        self.is_ours = True
        if note.bytes is not None and shutil.disk_usage(self.part.parent).free < note.bytes - have:
            raise no_room(self.part.with_suffix(""), note.bytes - have)
        _note_of(self.part).write_text(json.dumps(note._asdict()), encoding="utf-8")
        return note

    def _take(self, answer: requests.Response, note: _Note) -> None:
        have, told = self._have(), time.monotonic()
        with open(self.part, "ab") as file:
            try:
                # Bytes as they are on the wire: decoded ones would not add up to the length announced.
                for block in answer.raw.stream(BLOCK_BYTES, decode_content=False):
                    file.write(block)
                    have += len(block)
                    if time.monotonic() - told >= TOLD_EVERY_S:
                        told = time.monotonic()
                        of = f" of {note.bytes / 1e9:.2f}" if note.bytes else ""
                        print(f"{self.part.stem}: {have / 1e9:.2f}{of} GB", file=sys.stderr, flush=True)
            except (HTTPError, requests.RequestException) as error:
                raise _Dropped(f"the connection broke off: {type(error).__name__}") from None

    def _note_to_go_on(self) -> _Note | None:
        """Reads the part's note where it may be continued.

        Another place's part stays where it is until this place begins to send: it may have nothing to send at all.
        """
        try:
            note = _Note(**json.loads(_note_of(self.part).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None  # no note, or half of one: nobody knows what the part is
        if not self.part.exists() or not self.part.stat().st_size:
            return None
        if note.url != self.url:  # a validator says nothing about another server's file, the hash will
            return note._replace(url=self.url, validator=None) if self.blind and note.bytes else None
        return note if note.validator or self.blind else None

    def _start_over(self, reason: str) -> NoReturn:
        self.part.unlink(missing_ok=True)
        self.restarts += 1
        raise _Dropped(reason)

    def _have(self) -> int:
        return self.part.stat().st_size if self.is_ours and self.part.exists() else 0

    def left_bytes(self) -> int:
        """Tells how many bytes are still to come, as far as that is known."""
        note = self._note_to_go_on()
        return max((note.bytes or 0) - self._have(), BLOCK_BYTES) if note else BLOCK_BYTES

    def is_over(self, state: tenacity.RetryCallState) -> bool:
        """Tells whether to give up."""
        error = state.outcome.exception() if state.outcome else None
        most = UNREACHED if isinstance(error, requests.ConnectionError) else STALLED
        return self.failures >= most or self.restarts > RESTARTS

    def wait_s(self, state: tenacity.RetryCallState) -> float:
        """Gives the seconds to wait before the next attempt."""
        # At random, so that many jobs that were thrown out together do not come back together.
        own_s = min(2.0**self.failures, LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
        error = state.outcome.exception() if state.outcome else None
        return max(own_s, error.asked_s if isinstance(error, _Dropped) else 0.0)


# ------------------------------------------------------------------------------------------------- answers
def _is_worth_another(error: BaseException) -> bool:
    """Tells whether an attempt that ended so may be followed by another."""
    if isinstance(error, requests.exceptions.SSLError):
        return False  # also a ConnectionError, but waiting mends no certificate
    return isinstance(error, (_Dropped, requests.ConnectionError, requests.Timeout))


def _check_answer(answer: requests.Response, url: str) -> None:
    """Raises for what is no beginning of a file."""
    code = answer.status_code
    if code in BUSY or code >= 500:
        raise _Dropped(f"answer {code}", _asked_s(answer.headers.get("Retry-After")))
    if url.startswith("https:") and not answer.url.startswith("https:"):
        raise Refusal(f"{url} leads to an address without encryption: name a mirror, or correct the dataset's file")
    if code in (401, 403):
        raise Refusal(f"{url} asks for a login (answer {code}): fetch it by hand and name its folder as mirror")
    if code in (404, 410):
        raise Refusal(f"{url} is not there (answer {code}): correct the dataset's file or name a mirror")
    if code not in (200, 206, 416):
        raise Refusal(f"{url} cannot be fetched (answer {code}): correct the dataset's file or name a mirror")
    is_page = answer.headers.get("Content-Type", "").startswith("text/html")
    if is_page and not urlsplit(url).path.endswith((".html", ".htm")) and code != 416:
        raise Refusal(
            f"{url} answers with a web page where a file is expected, often a login or a used-up quota: open it in a "
            "browser, fetch the file by hand and name its folder as mirror"
        )


def _validator(answer: requests.Response) -> str | None:
    """Gives what If-Range may be asked with: a strong ETag, else the date of the last change."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified")


def _total(answer: requests.Response) -> int | None:
    """Reads the length of the whole file from an answer's head."""
    if answer.status_code == 200:
        length = answer.headers.get("Content-Length", "")
    else:
        length = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(length) if length.isdecimal() else None


def _first_byte(answer: requests.Response) -> int | None:
    first = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdecimal() else None


def _asked_s(given: str | None) -> float:
    """Reads Retry-After, seconds or a date; 0 where there is none. At most `LONGEST_ASKED_S`."""
    if not given:
        return 0.0
    try:
        asked = (
            float(given) if given.isdecimal() else (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds()
        )
    except (ValueError, TypeError):
        return 0.0
    return min(max(asked, 0.0), LONGEST_ASKED_S)


def _note_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _said(error: Exception) -> str:
    """Says an error in a few words: those of requests are long and hold addresses of memory."""
    if isinstance(error, requests.TooManyRedirects):
        return "it redirects in a circle"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate cannot be trusted"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error) or type(error).__name__
