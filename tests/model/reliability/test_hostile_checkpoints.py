"""Mutated checkpoints: each gives the right weights, one sentence or, sealed anew by a forger, weights of right shapes.

ARGUS_FUZZ_SCALE multiplies how many are tried.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_model.data.schema import Dataset
from python_model.io.errors import DataError
from python_model.io.integrity import CHECKSUMS, seal
from python_model.model.argus import Argus
from python_model.train import Trainer
from python_model.training import checkpoint
from python_model.training.checkpoint.parts import PARTS
from tests.model.reliability.conftest import CONFIG, MODEL, flip_bit
from tests.model.reliability.test_trust import as_sharded

SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
TRIALS = {"plain": 80 * SCALE, "sharded": 25 * SCALE}
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 1.5, -0.0, 1e308, 10**12, 2**63, 10**30, "", "a", "7", "../x", "/etc/passwd", "\0",
    "é" * 300, [], {}, [[]], [1, 2], {"a": 1}, {"epoch": -1, "batch": 0}, [None] * 100,
)  # fmt: skip
JSON_FILES = (checkpoint.CONFIG, checkpoint.STATE, CHECKSUMS, PARTS)
Dice = random.Random


@pytest.fixture(scope="module")
def forms(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two checkpoints of one run, as one process and as several ranks write them."""
    out: dict[str, list[Path]] = {}
    for form in ("plain", "sharded"):
        run = Path(shutil.copytree(whole, tmp_path_factory.mktemp(form) / "run"))
        out[form] = sorted((run / checkpoint.CHECKPOINTS).glob("step-*"))
        for directory in out[form] if form == "sharded" else ():
            as_sharded(directory)
    return out


def flip(directory: Path, other: Path, dice: Dice) -> None:
    file = some_file(directory, dice)
    for _ in range(dice.choice((1, 1, 8))):
        flip_bit(file, dice.randrange(8 * file.stat().st_size))


def cut(directory: Path, other: Path, dice: Dice) -> None:
    file = some_file(directory, dice)
    os.truncate(file, dice.randrange(file.stat().st_size))


def remove(directory: Path, other: Path, dice: Dice) -> None:
    some_file(directory, dice).unlink()


def swap(directory: Path, other: Path, dice: Dice) -> None:
    file = some_file(directory, dice)
    shutil.copyfile(other / file.name, file)


def overwrite(directory: Path, other: Path, dice: Dice) -> None:
    some_file(directory, dice).write_bytes(dice.randbytes(dice.choice((0, 1, 8, 5000))))


def replace_value(directory: Path, other: Path, dice: Dice) -> None:
    file = directory / dice.choice([name for name in JSON_FILES if (directory / name).is_file()])
    content = json.loads(file.read_text())
    at: Any = content
    while True:
        key = dice.choice(sorted(at)) if isinstance(at, dict) else dice.randrange(len(at))
        if not isinstance(at[key], (dict, list)) or not at[key] or dice.random() < 0.2:
            break
        at = at[key]
    if isinstance(at, dict) and dice.random() < 0.2:
        del at[key]
    else:
        at[key] = dice.choice(HOSTILE)
    file.write_text(json.dumps(content))


def some_file(directory: Path, dice: Dice) -> Path:
    return dice.choice(sorted(path for path in directory.iterdir() if path.is_file() and path.stat().st_size))


MUTATIONS: tuple[Callable[[Path, Path, Dice], None], ...] = (
    flip, cut, remove, swap, overwrite, replace_value, replace_value, replace_value,
)  # fmt: skip


def read_all(directory: Path, trainer: Trainer) -> dict[str, Tensor]:
    """Everything that is read of a checkpoint: to serve it, and to go on from it."""
    weights = checkpoint.load_model(directory).state_dict()
    if (problem := checkpoint.damage(directory)) is not None:
        raise DataError(directory, problem)  # as `recover` passes it over
    trainer.restore(directory)
    return weights


@pytest.mark.parametrize("form", ["plain", "sharded"])
@pytest.mark.parametrize("sealed", [False, True], ids=["as it is", "sealed anew"])
def test_mutations(
    tiny_service: Dataset, forms: dict[str, list[Path]], tmp_path: Path, form: str, sealed: bool
) -> None:
    dice = random.Random(f"{form} {sealed}")
    config = replace(CONFIG, batches_per_step=1)
    trainer = Trainer(tiny_service, tmp_path / "none", Argus.for_dataset(MODEL, tiny_service), config)
    whole = read_all(forms[form][1], trainer)
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for trial in range(TRIALS[form]):
        directory = Path(shutil.copytree(forms[form][1], tmp_path / "mutated"))
        mutate = dice.choice(MUTATIONS)
        mutate(directory, forms[form][0], dice)
        if sealed and (directory / CHECKSUMS).is_file() and dice.random() < 0.9:
            seal(directory)
        what = f"{form}, {mutate.__name__}, trial {trial}"
        try:
            found = read_all(directory, trainer)
        except (DataError, ValueError) as error:
            refused += 1
            assert str(error).count("\n") == 0 or "é" in str(error), what
        else:
            same = all(torch.equal(found[name], whole[name]) for name in whole)
            assert found.keys() == whole.keys() and (same or sealed), what
        shutil.rmtree(directory)
    assert refused > TRIALS[form] // 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10, "more than 300 MB"
