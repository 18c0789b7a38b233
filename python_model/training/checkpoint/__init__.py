"""Checkpoints: a directory of safetensors and JSON, written whole or not at all.

`<run>/checkpoints/step-<n>/` holds model.safetensors, trainer.safetensors (optimisers, frequency sketch),
config.json (stage, model, training, vocabulary, data set) and state.json (position in the data). Several ranks write
their parts of the tensors instead (`sharded`), which reads the same. `<run>/checkpoints/
latest` names the newest complete one. A checkpoint is written to a hidden directory, flushed to disk and renamed, so a
kill or a full disk at any moment leaves the previous one in force. checksums.json tells a damaged file from a whole
one: training then resumes from the checkpoint before, everything else refuses and names both.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from python_model.config import FeatureSpec, ModelConfig, TrainConfig
from python_model.io.disk import flush, writing
from python_model.io.errors import DataError
from python_model.io.exclusive import replacing
from python_model.io.integrity import require_whole, seal
from python_model.io.json_text import kind_of, read_object
from python_model.model.argus import Argus
from python_model.model.base import Recommender
from python_model.model.factory import make_model
from python_model.model.optim import Leaf
from python_model.training import process_group
from python_model.training.checkpoint.parts import PARTS, PICKLE, files_of, read_parts

FORMAT = 1
CHECKPOINTS, LATEST = "checkpoints", "latest"
MODEL, TRAINER, CONFIG, STATE = "model.safetensors", "trainer.safetensors", "config.json", "state.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """What config.json says of a checkpoint."""

    stage: str
    step: int
    model_config: ModelConfig
    train_config: TrainConfig
    features: FeatureSpec
    dataset: Mapping[str, Any]


@dataclass(frozen=True)
class TrainerState:
    """What a run needs besides the weights: tensors of the optimisers and the sketch, and plain numbers."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]


def save(run: Path, model: Recommender, description: Description, state: TrainerState, keep: int) -> Path:
    """Write the checkpoint of `description.step`, make it the latest, remove all but the last `keep`.

    WriteError where the disk is full: what was written is removed, the checkpoint before stays in force. InUseError
    where another process or thread saves into the run.
    """
    final, partial = directory_of(run, description.step), partial_of(run, description.step)
    if is_saved(run, description.step):
        return final
    # The trainer owns its run: whoever else saves into it is refused rather than mixed with it.
    with replacing(run / CHECKPOINTS, run):
        try:
            with writing_checkpoint(run, description.step):
                begin(run, description, state.numbers)
                for name, tensors in ((MODEL, model.state_dict()), (TRAINER, state.tensors)):
                    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
                    save_file(kept, partial / name)
                publish(run, description.step, keep)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return final


def is_saved(run: Path, step: int) -> bool:
    """Whether the checkpoint of a step is the latest already, and whole."""
    return _latest(run) == directory_of(run, step) and damage(directory_of(run, step)) is None


def directory_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies once it is complete."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def partial_of(run: Path, step: int) -> Path:
    """Where it is written."""
    final = directory_of(run, step)
    return final.with_name(f".{final.name}.partial")


def writing_checkpoint(run: Path, step: int) -> contextlib.AbstractContextManager[None]:
    """A block that writes the checkpoint of a step; what fails in it comes out as one WriteError."""
    steps = _complete(run / CHECKPOINTS)
    if not steps:
        return writing(directory_of(run, step), "start again")
    kept = f"{_latest(run) or steps[-1]} stays in force"
    return writing(directory_of(run, step), "resume from it", kept)


def begin(run: Path, description: Description, numbers: Mapping[str, Any]) -> None:
    """Make the hidden directory of a new checkpoint, with all of it but the tensors."""
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
    """What is wrong with the files of a checkpoint; None where all are as they were written."""
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
    raw = _json(file)
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


def load_model(path: str | Path, device: str | torch.device = "cpu", **changes: Any) -> Argus:
    """The ARGUS of a checkpoint or of a run's latest one, in evaluation mode; see `load_recommender`.

    ValueError where another model was trained there.
    """
    model = load_recommender(path, device, **changes)
    if not isinstance(model, Argus):
        raise ValueError(f"{path} holds the baseline {model.config.model!r}, expected a run of ARGUS")
    return model


def load_recommender(path: str | Path, device: str | torch.device = "cpu", **changes: Any) -> Recommender:
    """The model of a checkpoint or of a run's latest one, ARGUS or a baseline, in evaluation mode.

    changes: settings of ModelConfig that do not change shapes (lag, dropout, sparse). DataError where a file is
    missing, truncated or does not fit the configuration.
    """
    directory = find(path)
    with _naming_the_one_before(directory):
        description = read_description(directory)
        require_whole(directory, (CONFIG,))
    process_group.on_first(lambda: _require_weights(directory))
    model = outline(directory, description, **changes)
    _fill(model.to_empty(device=device), directory)
    model.stage = description.stage
    return model.eval()


def outline(directory: Path, description: Description, **changes: Any) -> Recommender:
    """The model of a checkpoint without memory behind it (meta tensors).

    DataError where its weights are of other names or shapes: before memory is taken for what somebody else wrote down.
    """
    shapes = shapes_of(directory, MODEL)
    if description.model_config.layers > len(shapes):
        message = f"{description.model_config.layers} layers are more than the weights have tensors"
        raise DataError(directory / CONFIG, message, column="model_config")
    try:
        with torch.device("meta"):
            columns = torch.empty(_item_columns_shape(description), dtype=torch.int32)
            model = make_model(replace(description.model_config, **changes), description.features, columns)
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:
        message = f"no model has these shapes ({type(error).__name__})"
        raise DataError(directory / CONFIG, message, column="model_config") from error
    _require_shapes(directory / MODEL, model, shapes)
    return model


