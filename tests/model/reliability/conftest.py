"""What the tests of reliability share: a run to damage, one that went well to compare with, and a disk to fill."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from python_model.config import ModelConfig, TrainConfig
from python_model.data.schema import Dataset
from python_model.train import train
from python_model.training import checkpoint
from tests.model.conftest import SMALL
from tests.model.training.test_train import PRETRAIN

MODEL: ModelConfig = replace(SMALL, dropout=0.1)
CONFIG: TrainConfig = replace(PRETRAIN, steps=12, checkpoint_every=4, keep=2)


class Disk:
    """A small file system of its own; where none may be mounted, a limit on the size of files stands for it."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self._filler = path, path / ".filler"
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        can_mount = shutil.which("mount") is not None
        self.mounted = can_mount and subprocess.run(command, capture_output=True, check=False).returncode == 0
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, leave: int = 0) -> None:
        """Leave room for about this many bytes more."""
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (leave, self._limits[1]))
            return
        with self._filler.open("wb") as filler, contextlib.suppress(OSError):
            while shutil.disk_usage(self.path).free > leave:
                filler.write(b"0" * 4096)
                filler.flush()

    def free(self) -> None:
        """Take the filling away."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        self._filler.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Everything on the disk but the filling."""
        found = (path for path in self.path.rglob("*") if path != self._filler)
        return sorted(path.relative_to(self.path).as_posix() for path in found)

    def close(self) -> None:
        self.free()
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 8 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = Disk(path, 8 << 20)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def whole(tiny_service: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of CONFIG that nothing happened to, with checkpoints of steps 8 and 12."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train("pretrain", tiny_service, out, MODEL, CONFIG)
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip_bit(file: Path, bit: int) -> None:
    """Change one bit of a file."""
    with file.open("r+b") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ (1 << bit % 8)]))


def truncate(file: Path, share: float) -> None:
    """Cut a file to a share of its bytes."""
    os.truncate(file, int(share * file.stat().st_size))


def steps(run: Path) -> list[int]:
    """The steps whose checkpoints are there."""
    return [int(path.name[5:]) for path in sorted((run / checkpoint.CHECKPOINTS).glob("step-*"))]
