"""One owner at a time, who is named, and whose end (however it comes) frees the directory."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from python_model.io.exclusive import InUseError, own, owned, replacing

HOLD = (
    "import sys, time; from pathlib import Path; from python_model.io.exclusive import own;"
    "held = own(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


def test_a_second_process_is_refused_by_name_and_a_killed_one_frees(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(InUseError, match=f"in use by process {holder.pid} on .*wait until it ends"),
            owned(tmp_path),
        ):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with owned(tmp_path):
        pass


def test_the_same_process_does_not_own_twice(tmp_path: Path) -> None:
    with owned(tmp_path / "new"), pytest.raises(InUseError, match=f"process {os.getpid()}"):
        own(tmp_path / "new")
    own(tmp_path / "new").close()


def test_a_name_that_is_replaced_leaves_no_lock_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "out"), pytest.raises(InUseError), replacing(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_many_threads_own_a_name_one_after_the_other(tmp_path: Path) -> None:
    inside, most, refused = [0], [0], [0]

    def work() -> None:
        for _ in range(30):
            try:
                with replacing(tmp_path / "out"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.0005)
                    inside[0] -= 1
            except InUseError:
                refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert refused[0] < 4 * 30


def test_a_directory_that_stayed_empty_goes_and_one_that_was_there_stays(tmp_path: Path) -> None:
    with owned(tmp_path / "made"):
        pass
    (tmp_path / "there").mkdir()
    with owned(tmp_path / "there"):
        pass
    with owned(tmp_path / "filled"):
        (tmp_path / "filled" / "x").write_text("x")
    assert sorted(os.listdir(tmp_path)) == ["filled", "there"]


def test_what_cannot_be_owned(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, sentence in (
        ("file", "file is a file, expected a directory"),
        ("file/x", "file is no directory; choose another place"),
        ("dangling", "it is a link to nowhere, which is not there"),
        ("n" * 256, "file name too long"),
    ):
        with pytest.raises(OSError, match=sentence):
            own(tmp_path / name)
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to("big")
    with owned(tmp_path / "link"), pytest.raises(InUseError, match="big is in use"):
        own(tmp_path / "big")
    assert sorted(os.listdir(tmp_path)) == ["big", "dangling", "file", "link"]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for lock in (tmp_path / "run" / ".lock", tmp_path / ".out.lock"):
        lock.parent.mkdir(exist_ok=True)
        lock.symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=r"run/\.lock: cannot be written, it is a symbolic link"):
        own(tmp_path / "run")
    with pytest.raises(OSError, match="out: cannot be written, too many levels"), replacing(tmp_path / "out"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"
