"""The default backend is the context's: threads and tasks do not see each other's, and explain disturbs nobody."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels import DirectLinear, causal_attention, decode_linear, default_backend, explain, use_backend
from argus_kernels.core import Op
from argus_kernels.core.plans import Plan

ROUNDS = 40
THREADS = 6


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """(thread, backend asked for) of every pass of an op."""
    seen: list[tuple[int, str]] = []

    def watch(owner: Any, method: str, name_of: Callable[..., str]) -> None:
        original = getattr(owner, method)

        def spy(self: Any, *given: Any) -> Any:
            seen.append((threading.get_ident(), name_of(self, *given)))
            return original(self, *given)

        monkeypatch.setattr(owner, method, spy)

    for method in ("compute", "backward"):
        watch(Plan, method, lambda plan, *given: plan.wanted)
    for method in ("compute", "_compute_backward"):
        watch(Op, method, lambda op, *given: given[-1])
    return seen


@pytest.fixture(autouse=True)
def _the_default_is_left_alone() -> Iterator[None]:
    before = default_backend()
    yield
    assert default_backend() == before


def attend(q: Tensor | None = None, **options: Any) -> Tensor:
    q = torch.randn(5, 1, 2, requires_grad=True) if q is None else q
    found: Tensor = causal_attention(q, q, q, torch.tensor([0, 2, 5]), **options)
    return found


def together(*work: Callable[[], None]) -> None:
    """Runs all at once, each in a thread; raises what one of them raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(len(work))

    def run(one: Callable[[], None]) -> None:
        start.wait()
        try:
            one()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_threads_keep_their_own_backend(wanted: list[tuple[int, str]]) -> None:
    expected: dict[int, str] = {}

    def work(name: str) -> Callable[[], None]:
        def call() -> None:
            expected[threading.get_ident()] = name
            for _ in range(ROUNDS):
                with use_backend(name):
                    attend().sum().backward()
                assert default_backend() == "auto"

        return call

    together(*(work(("reference", "auto")[index % 2]) for index in range(THREADS)))
    assert len(wanted) == 2 * ROUNDS * THREADS
    assert all(expected[thread] == name for thread, name in wanted if thread in expected)


def test_explain_and_direct_calls_beside_threads_that_compute() -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            assert attend().shape == (5, 1, 2)

    def ask() -> None:
        x, weight = torch.randn(2, 3), torch.randn(4, 3)
        try:
            for _ in range(ROUNDS):
                assert explain(causal_attention, x[:, None], x[:, None], x[:, None], torch.tensor([0, 2]))[-1].serves
                with torch.no_grad():
                    torch.testing.assert_close(DirectLinear(weight)(x), decode_linear(x, weight))
        finally:
            stop.set()

    together(ask, *[compute] * (THREADS - 1))


def test_tasks_of_one_thread_keep_their_own_backend(wanted: list[tuple[int, str]]) -> None:
    async def task(name: str) -> None:
        with use_backend(name):
            for _ in range(5):
                await asyncio.sleep(0)
                assert default_backend() == name

    async def all_tasks() -> None:
        await asyncio.gather(*(task(name) for name in ("reference", "cpp", "auto", "eager")))

    asyncio.run(all_tasks())


def test_a_new_thread_starts_with_the_process_default_or_the_context_it_is_given() -> None:
    found: list[str] = []

    def note() -> None:
        found.append(default_backend())

    with use_backend("reference"):
        together(note)
        together(lambda: contextvars.copy_context().run(note))
        context = contextvars.copy_context()
        together(lambda: context.run(note))
    assert found == ["auto", "auto", "reference"]


def test_compiled_graphs_follow_the_default_of_their_thread(wanted: list[tuple[int, str]]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    leaf = torch.randn(5, 1, 2, requires_grad=True)

    def step() -> None:
        compiled(leaf).sum().backward()

    step()
    with use_backend("reference"):
        step()
        together(step)
        late = compiled(leaf)
    late.sum().backward()
    step()
    assert [name for _, name in wanted] == ["auto"] * 2 + ["reference"] * 2 + ["auto"] * 2 + ["reference"] * 2 + [
        "auto"
    ] * 2


@pytest.mark.parametrize("name", [None, 3, 2.0, ["cpp"]])
def test_a_backend_that_is_no_name(name: Any) -> None:
    with pytest.raises(ValueError, match=r"use_backend: name is .*, expected a string"), use_backend(name):
        pass
    if name is not None:
        with pytest.raises(ValueError, match=r"causal_attention: backend is .*, expected one of auto, eager"):
            attend(backend=name)
