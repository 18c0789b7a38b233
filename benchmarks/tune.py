"""`python -m benchmarks tune`: writes argus_kernels/tuning/<gpu>.json, the fastest right configuration of each kernel.

A room whose Triton kernels have configurations to choose from lists them in its `triton_kernels.py` as
`TUNABLES: tuple[Tunable, ...]` (see `argus_kernels.core.tuning`). Each configuration is put in force in turn and the
op is run on its production cases: one that does not pass the error rule, or cannot be launched, is dropped; the others
are timed, interleaved. Cases that fall under one key count alike.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from argus_kernels.core import tuning
from argus_kernels.core.tuning import Config, Key, Tunable
from argus_kernels.ops import OPS
from benchmarks import results
from benchmarks.cases import Case, Spec, select
from benchmarks.timing import Budget, Subject, measure, timer
from benchmarks.verify import Judge

DEFAULT_LEAD = 1.01
"""A configuration must be this many times faster than the default to take its place."""
NOTHING_TO_TUNE = 3
"""Exit status where there is nothing to tune."""


@dataclass(frozen=True)
class Choice:
    """The configuration chosen for one key, its time and that of the default (ms, geometric mean over the cases)."""

    key: Key
    config: Config
    ms: float
    default_ms: float | None


def declared(ops: Sequence[str] = ()) -> dict[str, tuple[Tunable, ...]]:
    """The tunables of the rooms by op, of those named (all without a name)."""
    found = {}
    for op in OPS:
        module = f"argus_kernels.ops.{op.name.rstrip('_')}.triton_kernels"
        if (ops and op.name not in ops) or importlib.util.find_spec(module) is None:
            continue
        tunables: tuple[Tunable, ...] = getattr(importlib.import_module(module), "TUNABLES", ())
        if tunables:
            found[op.name] = tunables
    return found


def tune(
    tunables: Mapping[str, Sequence[Tunable]],
    device: str,
    dtypes: Sequence[str] = ("fp32", "bf16"),
    budget: Budget | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> list[Choice]:
    """The choices for all tunables; `say` hears which configurations were dropped and why."""
    choices = []
    for op, kernels in tunables.items():
        for tunable in kernels:
            times: dict[Key, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
            for spec in select([op], dtypes=dtypes, device=device):
                if tunable.backward and not spec.sample.grad:
                    continue
                say(f"{tunable.kernel}: {spec.sample.name}, {spec.dtype}")
                for key, by_config in _times(tunable, spec, device, budget or Budget(0.5), say).items():
                    for index, ms in by_config.items():
                        times[key][index].append(ms)
            choices += [_choose(tunable, key, by_config) for key, by_config in times.items()]
    return choices


def _times(
    tunable: Tunable, spec: Spec, device: str, budget: Budget, say: Callable[[str], None]
) -> dict[Key, dict[int, float]]:
    """p50 of each right configuration on one case, by the keys that the kernel asked for."""
    case = spec.draw(0, device).fresh()
    judge = Judge(case)
    subjects, asked = [], set()
    for index, config in enumerate(tunable.configs):
        with tuning.forced(tunable.kernel, config) as force:
            verdict = judge.verdict(tunable.backend)
            wrong = verdict.gradients if tunable.backward else verdict.forward
            if wrong:
                say(f"  dropped {dict(config)}: {wrong}")
                continue
            force.asked.clear()
            subject = _subject(str(index), tunable, case)
            _run(subject)
            asked |= force.asked
        subjects.append(Subject(subject.name, _in_force(tunable.kernel, config, subject.stages)))
    timings = measure(subjects, timer(device), budget)
    last = 1 if tunable.backward else 0
    found = {int(name): timing.stage(last).p50 for name, timing in timings.items()}
    return dict.fromkeys(asked, found)


def _subject(name: str, tunable: Tunable, case: Case) -> Subject:
    """The op's forward pass, and where the kernel belongs to it the backward pass as a second stage."""
    call = case.call(tunable.backend)
    if not tunable.backward:
        return Subject.of(name, call)

    def backward(returned: Any) -> Any:
        out = case.result(returned)
        return torch.autograd.grad(out, case.leaves, torch.ones_like(out), retain_graph=True, allow_unused=True)

    return Subject(name, (lambda _: call(), backward))


