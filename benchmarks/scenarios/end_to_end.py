"""`python -m benchmarks end-to-end`: the whole pre-training step, one pass per history, and decoding.

Three measurements, each on the reference model with its own kernels and on its twin on stock torch: the events per
second, share of the machine's matrix rate and memory of a training step; the saving of one pass over a whole history
against one pass per impression; the latency of one more event of one user.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness import results
from benchmarks.harness.ceilings import Ceilings, measure_ceilings
from benchmarks.harness.memory import peak_extra_bytes
from benchmarks.harness.results import Quantiles
from benchmarks.harness.timing import Budget, Subject, measure, timer
from benchmarks.scenarios import decoding, impressions, stock, workload
from benchmarks.scenarios.workload import SIZES, Size
from python_model.config import TrainConfig
from python_model.data.batches import JaggedBatch
from python_model.model.argus import Argus

PRESETS = {"cpu": ("tiny", "3m"), "cuda": ("tiny", "3m", "19m", "126m", "1b"), "rehearsal": ("tiny",)}
DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16"}
STOCK = "stock torch"
COMPILED = "{backend}, compiled"
PARTS = ("step", "impressions", "decoding")
MODEL_OPS = (
    "triple_embedding", "causal_attention", "sampled_softmax_loss", "feedback_loss", "rowwise_adagrad_",
)  # fmt: skip


@dataclass(frozen=True)
class StepResult:
    """One preset's pre-training step on one backend, or why it could not be run."""

    preset: str
    backend: str
    precision: str
    events: int
    longest: int
    negatives: int = 0
    ms: Quantiles | None = None
    events_per_second: float | None = None
    flops: int | None = None
    mfu: float | None = None
    peak_bytes: int | None = None
    skipped: str | None = None


@dataclass
class EndToEnd:
    """Everything that the command measured, in the form of `end_to_end.json`."""

    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    ceilings: dict[str, float]
    rehearsal: bool
    steps: list[StepResult] = field(default_factory=list)
    impressions: dict[str, impressions.ImpressionCost] = field(default_factory=dict)
    decoding: dict[str, list[decoding.Latency]] = field(default_factory=dict)
    format: int = 1


