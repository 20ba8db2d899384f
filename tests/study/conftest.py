"""A headless Chromium that tests talk to through a pipe (Chrome DevTools Protocol), with the standard library alone."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]


class Chromium:
    """One page in one browser. `console` and `requests` gather what it says and loads."""

    def __init__(self, folder: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash", CHROMIUM, *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={folder}", "about:blank"], pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._rest, self._number, self._session = b"", 0, None
        self.console: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        page = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params) -> dict:
        """Sends a command and waits for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._receive()
            if told.get("id") == self._number:
                assert "error" not in told, (method, told)
                return told["result"]

    def _receive(self) -> dict:
        while b"\0" not in self._rest:
            some = os.read(self._read, 1 << 20)
            assert some, "Chromium ended"
            self._rest += some
        line, self._rest = self._rest.split(b"\0", 1)
        told = json.loads(line)
        params = told.get("params", {})
        match told.get("method"):
            case "Runtime.exceptionThrown":
                self.console.append(str(params["exceptionDetails"].get("exception", params)))
            case "Runtime.consoleAPICalled":
                self.console.append(str([arg.get("value") for arg in params["args"]]))
            case "Log.entryAdded":
                self.console.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"][:100])
            case "Page.loadEventFired":
                self.loaded = True
        return told

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False, still: bool = True) -> None:
        """Opens a file at a width, by day or by night; `still` asks for reduced motion."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        features.append({"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"})
        self.send("Emulation.setEmulatedMedia", media="screen", features=features)
        self.loaded = False
        self.send("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + 60
        while not self.loaded and time.monotonic() < until:
            self.run("0")

    def run(self, expression: str):
        """Evaluates JavaScript on the page and returns its value."""
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key: str) -> None:
        """Presses a key where the focus is."""
        codes = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37, "End": 35, "Home": 36, " ": 32}
        text = {"Enter": "\r", " ": " "}.get(key)
        given = {"key": key, "windowsVirtualKeyCode": codes[key]} | ({"text": text} if text else {})
        self.send("Input.dispatchKeyEvent", type="keyDown", **given)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=codes[key])

    def picture(self, path: Path, top: int = 0, height: int = 0) -> None:
        """Takes a picture of the page, or of `height` pixels of it from `top` on."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        """Prints the page."""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"])

    def close(self) -> None:
        """Ends the browser."""
        self._session = None
        self.send("Browser.close")
        self._process.wait(timeout=20)
        os.close(self._write)
        os.close(self._read)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Gives a browser; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
