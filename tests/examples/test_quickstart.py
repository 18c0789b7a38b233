"""The lines of the quickstart, exactly as they are printed, lead to recommendations that can be read."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BEGIN = "python examples/own_log/make_log.py"
MAX_LINES = 12


def blocks() -> dict[str, str]:
    """The quickstart of every file that has it."""
    found = {}
    for name in ("docs/quickstart.md", "README.md"):
        for block in re.findall(r"```bash\n(.*?)```", (REPOSITORY / name).read_text("utf-8"), re.DOTALL):
            if block.startswith(BEGIN):
                found[name] = block
    return found


def test_the_quickstart_is_short_and_the_same_everywhere() -> None:
    found = blocks()
    assert "docs/quickstart.md" in found
    assert len(set(found.values())) == 1
    assert len(found["docs/quickstart.md"].strip().splitlines()) <= MAX_LINES


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the lines ran, and what they printed."""
    if missing := [name for name in ("bash", "curl") if shutil.which(name) is None]:
        pytest.skip(f"the lines are for {missing[0]}")
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    (folder / "bin").mkdir()
    for name, arguments in (("argus", " -m python_model"), ("python", "")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": path
    }  # fmt: skip
    # The lines as they are, on a port that is free; at the end the service is told to stop, and saves.
    lines = blocks()["docs/quickstart.md"].replace(":8000", f":{(port := free_port())}").replace(" 8000 ", f" {port} ")
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
    return folder, text


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def test_recommendations_can_be_read(done: tuple[Path, str]) -> None:
    folder, printed = done
    table = printed.split("User reader-007")[1]
    rows = [line for line in table.splitlines() if re.match(r"│ \d ", line)]
    assert len(rows) == 5
    for row in rows:
        assert re.search(r"│ B-\d\d-\d │ .* │ The \w+ \w+, volume \d +│", row), row
    assert (folder / "data" / "shop" / "mapping.toml").is_file()


def test_the_server_offers_the_next_volume(done: tuple[Path, str]) -> None:
    folder, printed = done
    assert '"items": [{"item": "B-03-2", "title": "The Last Garden, volume 2"' in printed.splitlines()[-1]
    assert "Ready on http://127.0.0.1:" in printed
    assert (folder / "sessions" / "journal.jsonl").read_bytes() == b"" and list(folder.glob("sessions/*/*.safetensors"))
