"""The runner on a small case: what it refuses, what it records, what the time budget cuts; and the command itself."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from argus_kernels import OPS
from argus_kernels.core import Backend, Op, Sample, native
from argus_kernels.ops import feedback_loss, sampled_softmax_loss
from argus_kernels.testing import small_samples
from benchmarks import cli
from benchmarks.harness import runner
from benchmarks.harness.cases import Spec
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.compare import compare
from benchmarks.harness.results import Key, Record, read_records
from benchmarks.harness.runner import Environment, Run, Settings, rated
from benchmarks.harness.timing import Budget
from benchmarks.harness.verify import Judge, Verdict
from benchmarks.peers import Peer, peers_of
from benchmarks.report.table import share_of_ceiling

REFERENCE = feedback_loss.OP.backend("reference")


def wrong_forward(*arguments: Any) -> Any:
    return REFERENCE.forward(*arguments) * 1.01


def wrong_backward(*arguments: Any) -> Any:
    assert REFERENCE.backward is not None
    return [None if gradient is None else gradient * 1.01 for gradient in REFERENCE.backward(*arguments)]


def crashing(*arguments: Any) -> Any:
    raise RuntimeError("out of registers")


WRONG = {
    "off_by_1_percent": dataclasses.replace(REFERENCE, name="off_by_1_percent", forward=wrong_forward),
    "wrong_gradient": dataclasses.replace(REFERENCE, name="wrong_gradient", backward=wrong_backward),
    "crashing": dataclasses.replace(REFERENCE, name="crashing", forward=crashing),
}


@pytest.fixture
def with_backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Backend], None]:
    """Registers a backend in the room of feedback_loss."""

    def register(backend: Backend) -> None:
        monkeypatch.setattr(feedback_loss.OP, "backends", (backend, REFERENCE))

    return register


@pytest.fixture
def plain_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `eager`: compiling takes longer than everything else here."""
    only = [peer for peer in peers_of("feedback_loss") if peer.name == "eager"]
    monkeypatch.setattr("benchmarks.harness.runner.peers_of", lambda op: only)


def records_of(spec: Spec, environment: Environment, budget: Budget, **settings: Any) -> list[Record]:
    return list(by_key(Run([spec], Settings(budget=budget, **settings), environment)).values())


def by_key(run: Run) -> dict[Key, Record]:
    """The records of a whole run, by their keys."""
    return {record.key: record for found in run.records() for record in found}


@pytest.mark.usefixtures("plain_peers")
def test_every_pass_of_a_right_backend_is_timed(small_spec: Spec, environment: Environment, short: Budget) -> None:
    found = {record.pass_: record for record in records_of(small_spec, environment, short)}
    assert set(found) == {"forward", "backward", "forward_backward"}
    for record in found.values():
        assert record.verified and record.refused is None and record.repeats >= 3
        assert record.ms is not None and 0 < record.ms.p10 <= record.ms.p50 <= record.ms.p90
        assert record.share_of_ceiling is not None and record.gb_per_s is not None
        peer = record.peers["eager"]
        assert peer.ms is not None and peer.ratio == pytest.approx(peer.ms / record.ms.p50)
        assert "512 rows" in record.verified_on
    whole, parts = found["forward_backward"], (found["forward"], found["backward"])
    assert whole.flops == sum(part.flops for part in parts)


def test_a_backward_pass_counts_what_it_computes() -> None:
    """With a reduction the softmax's forward pass keeps the gradients, and its backward pass multiplies them once."""
    samples = {sample.name: sample for sample in sampled_softmax_loss.OP.samples()}
    scores, elements = 2 * 5 * 3 * (7 + 1), 2 * 5 * 3 + 7 * 3 + 1
    for name, dtype, backward in (
        ("every_argument", "fp32", 2 * scores),
        ("sum", "fp32", elements),
        ("sum", "fp16", 2 * scores),
    ):
        case = Spec(sampled_softmax_loss.OP, samples[name], dtype).draw(0, "cpu")
        costs = runner._costs(case)
        assert costs["forward"][0] == scores and costs["forward_backward"][0] == 3 * scores, name
        assert costs["backward"][0] == backward, name