def load_weights(model: Recommender, directory: Path) -> None:
    """Copy the weights of a checkpoint into a model; DataError where they are damaged or names or shapes differ.

    Of a table that is cut over ranks, this rank's rows alone are read. A collective call on several ranks.
    """
    process_group.on_first(lambda: _require_weights(directory))
    _fill(model, directory)


def _fill(model: Recommender, directory: Path) -> None:
    spans = {f"tables.weights.{name}": held for name, held in model.tables.spans.items()}
    found = read_tensors(directory, MODEL, spans)
    _require_shapes(directory / MODEL, model, {name: tuple(value.shape) for name, value in found.items()})
    for name, value in found.items():
        require_finite(directory / MODEL, name, value)
    model.load_state_dict(found)


def require_finite(file: Path, name: str, value: Tensor) -> None:
    """DataError where a number of a tensor of a file is NaN or infinite; takes no memory of its size."""
    if value.numel() and value.is_floating_point():
        low, high = torch.aminmax(value)
        if not (low.isfinite() and high.isfinite()):
            raise DataError(
                file, f"expected finite numbers, found {(high if low.isfinite() else low).item()}", column=name
            )


def _require_shapes(file: Path, model: Recommender, found: Mapping[str, tuple[int, ...]]) -> None:
    wanted = model.state_dict()
    for name in sorted(found.keys() ^ wanted.keys()):
        state = "this tensor is missing" if name in wanted else "the model has no such tensor"
        raise DataError(file, f"{state}: the checkpoint is of another configuration", column=name)
    for name, value in wanted.items():
        if found[name] != tuple(value.shape):
            raise DataError(file, f"expected shape {list(value.shape)}, found {list(found[name])}", column=name)


def _require_weights(directory: Path) -> None:
    with _naming_the_one_before(directory):
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


def load_trainer(directory: Path, leaves: Mapping[str, Leaf] | None = None) -> TrainerState:
    """What `save` was given as `state`; leaves: on several ranks, what of the optimisers' state is read."""
    parts = {name: leaf.rows[:2] for name, leaf in (leaves or {}).items() if leaf.rows is not None}
    return TrainerState(read_tensors(directory, TRAINER, parts), _json(directory / STATE))


def read_tensors(directory: Path, kind: str, spans: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, MODEL or TRAINER, on the CPU; DataError where one cannot be read.

    spans: first and last (exclusive) row to read of a parameter and of the states beside it; others are read whole. A
    checkpoint that several ranks wrote is read like any other.
    """
    if is_sharded(directory):
        # torch's distributed engines take a second to import, which only those checkpoints wait for.
        from python_model.training.checkpoint import sharded

        return sharded.read(directory, kind, spans)
    with _opening(directory / kind) as file:
        if not spans:
            return load_file(file)
        with safe_open(file, framework="pt") as stored:
            return {name: _rows(stored, name, span_of(name, spans)) for name in stored.keys()}  # noqa: SIM118


def shapes_of(directory: Path, kind: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a checkpoint, none of which is read; DataError as `read_tensors`."""
    if is_sharded(directory):
        prefix = f"{kind}/"
        parts = read_parts(directory)
        return {key.removeprefix(prefix): stored.size for key, stored in parts.items() if key.startswith(prefix)}
    with _opening(directory / kind) as file, safe_open(file, framework="pt") as stored:
        return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opening(file: Path) -> Iterator[Path]:
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    try:
        yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(file, f"damaged or truncated: {error}") from error


def is_sharded(directory: Path) -> bool:
    """Whether several ranks wrote a checkpoint, each its parts."""
    return (directory / PARTS).is_file()


def span_of(name: str, spans: Mapping[str, tuple[int, int]]) -> tuple[int, int] | None:
    """The rows to read of a parameter, or of a state named `<parameter>::<state>`."""
    return spans.get(name.rsplit("::", 1)[0])


def _rows(stored: Any, name: str, held: tuple[int, int] | None) -> Tensor:
    part = stored.get_slice(name)
    return stored.get_tensor(name) if held is None or not part.get_shape() else part[held[0] : held[1]]


def _item_columns_shape(description: Description) -> tuple[int, int]:
    own = max(description.model_config.item_hashes, 1)
    return own + len(description.features.item_features), description.features.items


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    return read_object(file)


def _complete(root: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first; whether they are still whole is another question."""
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
    """Keep the last `keep` up to `name`; later ones are what a run left that then resumed from before them."""
    older = [path for path in _complete(root) if path.name < name]
    later = [path for path in _complete(root) if path.name > name]
    for path in later + older[: max(len(older) - keep + 1, 0)]:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _naming_the_one_before(directory: Path) -> Iterator[None]:
    """A refusal of a checkpoint in this block ends with the name of the one before it, where there is one."""
    try:
        yield
    except DataError as error:
        older = [path for path in _complete(directory.parent) if path.name < directory.name]
        hint = f"; the checkpoint before it is {older[-1]}" if older else ""
        raise DataError(error.file, f"{error.message}{hint}", column=error.column) from error
