"""The directory of a checkpoint: its files, its path, checks that it is complete and undamaged, and the latest one."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from python_model.config import FeatureSpec, ModelConfig, TrainConfig
from python_model.io.disk import flush, writing
from python_model.io.errors import DataError
from python_model.io.integrity import require_whole, seal
from python_model.io.json_text import kind_of, read_object
from python_model.training.checkpoint.parts import PARTS, PICKLE, files_of, read_parts

FORMAT = 1
CHECKPOINTS, LATEST = "checkpoints", "latest"
BEST = "best"
"""Directory in a run that has the best weights, as a run of one checkpoint."""
RUN = "run"
"""Entry of state.json: the identity of the run, which its best checkpoint shares."""
MODEL, TRAINER, CONFIG, STATE = "model.safetensors", "trainer.safetensors", "config.json", "state.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """The content of a checkpoint's config.json."""

    stage: str
    step: int
    model_config: ModelConfig
    train_config: TrainConfig
    features: FeatureSpec
    dataset: Mapping[str, Any]


@dataclass(frozen=True)
class TrainerState:
    """The state of a run besides the weights: tensors of the optimisers and the sketch, and plain numbers."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def is_saved(run: Path, step: int) -> bool:
    """Whether the checkpoint of a step is already the latest, and undamaged."""
    return _latest(run) == directory_of(run, step) and damage(directory_of(run, step)) is None


def directory_of(run: Path, step: int) -> Path:
    """The path of the complete checkpoint of a step."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def partial_of(run: Path, step: int) -> Path:
    """The hidden path where it is written."""
    final = directory_of(run, step)
    return final.with_name(f".{final.name}.partial")


def writing_checkpoint(run: Path, step: int) -> contextlib.AbstractContextManager[None]:
    """A block that writes the checkpoint of a step; a failure in it is raised as one WriteError."""
    steps = _complete(run / CHECKPOINTS)
    if not steps:
        return writing(directory_of(run, step), "start again")
    kept = f"{_latest(run) or steps[-1]} stays in force"
    return writing(directory_of(run, step), "resume from it", kept)


def begin(run: Path, description: Description, numbers: Mapping[str, Any]) -> None:
    """Make the hidden directory of a new checkpoint, with everything except the tensors."""
    partial = partial_of(run, description.step)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    text = json.dumps({"format": FORMAT, **asdict(description)}, indent=2) + "\n"
    (partial / CONFIG).write_text(text, "utf-8")
    (partial / STATE).write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")


def publish(run: Path, step: int, keep: int, sums: Mapping[str, Any] | None = None) -> None:
    """Bring the hidden directory to the disk and make it the latest checkpoint; remove all but the last `keep`.

    sums: of all its files, as `integrity.sums_of` gives them, where they are known already.
    """
    root, final, partial = run / CHECKPOINTS, directory_of(run, step), partial_of(run, step)
    seal(partial, sums)
    for file in partial.iterdir():
        flush(file)
    flush(partial)
    shutil.rmtree(final, ignore_errors=True)  # damaged, or complete but not made the latest before a kill
    os.rename(partial, final)
    _point(root, final.name)
    _remove_old(root, final.name, keep)


def find(path: str | Path) -> Path:
    """The checkpoint directory meant by `path`: itself, or the latest of a run; DataError where there is none."""
    path = Path(path)
    if (path / CONFIG).is_file():
        return path
    steps = _complete(path / CHECKPOINTS)
    if not steps:
        what = "is a file" if path.is_file() else "no checkpoint" if path.exists() else "not found"
        raise DataError(path, f"{what}: expected a run of `argus pretrain` or `argus finetune`")
    named = _latest(path)
    if named is None or not (named / CONFIG).is_file():
        name = "nothing" if named is None else f"{named.name!r}, which is not there"
        raise DataError(path / CHECKPOINTS / LATEST, f"names {name}; the newest checkpoint is {steps[-1]}")
    return named


def chosen(path: str | Path, which: str | None = None) -> Path:
    """The checkpoint directory to use of `path`: itself, or the best ("best") or latest ("latest") one of a run.

    None: the best where the run has one. DataError where there is none, or no best one though it was asked for.
    """
    path = Path(path)
    if (path / CONFIG).is_file() or which == LATEST or not exists(path / BEST):
        if which == BEST and not (path / CONFIG).is_file() and exists(path):
            raise DataError(
                path / BEST,
                "not found: the run has no best checkpoint (trained without validation, or removed), take its latest",
            )
        return find(path)
    best = find(path / BEST)
    other = of_another_run(path, best)
    if other is not None:
        raise DataError(best, f"{other}: remove {path / BEST}, or take the latest checkpoint")
    return best


def of_another_run(run: Path, best: Path) -> str | None:
    """What says that a best checkpoint was saved by another run than the latest one of `run`; None where nothing does.

    Damage to the latest one is for those to report who read it.
    """
    latest = _latest(run)
    if latest is None or not (latest / STATE).is_file():
        return None
    own, found = (read_json(directory / STATE).get(RUN) for directory in (latest, best))
    return None if own == found else f"of run {found}, expected {own} as in {latest}"


def recover(run: Path) -> Path:
    """The checkpoint to resume a run from: its latest, or the newest whole one where that is damaged.

    What is damaged, and where the run resumes instead, is logged as a warning. An older checkpoint costs the steps
    since it was written and changes no number. DataError where none is whole.
    """
    problems: list[str] = []
    named, steps = _latest(run), _complete(run / CHECKPOINTS)
    if named not in steps:
        problems.append(f"{run / CHECKPOINTS / LATEST}: names no checkpoint")
    for directory in sorted(steps, key=lambda path: (path == named, path.name), reverse=True):
        problem = damage(directory)
        if problem is None:
            if problems:
                logger.warning("%s. Resuming from %s instead", "; ".join(problems), directory)
            return directory
        problems.append(problem)
    raise DataError(run / CHECKPOINTS, f"no checkpoint is whole: {'; '.join(problems)}")


def damage(directory: Path) -> str | None:
    """The fault in the files of a checkpoint; None where all are undamaged."""
    try:
        _refuse_pickle(directory)
        require_whole(directory)
        kinds = (PARTS, *files_of(read_parts(directory))) if is_sharded(directory) else (MODEL, TRAINER)
        require_whole(directory, (), at_least=(CONFIG, STATE, *kinds))
        read_description(directory)
    except DataError as error:
        return str(error)
    return None


def exists(run: str | Path) -> bool:
    """Whether a run has a checkpoint to resume from."""
    return len(_complete(Path(run) / CHECKPOINTS)) > 0


def read_description(path: str | Path) -> Description:
    """config.json of a checkpoint; DataError where it is missing, damaged or of another format."""
    file = find(path) / CONFIG
    raw = read_json(file)
    if raw.get("format") != FORMAT:
        raise DataError(file, f"expected format {FORMAT}, found {raw.get('format')!r}", column="format")
    for name in ("model_config", "train_config", "features"):
        if not isinstance(raw.get(name, {}), dict):
            raise DataError(file, f"expected an object, found {kind_of(raw[name])}", column=name)
    try:
        found = Description(
            stage=raw["stage"],
            step=raw["step"],
            model_config=ModelConfig.from_dict(raw["model_config"]),
            train_config=TrainConfig.from_dict(raw["train_config"]),
            features=FeatureSpec.from_dict(raw["features"]),
            dataset=raw["dataset"],
        )
    except KeyError as error:
        raise DataError(file, "this key is missing", column=str(error.args[0])) from error
    except ValueError as error:
        raise DataError(file, str(error)) from error
    if found.stage != found.train_config.stage:
        raise DataError(file, f"expected {found.train_config.stage!r}, found {found.stage!r}", column="stage")
    if type(found.step) is not int or found.step < 0:
        raise DataError(file, f"expected a whole number of at least 0, found {found.step!r}", column="step")
    if not isinstance(found.dataset, dict) or not isinstance(found.dataset.get("name"), str):
        raise DataError(file, "expected an object with a name", column="dataset")
    return found


def describe(path: str | Path) -> dict[str, Any]:
    """The same as plain values: stage, step, protocol, dataset (its name), model_config, train_config, features."""
    found = read_description(path)
    plain = asdict(found)
    return {**plain, "protocol": found.train_config.protocol, "dataset": found.dataset["name"]}


def require_weights(directory: Path) -> None:
    with naming_the_one_before(directory):
        _refuse_pickle(directory)
        if not is_sharded(directory):
            require_whole(directory, (MODEL,))
            return
        require_whole(directory)
        require_whole(directory, (), at_least=(PARTS, *files_of(read_parts(directory))))


def _refuse_pickle(directory: Path) -> None:
    if os.path.lexists(directory / PICKLE):
        message = f"a pickle, which can run any command when it is read: it is not read, parts are named in {PARTS}"
        raise DataError(directory / PICKLE, message)


def is_sharded(directory: Path) -> bool:
    """Whether several ranks wrote a checkpoint, each its parts."""
    return (directory / PARTS).is_file()


def span_of(name: str, spans: Mapping[str, tuple[int, int]]) -> tuple[int, int] | None:
    """The rows to read of a parameter, or of a state named `<parameter>::<state>`."""
    return spans.get(name.rsplit("::", 1)[0])


def read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    return read_object(file)


def _complete(root: Path) -> list[Path]:
    """Checkpoints that were written completely, oldest first; later damage is not checked here."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.name.startswith("step-") and path.is_dir())


def _latest(run: Path) -> Path | None:
    """What `latest` names, there or not; None where it is missing, empty or no name."""
    pointer = run / CHECKPOINTS / LATEST
    if not pointer.is_file():
        return None
    name = pointer.read_text("utf-8", errors="replace").strip()
    return pointer.with_name(name) if name.startswith("step-") and "/" not in name and "\0" not in name else None


def _point(root: Path, name: str) -> None:
    partial = root / f".{LATEST}.partial"
    partial.unlink(missing_ok=True)  # were it a link, what it names would be written
    partial.write_text(name + "\n", "utf-8")
    flush(partial)
    os.replace(partial, root / LATEST)
    flush(root)


def _remove_old(root: Path, name: str, keep: int) -> None:
    """Keep the last `keep` up to `name`; later ones are removed: the run resumed from before them."""
    older = [path for path in _complete(root) if path.name < name]
    later = [path for path in _complete(root) if path.name > name]
    for path in later + older[: max(len(older) - keep + 1, 0)]:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def naming_the_one_before(directory: Path) -> Iterator[None]:
    """A refusal of a checkpoint in this block ends with the name of the one before it, where there is one."""
    try:
        yield
    except DataError as error:
        older = [path for path in _complete(directory.parent) if path.name < directory.name]
        hint = f"; the checkpoint before it is {older[-1]}" if older else ""
        raise DataError(error.file, f"{error.message}{hint}", column=error.column) from error
