"""Chromium without a window, driven over a pipe by the DevTools protocol. It is no Python package and may be absent."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 90.0

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


class Page:
    """A page at an address, in a browser of its own that ends with the block."""

    def __init__(self, address: str, profile: Path, width: int = 1280, height: int = 900) -> None:
        assert CHROMIUM is not None
        theirs, self._write = _pipe()
        self._read, answers = _pipe()
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}",
            f"--window-size={width},{height}", "--remote-debugging-pipe",
        ]  # fmt: skip
        # The protocol reads file descriptor 3 and writes 4.
        handed = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{answers}', "bash", *command]
        self._process = subprocess.Popen(
            handed, pass_fds=(theirs, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(answers)
        self._number, self._received = 0, b""
        target = self._call("Target.createTarget", {"url": address})["targetId"]
        self._session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        until = time.monotonic() + SECONDS
        # In one expression: between two the empty page, which is complete, may give way to one that still loads.
        while not self.run("document.readyState === 'complete' && location.href !== 'about:blank'"):
            assert time.monotonic() < until, f"{address} did not load"
            time.sleep(0.05)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def run(self, script: str) -> Any:
        """The value of an expression in the page, a promise's when it is kept."""
        given = {"expression": script, "awaitPromise": True, "returnByValue": True}
        found = self._call("Runtime.evaluate", given, self._session)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def _call(self, method: str, given: dict[str, Any], session: str | None = None) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while True:
            head, end, rest = self._received.partition(b"\0")
            if end:
                self._received = rest
                answer = json.loads(head)
                if answer.get("id") == self._number:
                    assert "error" not in answer, answer["error"]
                    return answer["result"]
                continue
            assert select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0], f"no answer to {method}"
            received = os.read(self._read, 1 << 16)
            assert received, "the browser has ended"
            self._received += received


def _pipe() -> list[int]:
    """Both ends of a pipe, above the descriptors 3 and 4 that one of them becomes."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends
