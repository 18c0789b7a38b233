"""Tuned kernel configurations: measured ahead on each GPU, shipped as data, looked up at run time.

`argus_kernels/tuning/<gpu>.json` is one JSON object:

    {"format": 1, "gpu": "NVIDIA H200", "entries": [
        {"kernel": "causal_attention/forward", "width": 64, "dtype": "bfloat16", "size": 4096,
         "config": {"block_query": 128, "warps": 8}, "ms": 0.41}, …]}

`width` is the head width or the model width d, `size` the top of a coarse bucket of lengths (…, 1024, 4096, 16384, …).
A kernel asks for its configuration with `configuration(...)` and never measures anything itself; a GPU without a
table, and a key that no entry has, get the kernel's default. ARGUS_TUNING names another folder of tables.

`argus_kernels/tuning/order.json` says which of a GPU's backends goes first, by op, pass, dtype and architecture; a rule
that nobody has measured says so and gives its reason.

`python -m benchmarks tune` writes the tables: it runs the op with each configuration of a `Tunable` in turn, put in
force by `forced`.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
FOLDER = Path(__file__).resolve().parent.parent / "tuning"
BUCKET_BASE = 4
ORDER = "order.json"

Config = Mapping[str, int]


@dataclass(frozen=True)
class Key:
    """What a configuration depends on; `size` is a bucket's top, as `size_bucket` gives it."""

    kernel: str
    width: int
    dtype: str
    size: int


@dataclass(frozen=True)
class Tunable:
    """A kernel with several configurations; a room's `triton_kernels.py` lists its own in `TUNABLES`.

    kernel: the name under which the kernel calls `configuration`. backend: the op's backend that runs it. configs: the
    configurations to choose from, the default first. backward: the kernel belongs to the backward pass.
    """

    kernel: str
    backend: str
    configs: tuple[Config, ...]
    backward: bool = False


@dataclass
class Forced:
    """A configuration in force for one kernel, and the keys it was asked for under meanwhile."""

    kernel: str
    config: Config
    asked: set[Key]


_forced: Forced | None = None


def configuration(
    kernel: str, *, width: int, dtype: torch.dtype, size: int, default: Config, device: torch.device | int | None = None
) -> Config:
    """The configuration to launch `kernel` with.

    Args:
        kernel: "<op>/<pass>", such as "causal_attention/forward".
        width: head width, or the model width d.
        dtype: of the tensors the kernel reads.
        size: the length that matters to the kernel (longest history, rows, …); only its bucket counts.
        default: what to launch where no table knows better.
        device: the CUDA device; None for the current one.

    The entry of the nearest size bucket serves where the very bucket was not tuned. Raises ValueError for a table that
    cannot be read.
    """
    bucket = size_bucket(size)
    name = str(dtype).removeprefix("torch.")
    if _forced is not None and _forced.kernel == kernel:
        _forced.asked.add(Key(kernel, width, name, bucket))
        return _forced.config
    if not torch.cuda.is_available():
        return default
    index = device.index if isinstance(device, torch.device) else device
    found = lookup(gpu_name(index), kernel, width, name, bucket)
    return default if found is None else found


@functools.lru_cache(maxsize=4096)
def lookup(gpu: str, kernel: str, width: int, dtype: str, bucket: int) -> Config | None:
    """The tuned configuration of the key, or of its nearest size; None where the GPU's table has neither."""
    entries = load_table(folder() / f"{gpu}.json")
    sizes = [key.size for key in entries if (key.kernel, key.width, key.dtype) == (kernel, width, dtype)]
    if not sizes:
        return None
    nearest = min(sizes, key=lambda size: (abs(math.log(size / bucket)), size))
    return entries[Key(kernel, width, dtype, nearest)]


def size_bucket(size: int) -> int:
    """The top of the bucket that `size` lies in: the least power of four that is not below it."""
    bucket = 1
    while bucket < size:
        bucket *= BUCKET_BASE
    return bucket


def folder() -> Path:
    """Where the tables lie: ARGUS_TUNING, else the package's own."""
    return Path(os.environ.get("ARGUS_TUNING") or FOLDER)


@functools.cache
def gpu_name(index: int | None = None) -> str:
    """The table name of a CUDA device; None is the current one when first asked."""
    return normalised_gpu_name(torch.cuda.get_device_name(index))


