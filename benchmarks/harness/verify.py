"""Judges a backend on a case against float64 truth, by the error rule of argus_kernels.testing.

Truth is the plain PyTorch definition in float64, which is too slow for most production shapes: a case is judged on
pieces cut out of the very arguments that are timed. The pieces are pooled, so that a single scalar such as the gradient
of a temperature is judged on dozens of draws. What was cut stands in every record. An op without a cut here is judged
on the small samples of its room.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from argus_kernels.testing import compare, run_op, small_samples
from argus_kernels.testing.harness import draw
from benchmarks.harness.cases import Case

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Cut:
    """How a case is cut into pieces: a sentence for the record, and the pieces."""

    sentence: str
    pieces: Callable[[Arguments], Iterator[Arguments]]


@dataclass(frozen=True)
class Verdict:
    """Why a backend is refused for the forward pass and for passes with gradients; None where it is right."""

    forward: str | None
    gradients: str | None


class Judge:
    """Holds the truth of one case, worked out once, and judges backends by it."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self._case = case
        cut = CUTS.get(case.op.name)
        self.judged_on = cut.sentence if cut else "the small samples of the op's room"
        self._seed = seed
        self._pieces = list(cut.pieces(_detached(case.arguments))) if cut else list(self._small_pieces())
        exact = [in_float64(piece) for piece in self._pieces]
        self._truth = self._collect("eager", exact)
        self._torch = self._collect("eager", self._pieces)

    def verdict(self, backend: str) -> Verdict:
        """Judges a backend of the op by name."""
        try:
            found = self._collect(backend, self._pieces)
        except Exception as error:  # a kernel may fail in any way: the reason goes into the record
            sentence = f"fails on {self.judged_on}: {first_line(error)}"
            return Verdict(sentence, sentence)
        wrong: dict[bool, str] = {}
        for name, values in self._truth.items():
            ours, theirs = found.get(name, []), self._torch[name]
            comparison = compare(name, ours, values, theirs)
            if not comparison.passed:
                wrong.setdefault(name.startswith("d_"), comparison.sentence)
        forward = wrong.get(False)
        return Verdict(forward, forward or wrong.get(True))

    def _collect(self, backend: str, pieces: list[Arguments]) -> dict[str, list[Tensor]]:
        """Every result by name, one of each piece that has it."""
        found: dict[str, list[Tensor]] = {}
        for index, piece in enumerate(pieces):
            run = run_op(
                self._case.op,
                self._case.spec.sample,
                piece,
                backend,
                dtype=self._case.dtype,
                seed=self._seed + index,
            )
            for name, value in run.results.items():
                found.setdefault(name, []).append(value)
        return found

    def _small_pieces(self) -> Iterator[Arguments]:
        for sample in small_samples(self._case.op):
            if sample.grad == self._case.spec.sample.grad:
                yield draw(sample, self._case.dtype, self._seed, self._case.device)


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _detached(arguments: Arguments) -> Arguments:
    return {name: _map(value, lambda tensor: tensor.detach()) for name, value in arguments.items()}


