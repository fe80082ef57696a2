"""Drive a real Chromium without a window over its debugging pipe. Only the browser is needed.

python -m tests.report.browser REPORT.html FOLDER     pictures of a report, light and dark, wide and narrow
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.patience import HANG_S

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")


def program() -> str | None:
    """Return the path of a browser, or None."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Page:
    """One page. Every method returns when the browser is done."""

    def __init__(self, write: Any, read: Any) -> None:
        self._write, self._read, self._last, self._session = write, read, 0, None
        self.errors: list[str] = []  # exceptions and messages of the console
        self.requests: list[str] = []  # addresses that the page asked for
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of Chromium's debugging protocol. Raises RuntimeError if it is refused."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._note(answer)

    def open(self, path: Path, *, theme: str = "light", width: int = 1280, height: int = 900) -> None:
        """Load a file and wait until it has drawn."""
        self.errors, self.requests = [], []
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.resize(width, height)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")
        self.settle()

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def settle(self) -> None:
        """Wait for two frames, so that everything is drawn."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def wait(self, condition: str) -> None:
        deadline = time.monotonic() + HANG_S
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """Return the value of an expression, and wait if it is a promise. Raises RuntimeError if it throws."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, *keys: str) -> None:
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def point(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Move the pointer over an element, at shares of its size."""
        node = f"document.querySelector({selector!r})"
        self.run(f"{node}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.run(f"(({{x, y, width, height}}) => [x, y, width, height])({node}.getBoundingClientRect())")
        left, top, width, height = box
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + x * width, y=top + y * height)

    def picture(self, path: Path) -> None:
        """Return a screenshot as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _next(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser is gone"
            content += byte
        return dict(json.loads(content))

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])


@contextmanager
def browser() -> Iterator[Page]:
    """Start a browser with a fresh profile and yield its page."""
    path = program()
    assert path, f"none of {PROGRAMS} is installed"
    (their_input, our_output), (our_input, their_output) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="rapo-browser-", ignore_cleanup_errors=True) as profile:
        command = " ".join([path, *OPTIONS, f"--user-data-dir={profile}", f"3<&{their_input} 4>&{their_output}"])
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            pass_fds=(their_input, their_output),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_input)
        os.close(their_output)
        try:
            with os.fdopen(our_output, "wb") as write, os.fdopen(our_input, "rb") as read:
                page = Page(write, read)
                yield page
                page._session = None
                page.call("Browser.close")
        finally:
            try:
                process.wait(timeout=HANG_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main(report: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as page:
        for theme in ("light", "dark"):
            page.open(report, theme=theme, width=1440, height=1180)
            page.picture(folder / f"report-{theme}.png")
            page.run(
                "(() => { const order = [...document.querySelectorAll('.filters select')].at(-1); order.value = 'KL';"
                " order.dispatchEvent(new Event('input')); })()"
            )
            page.point(".tokens span:nth-child(14)")
            page.run("document.getElementById('rollouts').scrollIntoView({behavior: 'instant'})")
            page.resize(1440, 820)
            page.settle()
            page.picture(folder / f"report-rollouts-{theme}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
