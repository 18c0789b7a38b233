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