@dataclass(frozen=True)
class Plan:
    """What to measure and for how long: seconds for each preset, shared by its three parts."""

    device: str
    presets: tuple[str, ...]
    backends: tuple[str, ...]
    precision: str
    size: Size
    seconds: float
    rehearsal: bool = False
    parts: tuple[str, ...] = PARTS
    users: int = 0
    """Equal histories of `size.longest` events each; 0 draws log-normal lengths instead."""
    stock: bool = True
    """Measure the step on stock torch as well."""
    compiled: bool = False
    """Measure the step with `TrainConfig.compile` as well, on the first backend."""

    def lengths(self, size: Size) -> list[int]:
        """Events of every history of a batch."""
        if self.users:
            return [size.longest] * self.users
        return workload.lognormal_lengths(size.events, size.longest)

    def size_of(self, name: str) -> Size:
        """Half the events for the largest preset, so that its activations fit."""
        return replace(self.size, events=self.size.events // 2) if name == "1b" else self.size


def run(
    plan: Plan,
    say: Callable[[str], None] = lambda sentence: None,
    save: Callable[[EndToEnd], None] = lambda found: None,
    clock: Callable[[], float] = time.monotonic,
) -> EndToEnd:
    """Measures every preset of the plan, one after the other; `save` is called after each.

    A preset that would exceed the plan's time, estimated from the previous one, is left out and its row says so.
    """
    precision = DTYPE_NAMES[plan.precision]
    names = ("fp32", precision) if precision != "fp32" else ("fp32",)
    ceilings = measure_ceilings(plan.device, names, seconds=0.05 if plan.rehearsal else 1.0)
    found = EndToEnd(
        results.machine(plan.device), results.versions(), results.source_commit(), ceilings.as_record(), plan.rehearsal
    )
    ends, took = clock() + plan.seconds * len(plan.presets), 0.0
    for name in plan.presets:
        started = clock()
        if started + took > ends + plan.seconds:
            size = plan.size_of(name)
            reason = f"left out: {max(ends - started, 0):.0f} s of the time budget are left"
            row = StepResult(name, "all", plan.precision, sum(plan.lengths(size)), size.longest, skipped=reason)
            found.steps.append(row)
            continue
        _measure_preset(plan, name, ceilings, found, say)
        save(found)
        took = clock() - started
    return found


def _measure_preset(plan: Plan, name: str, ceilings: Ceilings, found: EndToEnd, say: Callable[[str], None]) -> None:
    if "step" in plan.parts:
        say(f"{name}: the pre-training step")
        found.steps += step_results(plan, name, ceilings)
        _free(plan.device)
    with on_backend(plan.backends[0]):
        if "impressions" in plan.parts:
            say(f"{name}: one pass per history and one per impression")
            found.impressions[name] = _impressions(plan, name)
        if "decoding" in plan.parts:
            say(f"{name}: decoding")
            found.decoding[name] = _decoding(plan, name)
    _free(plan.device)


def step_results(plan: Plan, name: str, ceilings: Ceilings) -> list[StepResult]:
    """The step on every backend and on stock torch, if the plan has it, interleaved; rows that cannot run say why."""
    size = plan.size_of(name)
    batch = workload.make_batch(plan.lengths(size), size.features(), plan.device)
    config = workload.train_config(size, plan.precision)
    model = workload.make_model(name, size, plan.device)
    calls: dict[str, Callable[[], Any]] = {}
    for backend in plan.backends:
        calls[backend] = _under(backend, workload.pretrain_step(model, batch, config))
    if plan.compiled:
        step = _compiled_step(workload.make_model(name, size, plan.device), batch, config)
        calls[COMPILED.format(backend=plan.backends[0])] = _under(plan.backends[0], step)
    if plan.stock:
        calls[STOCK] = stock.stock_step(stock.stock_model(name, size, plan.device), batch, config)

    negatives = min(size.negatives, len(batch)) + min(size.negatives, size.items)
    base = StepResult(name, "", plan.precision, len(batch), batch.max_length, negatives)
    done: dict[str, StepResult] = {}
    subjects = []
    for backend, call in calls.items():
        reason, peak = _try(plan.device, call)
        done[backend] = replace(base, backend=backend, peak_bytes=peak, skipped=reason)
        if reason is None:
            subjects.append(Subject.of(backend, call))
    budget = Budget(plan.seconds * 0.6 / max(len(subjects), 1), min_repeats=3, max_repeats=50)
    flops = workload.step_flops(model, batch, negatives)
    rate = ceilings.flops_per_second[DTYPE_NAMES[plan.precision]]
    for backend, timing in measure(subjects, timer(plan.device, graphs=False), budget).items():
        seconds = timing.total.p50 / 1e3
        done[backend] = replace(
            done[backend], ms=timing.total, events_per_second=len(batch) / seconds, flops=flops,
            mfu=flops / seconds / rate,
        )  # fmt: skip
    return list(done.values())


def _compiled_step(model: Argus, batch: JaggedBatch, config: TrainConfig) -> Callable[[], Any]:
    """The package's step with compiled blocks; the first call compiles them."""
    from python_model.model.compiled import compile_encoder

    step = workload.pretrain_step(model, batch, config)

    def run() -> Any:
        if step.steps == 0:
            compile_encoder(model.encoder, model.device, lambda: workload.autocast(config.precision, model.device.type))
        return step()

    return run


def backends_of_every_op() -> tuple[str, ...]:
    """The automatic choice, then the backends that all ops of the step have on this machine."""
    from argus_kernels import OPS

    declared = [
        [one.name for one in op.backends if one.available() is None and one.excluded_from_auto() is None]
        for op in OPS
        if op.name in MODEL_OPS
    ]
    return ("auto", *(name for name in declared[0] if all(name in names for names in declared)))


@contextmanager
def on_backend(name: str) -> Iterator[None]:
    """Every op on the backend of that name."""
    import argus_kernels

    with argus_kernels.use_backend(name):
        yield


def _under(backend: str, call: Callable[[], Any]) -> Callable[[], Any]:
    def run_on_backend() -> Any:
        with on_backend(backend):
            return call()

    return run_on_backend


def _try(device: str, call: Callable[[], Any]) -> tuple[str | None, int | None]:
    """Runs the call twice, the second time for its peak memory; returns why it cannot run, and the peak."""
    try:
        call()
        peak, _ = peak_extra_bytes(device, call)
    except (ValueError, torch.OutOfMemoryError) as error:
        _free(device)
        return str(error).splitlines()[0], None
    return None, peak


def _impressions(plan: Plan, name: str) -> impressions.ImpressionCost:
    size = plan.size_of(name)
    lengths = plan.lengths(size)
    batch = workload.make_batch(lengths, size.features(), plan.device)
    model = workload.make_model(name, size, plan.device)
    seconds = plan.seconds * 0.15
    return impressions.impression_cost(model, batch, max(sum(lengths), size.longest), seconds, plan.precision)


def _decoding(plan: Plan, name: str) -> list[decoding.Latency]:
    size = plan.size_of(name)
    batch = workload.make_batch([size.longest], size.features(), plan.device)
    model = workload.make_model(name, size, plan.device)
    if plan.precision == "bfloat16":
        model = model.bfloat16()
    return decoding.decode_latencies(model, batch, size.longest, plan.seconds * 0.08, plan.backends[0])


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def to_json(found: EndToEnd) -> str:
    """The file's text."""
    return json.dumps(asdict(found), indent=1, allow_nan=False) + "\n"


def tables(found: EndToEnd) -> Iterator[Table]:
    """The command's output."""
    steps = Table(title="pre-training step", title_justify="left")
    for heading in ("preset", "backend", "events/s", "ms p10 / p50 / p90", "MFU", "peak MiB"):
        steps.add_column(heading, justify="left" if heading in ("preset", "backend") else "right")
    for row in found.steps:
        if row.ms is None:
            steps.add_row(row.preset, row.backend, f"skipped: {row.skipped}")
            continue
        peak = "?" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}"
        spread = f"{row.ms.p10:,.1f} / {row.ms.p50:,.1f} / {row.ms.p90:,.1f}"
        steps.add_row(
            row.preset, row.backend, f"{row.events_per_second:,.0f}", spread, f"{100 * (row.mfu or 0):.1f} %", peak
        )
    yield steps
    passes = Table(title="training the encoder on impressions, forward and backward", title_justify="left")
    for heading in ("preset", "events", "impressions", "one pass, ms", "a pass each, ms", "times", "measured"):
        passes.add_column(heading, justify="right")
    for preset, cost in found.impressions.items():
        passes.add_row(
            preset, f"{cost.events:,}", f"{cost.impressions:,}", f"{cost.whole_history_ms.p50:,.1f}",
            f"{cost.per_impression_ms:,.1f}", f"{cost.ratio:,.1f}", f"{cost.measured:,} of {cost.impressions:,}",
        )  # fmt: skip
    yield passes
    decode = Table(title="one more event of one user, ms", title_justify="left")
    for heading in ("preset", "method", "cached events", "p50", "p99", "requests"):
        decode.add_column(heading, justify="left" if heading in ("preset", "method") else "right")
    for preset, latencies in found.decoding.items():
        for one in latencies:
            decode.add_row(
                preset, one.method, f"{one.cached_events:,}", f"{one.p50:.3f}", f"{one.p99:.3f}", str(one.requests)
            )
    yield decode


