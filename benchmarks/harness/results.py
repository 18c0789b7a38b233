"""One measurement as a line of JSON: what was timed, on which machine, how it was verified, and its peers.

A results file has no header: every line is complete, so that files can be joined, filtered and cut with line tools.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from argus_kernels.doctor import cpu_model
from argus_kernels.doctor import source_commit as source_commit

Key = tuple[str, str, str, str, str]
"""(op, case, dtype, pass, backend): what makes two records comparable."""
PASSES = ("forward", "backward", "forward_backward", "step")
NOT_WANTED = "was not asked for"
"""Why a peer is missing that the command line left out."""
RESULTS = Path(__file__).resolve().parents[1] / "results"
REPOSITORY = Path(__file__).resolve().parents[2]
_LIBRARIES = (
    "torch",
    "numpy",
    "triton",
    "fbgemm-gpu",
    "fbgemm-gpu-cpu",
    "liger-kernel",
    "cut-cross-entropy",
    "flash-attn",
)


@dataclass(frozen=True)
class Quantiles:
    """The spread of repeated measurements, in milliseconds."""

    p10: float
    p50: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """Quantiles of at least one value, by linear interpolation."""
        if not values:
            raise ValueError("quantiles of no measurement")
        points = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        return cls(*torch.quantile(torch.tensor(values, dtype=torch.float64), points).tolist())


@dataclass(frozen=True)
class PeerResult:
    """A peer of our measurement: its p50, and ratio = its p50 / our p50; or why it was skipped."""

    ms: float | None = None
    peak_bytes: int | None = None
    ratio: float | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Record:
    """One op × case × dtype × pass × backend.

    `ms` is None if the backend was refused; `refused` then says why and `verified` is False. Rates and ceilings are of
    the same run: gb_per_s = bytes / p50, tflop_per_s = flops / p50, share_of_ceiling = the shortest time that the
    ceilings allow for flops and bytes / p50. `times` are the milliseconds of all repetitions, which `ms` summarises.
    """

    op: str
    case: str
    dtype: str
    pass_: str
    backend: str
    verified: bool
    verified_on: str
    ms: Quantiles | None
    repeats: int
    peak_bytes: int | None
    flops: int
    bytes: int
    gb_per_s: float | None = None
    tflop_per_s: float | None = None
    share_of_ceiling: float | None = None
    peers: dict[str, PeerResult] = field(default_factory=dict)
    refused: str | None = None
    ceilings: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    times: tuple[float, ...] = ()

    @property
    def key(self) -> Key:
        """The key by which two records are comparable."""
        return self.op, self.case, self.dtype, self.pass_, self.backend

    @property
    def is_disturbed(self) -> bool:
        """Whether it took less than the ceilings allow: they were measured while the machine was busy."""
        return self.share_of_ceiling is not None and self.share_of_ceiling > 1

    def to_json(self) -> str:
        """The record as one line of JSON, `pass_` under its own name, `pass`."""
        values = {("pass" if name == "pass_" else name): value for name, value in asdict(self).items()}
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record of one line.

        Raises:
            ValueError: the line is no JSON object, or a field is missing or unknown.
        """
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, found {type(values).__name__}")
        values["pass_"] = values.pop("pass", None)
        if values.get("ms") is not None:
            values["ms"] = Quantiles(**values["ms"])
        # Older lines have the p50 of every visit to a case instead of the times.
        values.pop("visits", None)
        peers = {name: {**peer} for name, peer in values.get("peers", {}).items()}
        for peer in peers.values():
            peer.pop("visits", None)
        values["peers"] = {name: PeerResult(**peer) for name, peer in peers.items()}
        values["times"] = tuple(values.get("times", ()))
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(str(error).removeprefix("Record.__init__() ")) from None


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes a file of one line per record, replacing an old one as a whole; makes the folder if it is missing.

    Raises:
        ValueError: the path is something other than a file, such as a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a file to write the records to, found something else there")
    write_whole(path, "".join(record.to_json() + "\n" for record in records))


def write_whole(path: Path, text: str) -> None:
    """Replaces the file atomically: a reader, also after an interruption, finds the old file or the new one."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_records(path: Path) -> list[Record]:
    """The records of a results file.

    Raises:
        ValueError: naming file, line and what is wrong with it.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_json(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a benchmark record: {error}") from error
    return records


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine of the measurements: name, device, cores, threads, memory."""
    cpu = cpu_model()
    facts: dict[str, Any] = {
        "name": machine_name(device),
        "device": device,
        "cpu": cpu,
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return facts


def machine_name(device: str = "cpu") -> str:
    """A folder name for this class of machine, such as "amd-epyc-2-cores" or "nvidia-h200"."""
    name = torch.cuda.get_device_name(0) if device == "cuda" else f"{cpu_model()} {_cores()} cores"
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


def versions() -> dict[str, str]:
    """Python, this package and the libraries that the figures depend on, where installed."""
    import argus_kernels

    found = {"python": platform.python_version(), "argus_kernels": argus_kernels.__version__}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0