def _in_force(kernel: str, config: Config, stages: Iterable[Callable[[Any], Any]]) -> tuple[Callable[[Any], Any], ...]:
    def forced(stage: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(value: Any) -> Any:
            with tuning.forced(kernel, config):
                return stage(value)

        return run

    return tuple(forced(stage) for stage in stages)


def _run(subject: Subject) -> None:
    value: Any = None
    for stage in subject.stages:
        value = stage(value)


def _choose(tunable: Tunable, key: Key, by_config: Mapping[int, Sequence[float]]) -> Choice:
    """The fastest of the configurations that were right on every case of the key; the default where it is as fast."""
    cases = max(len(times) for times in by_config.values())
    means = {
        index: math.exp(sum(map(math.log, times)) / len(times))
        for index, times in by_config.items()
        if len(times) == cases
    }
    best = min(means, key=lambda index: means[index])
    if 0 in means and means[0] <= DEFAULT_LEAD * means[best]:
        best = 0
    return Choice(key, tunable.configs[best], means[best], means.get(0))


def write_table(path: Path, gpu: str, choices: Sequence[Choice]) -> None:
    """Writes the choices; entries of kernels that were not tuned now stay as they were."""
    tuned = {choice.key.kernel for choice in choices}
    kept = []
    if path.exists():
        tuning.load_table(path)
        kept = [entry for entry in json.loads(path.read_text())["entries"] if entry["kernel"] not in tuned]
    entries = kept + [_entry(choice) for choice in choices]
    entries.sort(key=lambda entry: (entry["kernel"], entry["width"], entry["dtype"], entry["size"]))
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    facts = {"format": tuning.FORMAT, "gpu": gpu, "versions": results.versions(), "commit": results.commit()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts)[:-1] + f', "entries": [\n{lines}\n]}}\n')


def _entry(choice: Choice) -> dict[str, Any]:
    key = choice.key
    return {
        "kernel": key.kernel, "width": key.width, "dtype": key.dtype, "size": key.size, "config": dict(choice.config),
        "ms": round(choice.ms, 6), "default_ms": None if choice.default_ms is None else round(choice.default_ms, 6),
    }  # fmt: skip


def summary(choices: Sequence[Choice]) -> Iterator[str]:
    """One line a choice."""
    for choice in choices:
        key = choice.key
        gain = f"{choice.default_ms / choice.ms:.2f} × the default" if choice.default_ms else "the default is not right"
        yield (
            f"{key.kernel} width {key.width} {key.dtype} up to {key.size:,}: {dict(choice.config)}, "
            f"{choice.ms:.4f} ms, {gain}"
        )


def command(
    op: Annotated[list[str] | None, typer.Option(help="an op; may be repeated")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the table; the package's own if left out")] = None,
) -> None:
    """Measure the configurations of the Triton kernels on this GPU and write its tuning table."""
    unknown = sorted(set(op or ()) - {one.name for one in OPS})
    if unknown:
        typer.echo(f"tune: op is {unknown[0]!r}, expected one of {', '.join(one.name for one in OPS)}", err=True)
        raise typer.Exit(2)
    tunables = declared(op or ())
    refusal = ""
    if not tunables:
        refusal = f"nothing to tune: no triton_kernels.py of {', '.join(op) if op else 'any op'} lists TUNABLES"
    elif not torch.cuda.is_available():
        refusal = "torch sees no GPU, and configurations can only be measured on one"
    if refusal:
        typer.echo(f"tune: {refusal}", err=True)
        raise typer.Exit(NOTHING_TO_TUNE)
    choices = tune(tunables, "cuda", say=typer.echo)
    name = torch.cuda.get_device_name()
    path = (out or tuning.FOLDER) / f"{tuning.normalised_gpu_name(name)}.json"
    write_table(path, name, choices)
    typer.echo("\n".join(summary(choices)))
    typer.echo(f"written to {path}")


def register(app: typer.Typer) -> None:
    """Adds the command to the benchmarks' front door."""
    app.command("tune")(command)