def make_plan(
    device: str, presets: Sequence[str], backends: Sequence[str], precision: str | None, budget: float, rehearse: bool,
    *, parts: Sequence[str] = (), users: int | None = None, longest: int | None = None, negatives: int | None = None,
    compiled: bool = False,
) -> Plan:  # fmt: skip
    """The plan of the command's options; ValueError, in one sentence, if they do not fit this machine."""
    from python_model.config import PRESETS as KNOWN

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}, expected cpu or cuda")
    unknown = sorted(set(presets) - set(KNOWN))
    if unknown:
        raise ValueError(f"preset is {unknown[0]!r}, expected one of {', '.join(KNOWN)}")
    precision = precision or ("bfloat16" if device == "cuda" else "float32")
    if precision not in DTYPE_NAMES:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(DTYPE_NAMES)}")
    if budget <= 0:
        raise ValueError(f"time budget is {budget}, expected seconds above 0")
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"part is {unknown[0]!r}, expected one of {', '.join(PARTS)}")
    for what, value in (("users", users), ("longest", longest), ("negatives", negatives)):
        if value is not None and value < 1:
            raise ValueError(f"{what} is {value}, expected at least 1")
    scale = "rehearsal" if rehearse else device
    chosen = tuple(presets) or PRESETS[scale]
    seconds = budget / len(chosen)
    size = SIZES[scale]
    size = replace(size, longest=longest or size.longest, negatives=negatives or size.negatives)
    return Plan(
        device, chosen, tuple(backends) or backends_of_every_op(), precision, size, seconds, rehearse,
        tuple(parts) or PARTS, users or 0, compiled=compiled,
    )  # fmt: skip


def command(
    preset: Annotated[list[str] | None, typer.Option(help="a model size; may be repeated")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="a backend for all ops; may be repeated")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16; bfloat16 on a GPU")] = None,
    out: Annotated[Path, typer.Option(help="folder for end_to_end.json")] = Path("runs/benchmarks"),
    time_budget: Annotated[float, typer.Option(help="seconds, about")] = 240.0,
    rehearse: Annotated[bool, typer.Option(help="tiny sizes, to see that everything runs")] = False,
    part: Annotated[list[str] | None, typer.Option(help="step, impressions or decoding; may be repeated")] = None,
    users: Annotated[int | None, typer.Option(help="this many equal histories instead of log-normal ones")] = None,
    longest: Annotated[int | None, typer.Option(help="events of the longest history")] = None,
    negatives: Annotated[int | None, typer.Option(help="negatives of either kind, in-batch and uniform")] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="also the step with --set compile=true")] = False,
) -> None:
    """The pre-training step, one pass per history, and decoding, beside the same model on stock torch."""
    console = Console()
    try:
        plan = make_plan(
            device, preset or (), backend or (), precision, time_budget, rehearse,
            parts=part or (), users=users, longest=longest, negatives=negatives, compiled=compiled,
        )  # fmt: skip
    except ValueError as error:
        typer.echo(f"end-to-end: {error}", err=True)
        raise typer.Exit(2) from None
    out.mkdir(parents=True, exist_ok=True)

    def save(found: EndToEnd) -> None:
        (out / "end_to_end.json").write_text(to_json(found))

    found = run(plan, lambda sentence: console.print(sentence, style="dim"), save)
    save(found)
    for table in tables(found):
        console.print(table)
    console.print(f"written to {out / 'end_to_end.json'}")


def register(app: typer.Typer) -> None:
    """Adds the command to `python -m benchmarks`."""
    app.command("end-to-end")(command)
