"""`python -m argus_kernels.doctor`: what is installed, which backend serves which op here, and why the others do not.

Every line is found out by asking the piece itself: the libraries by loading them, the backends by `explain` on one of
the op's own samples in float32. Exit status 0 means that every op is served; 1 that one is not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from argus_kernels import OPS, __version__
from argus_kernels.core import Op, native, tuning
from argus_kernels.core.registry import capture, in_order

PACKAGES = ("numpy", "torch", "triton", "pybind11")


@dataclass
class Row:
    """One cell of the table: an op's backend on a device type, served or not, and every reason why not."""

    op: str
    backend: str
    device: str
    serves: bool
    automatic: bool
    """Whether `backend="auto"` takes this one for float32 inputs on this device."""
    reasons: list[str] = field(default_factory=list)


@dataclass
class Diagnosis:
    """Everything the doctor found, as it is printed and as `--json` writes it."""

    versions: dict[str, str]
    cpu: dict[str, Any]
    gpu: list[dict[str, Any]]
    no_gpu_reason: str
    libraries: dict[str, str]
    """cpu, cuda, host: "loaded", or the reason why not."""
    settings: dict[str, str]
    order: list[str]
    """Which backend a GPU asks first, a sentence a rule of tuning/order.json, the first that speaks of a call."""
    rows: list[Row]

    @property
    def unserved(self) -> list[str]:
        """Ops that no backend serves on the CPU."""
        served = {row.op for row in self.rows if row.serves and row.device == "cpu"}
        return sorted({row.op for row in self.rows} - served)


def diagnose() -> Diagnosis:
    """Looks at this machine and this installation."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return Diagnosis(
        versions=_versions(),
        cpu=_cpu(),
        gpu=_gpus(),
        no_gpu_reason=_no_gpu_reason(),
        libraries={name: native.why_not(name) or "loaded" for name in native.LIBRARIES},
        settings={name: value for name, value in sorted(os.environ.items()) if name.startswith("ARGUS_")},
        order=[rule.sentence for rule in tuning.order_rules()],
        rows=[row for op in OPS for device in devices for row in _rows(op, device)],
    )


def _versions() -> dict[str, str]:
    found = {"argus_kernels": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["CUDA of torch"] = torch.version.cuda or "none (CPU build)"
    return found


def _cpu() -> dict[str, Any]:
    cpu: dict[str, Any] = {
        "model": cpu_model(),
        "cores": os.cpu_count() or 1,
        "torch threads": torch.get_num_threads(),
        "torch kernels": torch.backends.cpu.get_cpu_capability(),
    }
    if native.load("cpu"):
        cpu["instruction sets"] = torch.ops.argus_native.cpu_features()
    else:
        cpu["instruction sets"] = "unknown: " + str(native.why_not("cpu"))
    return cpu


def source_commit() -> str:
    """The commit of the source tree, with "-dirty" if tracked files differ from it; "" outside a repository."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def cpu_model() -> str:
    """The processor's name, as the kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        table = tuning.folder() / f"{tuning.gpu_name(index)}.json"
        gpus.append(
            {
                "name": properties.name,
                "compute capability": f"{properties.major}.{properties.minor}",
                "memory GiB": round(properties.total_memory / 2**30, 1),
                "multiprocessors": properties.multi_processor_count,
                "tuning table": table.name if table.exists() else f"none ({table.name}): kernels run on their defaults",
            }
        )
    return gpus


def _no_gpu_reason() -> str:
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build; a GPU, if there is one, needs torch's CUDA build"
    return (
        f"torch has CUDA {torch.version.cuda}, but sees no GPU: no device, no driver, or CUDA_VISIBLE_DEVICES hides it"
    )


def _rows(op: Op, device: str) -> list[Row]:
    import argus_kernels

    sample = next(sample for sample in op.samples() if not sample.production)
    arguments = sample.draw(torch.float32, device=device)
    _, given = capture(getattr(argus_kernels, op.name), **arguments)
    rows = []
    taken = False
    for backend in in_order(op.name, op.backends, given):
        reasons = backend.automatic_reasons(given)
        automatic = not reasons and not taken
        taken = taken or automatic
        rows.append(Row(op.name, backend.name, device, not reasons, automatic, reasons))
    return rows


def render(diagnosis: Diagnosis) -> str:
    """The diagnosis as text: facts first, then the table, then what stands in the way."""
    lines = ["versions"]
    lines += [f"  {name:18} {value}" for name, value in diagnosis.versions.items()]
    lines += ["", "cpu"]
    lines += [f"  {name:18} {value}" for name, value in diagnosis.cpu.items()]
    lines += ["", "gpu"]
    if diagnosis.gpu:
        lines += [f"  {gpu['name']}, " + ", ".join(f"{k} {v}" for k, v in gpu.items()) for gpu in diagnosis.gpu]
    else:
        lines += [f"  none: {diagnosis.no_gpu_reason}"]
    lines += ["", "native libraries"]
    lines += [f"  {name:18} {state}" for name, state in diagnosis.libraries.items()]
    if diagnosis.settings:
        lines += ["", "settings"]
        lines += [f"  {name:18} {value}" for name, value in diagnosis.settings.items()]
    lines += ["", "backends on a GPU, the first rule that speaks of a call", *(f"  {rule}" for rule in diagnosis.order)]
    lines += ["", 'ops (float32; * is what backend="auto" takes)', *_table(diagnosis.rows)]
    if diagnosis.unserved:
        lines += ["", f"not served at all: {', '.join(diagnosis.unserved)}"]
    return "\n".join(lines)


def _table(rows: list[Row]) -> list[str]:
    cells = [("op", "device", "backend", "", "")]
    previous = ("", "")
    for row in rows:
        place = (row.op, row.device)
        state = ("* served" if row.automatic else "  served") if row.serves else "  no"
        cells.append((row.op if row.op != previous[0] else "", row.device, row.backend, state, "; ".join(row.reasons)))
        previous = place
    widths = [max(len(cell[column]) for cell in cells) for column in range(4)]
    return [
        "  " + "  ".join([*(cell[column].ljust(widths[column]) for column in range(4)), cell[4]]).rstrip()
        for cell in cells
    ]


def main(arguments: list[str] | None = None) -> int:
    """Prints the diagnosis; `--json FILE` writes the same."""
    parser = argparse.ArgumentParser(prog="python -m argus_kernels.doctor", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the diagnosis to FILE as well")
    options = parser.parse_args(arguments)
    diagnosis = diagnose()
    print(render(diagnosis))
    if options.json:
        options.json.write_text(json.dumps(asdict(diagnosis), indent=2) + "\n")
    return 1 if diagnosis.unserved else 0


if __name__ == "__main__":
    sys.exit(main())
