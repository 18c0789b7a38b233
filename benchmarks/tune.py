"""`python -m benchmarks tune`: writes argus_kernels/tuning/<gpu>.json, the fastest correct configuration of each
kernel.

A room whose Triton kernels have configurations to choose from lists them in its `triton_kernels.py` as
`TUNABLES: tuple[Tunable, ...]` (see `argus_kernels.core.tuning`). Each configuration is applied in turn and the op is
run on its production cases: one that does not pass the error rule, or cannot be launched, is dropped; the others are
timed, each interleaved with the default. Cases with the same key have the same weight. The table is written after every
case.
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

from argus_kernels import OPS
from argus_kernels.core import tuning
from argus_kernels.core.tuning import Config, Key, Tunable
from benchmarks.harness import results
from benchmarks.harness.cases import Case, Spec, select
from benchmarks.harness.timing import Budget, CudaTimer, Subject, measure, timer
from benchmarks.harness.verify import Judge, first_line

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
    """The tunables by op, of the named ops (all if none is named)."""
    found = {}
    for op in OPS:
        module = f"argus_kernels.ops.{op.name.rstrip('_')}.triton_kernels"
        if (ops and op.name not in ops) or importlib.util.find_spec(module) is None:
            continue
        tunables: tuple[Tunable, ...] = getattr(importlib.import_module(module), "TUNABLES", ())
        if tunables:
            found[op.name] = tunables
    return found


@dataclass(frozen=True)
class Trial:
    """The result of one configuration on one case: the p50 of its pass in milliseconds, or why it was dropped.

    `keys` are those under which the kernel asked for its configuration.
    """

    tunable: Tunable
    index: int
    keys: tuple[Key, ...]
    ms: float | None = None
    dropped: str | None = None

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.tunable.configs[self.index]


def tune(
    tunables: Mapping[str, Sequence[Tunable]],
    device: str,
    dtypes: Sequence[str] = ("fp32", "bf16"),
    budget: Budget | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    save: Callable[[list[Choice]], None] = lambda choices: None,
) -> list[Choice]:
    """The choices for all tunables; `say` is called with the dropped configurations and the reasons.

    `save` is called with the choices so far after every case.
    """
    choices: list[Choice] = []
    for op, kernels in tunables.items():
        for tunable in kernels:
            found: list[Choice] = []
            tried: list[list[Trial]] = []
            for spec in select([op], dtypes=dtypes, device=device):
                if tunable.backward and not spec.sample.grad:
                    continue
                say(f"{tunable.kernel}: {spec.sample.name}, {spec.dtype}")
                tried.append(list(trials(tunable, spec, device, budget or Budget(0.5))))
                for trial in tried[-1]:
                    if trial.dropped:
                        say(f"  dropped {dict(trial.config)}: {trial.dropped}")
                found = choose(tried)
                save(choices + found)
            choices += found
    return choices


def trials(tunable: Tunable, spec: Spec, device: str, budget: Budget, start: int = 0) -> Iterator[Trial]:
    """Tries one configuration after the other on a case, from `start` on; yields each result as soon as it is known.

    Each other configuration is timed interleaved with the default, if that is correct, and its time is scaled to the
    conditions of the default's own measurement, so that a warming GPU favours none.
    """
    case = spec.draw(0, device).fresh()
    judge = Judge(case)
    clock = timer(device)
    default_ms: float | None = None
    for index, config in list(enumerate(tunable.configs))[start:]:
        try:
            keys, wrong = _asked_keys(tunable, config, case, judge)
            names = [index] if default_ms is None else [0, index]
            timings = {} if wrong else measure([_configured(one, tunable, case) for one in names], clock, budget)
            if isinstance(clock, CudaTimer):
                clock.forget()
        except Exception as error:  # a configuration may fail in any way: the reason is the result
            keys, wrong, timings = (), first_line(error), {}
        if wrong:
            yield Trial(tunable, index, keys, dropped=wrong)
            continue
        last = 1 if tunable.backward else 0
        times = {one: timings[str(one)].stage(last).p50 for one in names}
        if index == 0:
            default_ms = times[0]
        yield Trial(tunable, index, keys, ms=times[index] * (default_ms / times[0] if default_ms else 1.0))


def _asked_keys(tunable: Tunable, config: Config, case: Case, judge: Judge) -> tuple[tuple[Key, ...], str | None]:
    """The keys under which the kernel asks for its configuration on the case, and why this one is not correct."""
    with tuning.forced(tunable.kernel, config) as force:
        verdict = judge.verdict(tunable.backend)
        wrong = verdict.gradients if tunable.backward else verdict.forward
        if wrong:
            return (), wrong
        force.asked.clear()
        run_once(tunable, case)
        return tuple(sorted(force.asked, key=repr)), None


def _configured(index: int, tunable: Tunable, case: Case) -> Subject:
    plain = _subject(str(index), tunable, case)
    return Subject(plain.name, _in_force(tunable.kernel, tunable.configs[index], plain.stages))


def choose(tried: Sequence[Sequence[Trial]]) -> list[Choice]:
    """The choice for each key that a kernel asked for, from its trials on one case after the other."""
    times: dict[Key, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    tunables: dict[Key, Tunable] = {}
    for of_case in tried:
        for trial in of_case:
            for key in trial.keys:
                tunables[key] = trial.tunable
                if trial.ms is not None:
                    times[key][trial.index].append(trial.ms)
    return [_choose(tunables[key], key, by_config) for key, by_config in times.items()]


def _subject(name: str, tunable: Tunable, case: Case) -> Subject:
    """The op's forward pass, and the backward pass as a second stage if the kernel belongs to it."""
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


def run_once(tunable: Tunable, case: Case) -> None:
    """Runs the passes of the op that reach the kernel."""
    value: Any = None
    for stage in _subject("once", tunable, case).stages:
        value = stage(value)


def _choose(tunable: Tunable, key: Key, by_config: Mapping[int, Sequence[float]]) -> Choice:
    """The fastest of the configurations that were correct on every case of the key; the default if it is as fast."""
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


def write_table(
    path: Path,
    gpu: str,
    choices: Sequence[Choice],
    versions: Mapping[str, str] | None = None,
    commit: str | None = None,
) -> None:
    """Writes the choices; entries of kernels that were not tuned now are kept.

    versions, commit: those of the measurements; this process's if not given.
    """
    tuned = {choice.key.kernel for choice in choices}
    kept = []
    if path.exists():
        tuning.load_table(path)
        kept = [entry for entry in json.loads(path.read_text())["entries"] if entry["kernel"] not in tuned]
    entries = kept + [_entry(choice) for choice in choices]
    entries.sort(key=lambda entry: (entry["kernel"], entry["width"], entry["dtype"], entry["size"]))
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    facts = {
        "format": tuning.FORMAT,
        "gpu": gpu,
        "versions": results.versions() if versions is None else versions,
        "commit": results.source_commit() if commit is None else commit,
    }
    results.write_whole(path, json.dumps(facts)[:-1] + f', "entries": [\n{lines}\n]}}\n')


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
    name = torch.cuda.get_device_name()
    path = (out or tuning.FOLDER) / f"{tuning.normalised_gpu_name(name)}.json"
    choices = tune(tunables, "cuda", say=typer.echo, save=lambda found: write_table(path, name, found))
    write_table(path, name, choices)
    typer.echo("\n".join(summary(choices)))
    typer.echo(f"written to {path}")


def register(app: typer.Typer) -> None:
    """Adds the command to `python -m benchmarks`."""
    app.command("tune")(command)
