"""The lines of the quickstart as they are printed, and how tests run them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
BEGIN = "python examples/own_log/make_log.py"


def blocks() -> dict[str, str]:
    """The quickstart of every file that has it."""
    found = {}
    for name in ("docs/quickstart.md", "README.md"):
        for block in re.findall(r"```bash\n(.*?)```", (REPOSITORY / name).read_text("utf-8"), re.DOTALL):
            if block.startswith(BEGIN):
                found[name] = block
    return found


def run(folder: Path, environment: Mapping[str, str]) -> str:
    """Runs the lines in a new folder, whose `python` and `argus` are the environment's; what they printed.

    The lines are as they are, but for the port, which is a free one; at the end the service is told to stop, and saves.
    """
    folder.mkdir(exist_ok=True)
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    port = _free_port()
    lines = blocks()["docs/quickstart.md"].replace(":8000", f":{port}").replace(" 8000 ", f" {port} ")
    command = ["bash", "-e", "-c", lines + "\necho\nkill %1\nwait %1"]
    with (
        (folder / "printed").open("w+") as printed,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            code = process.wait(280)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    text = (folder / "printed").read_text("utf-8")
    assert code == 0, text[-2000:]
    return text


def require_results(folder: Path, printed: str) -> None:
    """Readable recommendations, a server that offers the next volume, and sessions that it saved."""
    table = printed.split("User reader-007")[1]
    rows = [line for line in table.splitlines() if re.match(r"│ \d ", line)]
    assert len(rows) == 5
    for row in rows:
        assert re.search(r"│ B-\d\d-\d │ .* │ The \w+ \w+, volume \d +│", row), row
    assert (folder / "data" / "shop" / "mapping.toml").is_file()
    assert '"items": [{"item": "B-03-2", "title": "The Last Garden, volume 2"' in printed.splitlines()[-1]
    assert "Ready on http://127.0.0.1:" in printed
    assert (folder / "sessions" / "journal.jsonl").read_bytes() == b"" and list(folder.glob("sessions/*/*.safetensors"))


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port
