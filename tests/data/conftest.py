"""A web site on the loopback address that misbehaves as it is told to."""

import hashlib
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Site:
    """Serves `files`; `faults` are used up one per request, `asked` keeps (path, Range, If-Range).

    Faults: 'drop' (half of the body), 'reset' (no answer), '503', '429 7' (with Retry-After), 'ignore range',
    'shifted' (another range than asked), 'long' (announces more than comes), 'short' (announces less), 'no length',
    'page' (a web page), 'change' (another file from now on), 'kill' (half of the body, then the process `victim` is
    killed), '' (none).
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    always: str = ""
    victim: int = 0
    validators: bool = True
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    def etag(self, path: str) -> str:
        return f'"{hashlib.sha256(self.files[path]).hexdigest()[:8]}"'


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def say(self, code: int, body: bytes = b"", **head) -> None:
            self.send_response(code)
            for name, value in ({"Content_Length": len(body)} | head).items():
                if value is not None:
                    self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            path, wanted, unless = self.path, self.headers.get("Range"), self.headers.get("If-Range")
            site.asked.append((path, wanted, unless))
            word, _, more = (site.faults.pop(0) if site.faults else site.always).partition(" ")
            if word == "reset":
                return self.connection.close()
            if word.isdecimal():
                return self.say(int(word), Retry_After=more or None)
            if path in site.redirects:
                return self.say(302, Location=site.redirects[path])
            if path not in site.files:
                return self.say(404)
            if word == "change":
                site.files[path] = site.files[path][::-1]
            if word == "page":
                return self.say(200, b"<html>Please log in</html>", Content_Type=more or "text/html; charset=utf-8")
            self.serve(site.files[path], path, wanted, unless, f"{word} {more}".strip())

        def serve(self, content, path, wanted, unless, fault):
            head = {"ETag": site.etag(path)} if site.validators else {}
            if unless and unless != head.get("ETag"):
                wanted = None
            start = int(wanted[6:-1]) if wanted and fault != "ignore range" else 0
            if start >= len(content) > 0:
                return self.say(416, Content_Range=f"bytes */{len(content)}")
            code = 206 if wanted and fault != "ignore range" else 200
            if code == 206:
                shown = 0 if fault == "shifted" else start
                head["Content_Range"] = f"bytes {shown}-{len(content) - 1}/{len(content)}"
            body = content[start:]
            length = {"long": len(body) + 100, "short": len(body) // 2, "no length": None}.get(fault, len(body))
            half = fault == "drop" or fault.startswith("kill")
            self.say(code, body[: len(body) // 2] if half else body, **head | {"Content_Length": length})
            self.wfile.flush()
            if fault.startswith("kill"):
                time.sleep(0.05)  # some of it is on the disk by then
                os.kill(site.victim, signal.SIGKILL)
            self.connection.close()

        def log_message(self, *arguments):
            pass

    return Handler


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    told = Site()
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler(told))
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    told.url = f"http://127.0.0.1:{running.server_address[1]}"
    yield told
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Three cases of noise, which does not compress, two with labels."""
    import numpy as np

    from voxprior.data import cache
    from voxprior.whole import write_json

    folder, chance, cases, shape = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0), [], (1, 150, 140, 130)
    (folder / "volumes").mkdir()
    for number in range(3):
        image = chance.integers(0, 4096, shape).astype(np.int16)
        label = (chance.random(shape[1:]) < 0.01).astype(np.uint8)
        places = {1: np.argwhere(label)[:: max(1, int(label.sum()) // 1000)][:1024]}
        entry = {"case": f"c{number}", "patient": str(number), "person": str(number), "shape_zyx": shape[1:]}
        entry |= {"spacing_zyx_mm": [1.0, 1.0, 1.0], "image": f"volumes/c{number}.b2nd", "label": None}
        entry["image_sha256"] = cache.write_array(folder / entry["image"], image, "k")
        entry |= {"label_sha256": None, "class_voxels": [0], "raw": {"direction": [1.0]}, "grid": {"direction": [1.0]}}
        if number < 2:
            entry |= {"label": f"volumes/c{number}.label.b2nd", "class_voxels": [int(label.sum())]}
            entry["label_sha256"] = cache.write_array(folder / entry["label"], label, "k", places)
        cases.append(entry)
    content = {"format": cache.FORMAT, "dataset": "d", "key": "k", "quantum": 1 / 4096, "cases": cases}
    content |= {"classes": [1], "simulated": False}
    write_json(folder / "index.json", content)
    return folder / "index.json"