@pytest.mark.usefixtures("plain_peers")
@pytest.mark.parametrize(
    ("name", "reason", "timed"),
    [
        ("off_by_1_percent", "output 0 fails: max error", set()),
        ("wrong_gradient", "fails: max error", {"forward"}),
        ("crashing", "RuntimeError: out of registers", set()),
    ],
)
def test_a_wrong_kernel_is_refused_by_name(
    name: str,
    reason: str,
    timed: set[str],
    small_spec: Spec,
    environment: Environment,
    short: Budget,
    with_backend: Callable[[Backend], None],
) -> None:
    with_backend(WRONG[name])
    found = records_of(small_spec, environment, short)
    wrong = [record for record in found if record.backend == name]
    assert len(wrong) == 3
    assert {record.pass_ for record in wrong if record.ms} == timed
    for record in wrong:
        assert record.verified == (record.pass_ in timed)
        if not record.verified:
            assert record.refused is not None and reason in record.refused
    assert all(record.verified for record in found if record.backend == "reference")


@pytest.mark.usefixtures("plain_peers")
def test_a_kernel_that_is_wrong_only_at_full_size_is_refused(
    small_sample: Sample, environment: Environment, short: Budget, with_backend: Callable[[Backend], None]
) -> None:
    """Right on the pieces that are judged, wrong past row 512."""

    def forward(given: Any) -> Any:
        return REFERENCE.forward(given) * (1.1 if given.hidden.shape[0] > 512 else 1.0)

    def make(generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        drawn = small_sample.make(generator, dtype)
        return {**drawn, "hidden": drawn["hidden"].repeat(200, 1), "targets": drawn["targets"].repeat(200, 1)}

    with_backend(dataclasses.replace(REFERENCE, name="overflowing", forward=forward))
    spec = Spec(feedback_loss.OP, dataclasses.replace(small_sample, make=make), "fp32")
    found = [record for record in records_of(spec, environment, short) if record.backend == "overflowing"]
    assert found
    assert all("another result on the full case" in str(record.refused) for record in found)


def test_peers_that_cannot_or_must_not_be_timed_say_why(
    small_spec: Spec, environment: Environment, short: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_wrong(case: Any) -> Callable[[], Any]:
        return lambda: case.call("eager")() * 1.5

    def build_broken(case: Any) -> Callable[[], Any]:
        raise ImportError("symbol not found\nsecond line")

    ops = ("feedback_loss",)
    peers = [
        Peer("missing", ops, build_wrong, lambda case: "missing is not installed"),
        Peer("wrong", ops, build_wrong),
        Peer("broken", ops, build_broken),
        Peer("serving_only", ops, lambda case: case.call("eager"), why_no_gradients=lambda case: "has no backward"),
    ]
    monkeypatch.setattr("benchmarks.harness.runner.peers_of", lambda op: peers)
    found = {record.pass_: record.peers for record in records_of(small_spec, environment, short)}
    assert found["forward"]["missing"].skipped == "missing is not installed"
    assert "another result on the full case: relative RMS difference 5.00e-01" in str(found["forward"]["wrong"].skipped)
    assert found["forward"]["broken"].skipped == "fails: ImportError: symbol not found"
    assert found["forward"]["serving_only"].ms is not None
    assert found["backward"]["serving_only"].skipped == "has no backward"
    assert all(peer.ms is None for name, peer in found["backward"].items() if name != "serving_only")


@pytest.mark.usefixtures("plain_peers")
def test_a_time_budget_cuts_whole_cases(small_spec: Spec, environment: Environment, short: Budget) -> None:
    specs = [dataclasses.replace(small_spec, dtype=dtype) for dtype in ("fp32", "bf16")] * 2
    times = iter([0.0, 0.0, 30.0, 30.0, 55.0, 55.0, 90.0, 90.0])
    run = Run(specs, Settings(budget=short, time_budget=75.0), environment, clock=lambda: next(times))
    found = list(run.records())
    assert len(found) == 2
    assert all(record.repeats >= short.min_repeats for records in found for record in records)
    assert run.cut == ["feedback_loss three_tasks fp32", "feedback_loss three_tasks bf16"]


@pytest.mark.usefixtures("plain_peers")
def test_ceilings_are_measured_between_cases_and_the_best_are_kept(
    small_spec: Spec, environment: Environment, short: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([Ceilings(2e10, {"fp32": 5e10, "bf16": 1e11}), Ceilings(1e9, {"fp32": 3e11, "bf16": 1e11})])
    monkeypatch.setattr("benchmarks.harness.runner.measure_ceilings", lambda device, dtypes: next(found))
    times = iter([0.0, 0.0, 50.0, 50.0, 130.0, 130.0, 131.0, 131.0, 135.0])
    run = Run([small_spec] * 3, Settings(budget=short), environment, clock=lambda: next(times))
    records = [record for found in run.records() for record in found]
    assert run.environment.ceilings == Ceilings(2e10, {"fp32": 1e11, "bf16": 2e11})
    assert records[0].ceilings["copy_gb_per_s"] == 10 and records[-1].ceilings["copy_gb_per_s"] == 20
    run.measure_ceilings()
    assert run.environment.ceilings == Ceilings(2e10, {"fp32": 3e11, "bf16": 2e11})
    again = rated(records[0], run.environment.ceilings)
    assert again.ceilings == records[-1].ceilings | {"fp32_tflop_per_s": 0.3}
    assert again.share_of_ceiling is not None and records[0].share_of_ceiling is not None
    assert again.share_of_ceiling < records[0].share_of_ceiling and again.ms == records[0].ms


def test_a_share_that_is_impossible_is_marked(make_record: Callable[..., Record]) -> None:
    for share, shown in ((None, ""), (0.5, "50%"), (1.0, "100%"), (1.53, "disturbed")):
        record = make_record(1.0, share_of_ceiling=share)
        assert share_of_ceiling(record) == shown and record.is_disturbed is (shown == "disturbed")


@pytest.mark.usefixtures("plain_peers")
def test_backends_are_chosen_and_absent_ones_explained(
    small_spec: Spec, environment: Environment, short: Budget, with_backend: Callable[[Backend], None]
) -> None:
    with_backend(dataclasses.replace(REFERENCE, name="triton", available=lambda: "triton needs a GPU"))
    run = Run([small_spec], Settings(budget=short), environment)
    assert {record.backend for record in by_key(run).values()} == {"reference"}
    assert run.absent == {("feedback_loss", "triton"): "triton needs a GPU"}
    assert not records_of(small_spec, environment, short, backends=("triton",))


@pytest.mark.usefixtures("plain_peers")
@pytest.mark.parametrize(("dtype", "timed"), [("fp32", {"cpp", "reference"}), ("bf16", {"cpp"})])
def test_the_definition_may_be_left_out_of_other_dtypes(
    small_spec: Spec, environment: Environment, short: Budget, with_backend: Callable[[Backend], None],
    dtype: str, timed: set[str],
) -> None:  # fmt: skip
    with_backend(dataclasses.replace(REFERENCE, name="cpp"))
    spec = dataclasses.replace(small_spec, dtype=dtype)
    found = records_of(spec, environment, short, every_definition=False)
    assert {record.backend for record in found} == timed
    named = records_of(spec, environment, short, every_definition=False, backends=("reference",))
    assert {record.backend for record in named} == {"reference"}


@pytest.mark.slow
@pytest.mark.usefixtures("plain_peers")
def test_a_planted_slow_kernel_is_marked_by_compare(
    small_spec: Spec, environment: Environment, with_backend: Callable[[Backend], None]
) -> None:
    """The same backend three times: as it is, again, and with naps half as long again."""

    def napping(seconds: float) -> list[Record]:
        def forward(*arguments: Any) -> Any:
            time.sleep(seconds)
            return REFERENCE.forward(*arguments)

        with_backend(dataclasses.replace(REFERENCE, name="napping", forward=forward))
        budget = Budget(seconds=1.0, min_repeats=10, max_repeats=40)
        found = records_of(small_spec, environment, budget, backends=("napping",), peers=())
        return [record for record in found if record.pass_ == "forward"]

    before, same, slowed = napping(0.02), napping(0.02), napping(0.03)
    assert not compare([before], [same]).is_worse
    assert compare([before], [slowed]).is_worse


def test_truth_sees_a_slightly_wrong_gradient(small_spec: Spec, with_backend: Callable[[Backend], None]) -> None:
    with_backend(WRONG["wrong_gradient"])
    judge = Judge(small_spec.draw(0, "cpu"))
    assert judge.verdict("reference").gradients is None
    verdict = judge.verdict("wrong_gradient")
    assert verdict.forward is None
    assert verdict.gradients is not None and verdict.gradients.startswith("d_")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_small_sample_can_be_judged(op: Op, dtype: str) -> None:
    """The truth is drawn for arguments of every kind, such as a cache of int8 codes with float32 scales."""
    if native.why_not("cpu") is not None:
        pytest.skip("the native library is not built")
    for grad in {sample.grad for sample in small_samples(op)}:
        sample = next(sample for sample in small_samples(op) if sample.grad == grad)
        judge = Judge(Spec(op, dataclasses.replace(sample, cut=None), dtype).draw(0, "cpu"))
        assert judge.verdict("cpp") == Verdict(None, None)


@pytest.fixture
def one_small_case(monkeypatch: pytest.MonkeyPatch, small_sample: Sample) -> Op:
    production = dataclasses.replace(small_sample, production=True, name="tiny")
    monkeypatch.setattr(feedback_loss.OP, "samples", lambda: [production])
    return feedback_loss.OP


@pytest.mark.usefixtures("plain_peers", "one_small_case")
def test_command_writes_lines_and_a_table(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    started = time.monotonic()
    given = ["run", "--op", "feedback_loss", "--dtype", "fp32", "--json", str(path), "--seed", "3"]
    result = CliRunner().invoke(cli.app, given)
    assert result.exit_code == 0, result.output
    assert "tiny" in result.output and "forward_backward" in result.output and "ceilings measured now" in result.output
    records = read_records(path)
    passes = {name: [record.pass_ for record in records if record.backend == name] for name in ("cpp", "reference")}
    assert passes["reference"] == ["forward", "backward", "forward_backward"]
    assert passes["cpp"] in (passes["reference"], [])
    assert len(records) == len(passes["cpp"]) + len(passes["reference"])
    assert records[0].ceilings.keys() == {"copy_gb_per_s", "fp32_tflop_per_s"}
    assert json.loads(path.read_text().splitlines()[0])["machine"]["device"] == "cpu"
    assert "1/1 feedback_loss tiny fp32" in result.output, "progress shows where there is no terminal"
    assert time.monotonic() - started < 60


def test_an_interrupted_run_leaves_the_cases_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Run.records

    def records(run: Run, on_case: Callable[[Spec], None]) -> Iterator[list[Record]]:
        yield from measured(run, on_case)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "records", records)
    path = tmp_path / "run.jsonl"
    given = ["run", "--op", "feedback_loss", "--dtype", "fp32", "--backend", "reference", "--json", str(path)]
    result = CliRunner().invoke(cli.app, [*given, "--peer", "none"])
    assert result.exit_code == 130 and "holds what was measured so far" in " ".join(result.output.split())
    assert [record.pass_ for record in read_records(path)] == ["forward", "backward", "forward_backward"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "run.jsonl"):
        result = CliRunner().invoke(cli.app, ["run", "--json", str(path)])
        assert result.exit_code == 2 and "Invalid value for '--json'" in result.output


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--op", "flash"], "op flash is unknown"),
        (["--case", "flash"], "case flash is unknown"),
        (["--backend", "cudnn"], "backend cudnn is unknown"),
        (["--peer", "xformers"], "peer xformers is unknown"),
        (["--dtype", "fp8"], "dtype fp8 is unknown"),
        (["--suite", "huge"], "suite huge is unknown"),
        (["--device", "tpu"], "device tpu is unknown"),
    ],
)
def test_unknown_names_are_refused_at_once(given: list[str], problem: str) -> None:
    result = CliRunner().invoke(cli.app, ["run", *given])
    assert result.exit_code == 2
    assert problem in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_room_of_an_op_says_how_its_cases_are_judged(op: Op) -> None:
    """Float64 at production size takes too long: each such case is cut into pieces."""
    cuts = [sample.cut for sample in op.samples() if sample.production]
    assert cuts and all(cut is not None and cut.sentence for cut in cuts)