def normalised_gpu_name(name: str) -> str:
    """A GPU's name as a file name: "NVIDIA H100 80GB HBM3" is "h100-80gb-hbm3"."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    kept = words[1:] if words[:1] == ["nvidia"] and len(words) > 1 else words
    if not kept:
        raise ValueError(f"GPU name is {name!r}, expected letters or digits in it")
    return "-".join(kept)


def load_table(path: Path) -> dict[Key, Config]:
    """The configurations of one file, {} where it is not there; ValueError, naming the entry, where it is malformed."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: format is {found!r}, expected {FORMAT}")
    entries = content.get("entries")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: entries is {type(entries).__name__}, expected a list")
    return dict(_entry(path, index, entry) for index, entry in enumerate(entries))


@dataclass(frozen=True)
class Rule:
    """An entry of order.json: which backends go first where every field that is given has the call's value."""

    order: tuple[str, ...]
    reason: str
    measured: bool
    ops: tuple[str, ...] | None = None
    passes: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    generations: tuple[int, ...] | None = None
    biased: bool | None = None

    @property
    def sentence(self) -> str:
        """The rule in words: of what it speaks, the order, and its ground."""
        about = [
            ", ".join(self.ops or ["every op"]),
            *(self.passes or []),
            *([" and ".join(self.dtypes)] if self.dtypes else []),
            *([] if self.biased is None else ["with biases" if self.biased else "without biases"]),
            *([f"on sm_{'0, sm_'.join(map(str, self.generations))}0"] if self.generations else []),
        ]
        ground = "measured" if self.measured else "a guess"
        return f"{' '.join(about)}: {' before '.join(self.order)} ({ground}: {self.reason})"

    def covers(self, op: str, part: str, dtype: str, generation: int, biased: bool) -> bool:
        """Whether the rule speaks of such a call."""
        given = ((self.ops, op), (self.passes, part), (self.dtypes, dtype), (self.generations, generation))
        return self.biased in (None, biased) and all(one is None or value in one for one, value in given)


@functools.lru_cache(maxsize=4096)
def backend_order(op: str, part: str, dtype: torch.dtype, generation: int, biased: bool) -> Rule | None:
    """The first rule of order.json for a call on a GPU; None where none speaks of it.

    Args:
        op: its name.
        part: "forward" or "backward".
        dtype: of the first floating-point tensor among the arguments.
        generation: the first number of the GPU's compute capability.
        biased: whether attention's scores get a bias.
    """
    named = str(dtype).removeprefix("torch.")
    return next((rule for rule in order_rules() if rule.covers(op, part, named, generation, biased)), None)


def order_rules() -> tuple[Rule, ...]:
    """The rules in force: those of ARGUS_TUNING where it has an order.json, else the package's."""
    own = folder() / ORDER
    return load_rules(own if own.exists() else FOLDER / ORDER)


@functools.cache
def load_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of an order.json, in their order; ValueError, naming the rule, where it is malformed."""
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error
    rules = content.get("rules") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(rules, list):
        raise ValueError(f'{path}: expected an object with "format": {FORMAT} and a list of "rules"')
    found = []
    for index, rule in enumerate(rules):
        lists = {"order", "ops", "passes", "dtypes", "generations"}
        given: dict[str, Any] = {
            name: tuple(value) if name in lists and isinstance(value, list) else value for name, value in rule.items()
        }
        wrong = [name for name in lists & given.keys() if not isinstance(given[name], tuple)]
        missing = {"order", "reason", "measured"} - given.keys()
        unknown = given.keys() - {field.name for field in fields(Rule)}
        for names, problem in ((missing, "is missing"), (unknown, "is unknown"), (wrong, "is no list")):
            if names:
                raise ValueError(f"{path}: rules[{index}]: {', '.join(sorted(names))} {problem}")
        found.append(Rule(**given))
    return tuple(found)


def _entry(path: Path, index: int, entry: Any) -> tuple[Key, Config]:
    place = f"{path}: entries[{index}]"
    wanted = {"kernel": str, "width": int, "dtype": str, "size": int, "config": dict}
    for name, kind in wanted.items():
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, kind):
            raise ValueError(f"{place}: {name} is {value!r}, expected {kind.__name__}")
    if entry["size"] != size_bucket(entry["size"]):
        raise ValueError(f"{place}: size is {entry['size']}, expected a bucket's top ({size_bucket(entry['size'])})")
    for name, value in entry["config"].items():
        if not isinstance(value, int):
            raise ValueError(f"{place}: config has {name} = {value!r}, expected a whole number")
    return Key(entry["kernel"], entry["width"], entry["dtype"], entry["size"]), dict(entry["config"])


@contextmanager
def forced(kernel: str, config: Config) -> Iterator[Forced]:
    """Makes `configuration` answer `config` for `kernel` inside the block, for the whole process; for tuning."""
    global _forced
    before, _forced = _forced, Forced(kernel, config, set())
    try:
        yield _forced
    finally:
        _forced = before