def in_float64(arguments: Arguments) -> Arguments:
    """The very same values, held in float64."""
    return {
        name: _map(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
        for name, value in arguments.items()
    }


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [function(tensor) for tensor in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _map(getattr(value, field.name), function) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def _history_pieces(arguments: Arguments, longest: int = 640) -> Iterator[Arguments]:
    """One piece: every user's first events."""
    offsets = arguments["offsets"].tolist()
    spans = [(begin, min(end, begin + longest)) for begin, end in pairwise(offsets)]
    device = arguments["q"].device
    rows = torch.cat([torch.arange(begin, end) for begin, end in spans]).to(device)
    total = arguments["q"].shape[0]
    piece = {
        name: value[rows] if isinstance(value, Tensor) and value.dim() and value.shape[0] == total else value
        for name, value in arguments.items()
        if name != "offsets"
    }
    lengths = torch.tensor([0] + [end - begin for begin, end in spans])
    piece["offsets"] = lengths.cumsum(0).int().to(device)
    piece["max_length"] = max(end - begin for begin, end in spans)
    yield piece


def _decode_pieces(arguments: Arguments) -> Iterator[Arguments]:
    """One piece: four users, of the full length, about half, about an eighth, and of one event."""
    cache, users = arguments["cache"], 4
    longest = int(arguments["lengths"][0])
    lengths = torch.tensor([longest, longest // 2 + 1, longest // 8 + 3, 1][:users], dtype=torch.int32)
    users = min(users, arguments["lengths"].shape[0])
    table = cache.block_table[:users]
    owned = table[table >= 0].long()
    renamed = torch.full_like(table, -1)
    renamed[table >= 0] = torch.arange(owned.shape[0], dtype=table.dtype, device=table.device)
    pages = {name: getattr(cache, name)[owned] for name in ("key_pages", "value_pages", "time_pages")}
    small = dataclasses.replace(cache, block_table=renamed, pool=None, **pages)
    per_user = ("q", "k", "v", "query_time", "key_time")
    cut = {name: value[:users] if name in per_user else value for name, value in arguments.items()}
    yield {**cut, "cache": small, "lengths": lengths[:users].to(table.device)}


def _softmax_pieces(arguments: Arguments, count: int = 64, rows: int = 32, drawn: int = 512) -> Iterator[Arguments]:
    """Different rows against different candidates in every piece; ids folded so that accidental hits happen."""
    for index in range(count):
        row = _block(index, rows, arguments["query"].shape[0])
        column = _block(index, drawn, arguments["candidates"].shape[0])
        piece = dict(arguments)
        for name in ("query", "positive", "positive_ids", "positive_log_q", "row_weight", "query_owner"):
            if arguments.get(name) is not None:
                piece[name] = arguments[name][row]
        for name in ("candidates", "candidate_ids", "log_q", "candidate_owner"):
            if arguments.get(name) is not None:
                piece[name] = arguments[name][column]
        yield {**piece, "positive_ids": piece["positive_ids"] % drawn, "candidate_ids": piece["candidate_ids"] % drawn}


def _feedback_pieces(arguments: Arguments, count: int = 32, rows: int = 512) -> Iterator[Arguments]:
    for index in range(count):
        row = _block(index, rows, arguments["hidden"].shape[0])
        yield {**arguments, "hidden": arguments["hidden"][row], "targets": arguments["targets"][row]}


def _pairwise_pieces(arguments: Arguments, count: int = 64, longest: int = 128) -> Iterator[Arguments]:
    """One user in every piece."""
    offsets = arguments["offsets"].tolist()
    spans = [span for span in pairwise(offsets) if span[1] > span[0]]
    for begin, end in spans[:count]:
        row = slice(begin, min(end, begin + longest))
        cut = {name: arguments[name][row] for name in ("scores", "grades", "times")}
        yield {**arguments, **cut, "offsets": arguments["offsets"].new_tensor([0, row.stop - row.start])}


def _embedding_pieces(arguments: Arguments, count: int = 4, events: int = 256, rows: int = 2048) -> Iterator[Arguments]:
    tables = [table[:rows] for table in arguments["tables"]]
    sizes = arguments["ids"].new_tensor([tables[column].shape[0] for column in arguments["columns"]])[:, None]
    for index in range(count):
        ids = arguments["ids"][:, _block(index, events, arguments["ids"].shape[1])]
        yield {**arguments, "tables": tables, "ids": torch.where(ids < 0, -1, ids % sizes)}


def _adagrad_pieces(arguments: Arguments, given: int = 4096, rows: int = 8192) -> Iterator[Arguments]:
    table = arguments["table"][:rows]
    cut = {"rows": arguments["rows"][:given], "row_gradients": arguments["row_gradients"][:given]}
    folded = torch.where(cut["rows"] < 0, -1, cut["rows"] % table.shape[0])
    yield {**arguments, **cut, "rows": folded, "table": table, "state": arguments["state"][:rows]}


def _block(index: int, size: int, total: int) -> slice:
    """The index-th block of `size` rows, starting over at the end."""
    blocks = max(total // size, 1)
    first = index % blocks * size
    return slice(first, min(first + size, total))


_HISTORIES = Cut("every user's first 640 events of the case", _history_pieces)
CUTS: dict[str, Cut] = {
    "causal_attention": _HISTORIES,
    "hstu_attention": _HISTORIES,
    "decode_attention": Cut("four users of the case, of different lengths", _decode_pieces),
    "decode_linear": Cut("the case itself", lambda arguments: iter([arguments])),
    "sampled_softmax_loss": Cut("64 pieces of the case: 32 rows against 512 candidates", _softmax_pieces),
    "feedback_loss": Cut("32 pieces of 512 rows of the case", _feedback_pieces),
    "pairwise_loss": Cut("the first 128 events of 64 users of the case, one by one", _pairwise_pieces),
    "triple_embedding": Cut("4 × 256 events of the case, tables cut to 2,048 rows", _embedding_pieces),
    "rowwise_adagrad_": Cut("4,096 gradients of the case, tables cut to 8,192 rows", _adagrad_pieces),
}
