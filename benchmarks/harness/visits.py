"""Return visits: a case is timed again when all others have had their turn, and both visits make one record.

The repetitions of one visit lie within a few seconds, and what disturbs a shared machine for seconds hits all of them:
they look tight and are wrong together. Minutes later the disturbance is gone, or another one has come; what the visits
disagree by is the noise of the measurement.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.contest import Pass
from benchmarks.harness.verify import Verdict
from benchmarks.peers import Peer

REFERENCE_SECONDS = 2.0
"""The definition returns where it takes less; our other backends always do."""
PEER_SECONDS = 0.5
"""A peer returns where it takes less and need not be compiled again."""
_PROC_STAT = Path("/proc/stat")
_FIELDS = 8
"""user, nice, system, idle, iowait, irq, softirq, steal"""
_IDLE = slice(3, 5)


@dataclass
class Visited:
    """What is kept of a case between its visits, figures and no tensors: how it was judged and what was measured.

    `verdicts`: of our backends, by name, in the room's order. `costs`: (flops, bytes) by pass. `others`: by visit, the
    share of the processors' time that others had, where the system tells. `contenders` and `training` name those that
    the next visit times, and those of them that take part in the training group: everyone at first.
    """

    verdicts: dict[str, Verdict]
    judged_on: str
    peers: list[Peer]
    costs: dict[str, tuple[int, int]]
    count: int = 0
    passes: list[Pass] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    contenders: set[str] = field(init=False)
    training: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.contenders = self.training = {*self.verdicts, *(peer.name for peer in self.peers)}

    def add(self, passes: list[Pass], others: float | None) -> None:
        """Joins the passes of one more visit to those before, and says who comes to the next."""
        if self.count:
            passes = [earlier.joined(later) for earlier, later in zip(self.passes, passes, strict=True)]
        self.passes = passes
        self.others += [] if others is None else [others]
        self.count += 1
        self.contenders, last = (_returning(passes[place], self.peers) for place in (0, -1))
        self.training = self.contenders & last


def _returning(measured: Pass, peers: Sequence[Peer]) -> set[str]:
    """The contenders of a pass that a later visit times again; none where none of our backends is among them."""
    limits = {peer.name: 0.0 if peer.compiles else PEER_SECONDS for peer in peers}
    known = {"reference": REFERENCE_SECONDS, **limits}
    found = {name for name in measured.visits if measured.quantiles(name).p50 / 1e3 < known.get(name, math.inf)}
    return found if found - limits.keys() else set()


class OthersTime:
    """The share of the processors' time that others had since this was made: other processes, a hypervisor's guests."""

    def __init__(self) -> None:
        self._before = _seconds()

    def share(self) -> float | None:
        """Between 0 and 1; None where the system does not tell."""
        after = _seconds()
        if self._before is None or after is None or after[1] <= self._before[1]:
            return None
        others, all_ = (now - then for now, then in zip(after, self._before, strict=True))
        return min(max(others / all_, 0.0), 1.0)


def _seconds() -> tuple[float, float] | None:
    """(others', all) seconds of all processors since the machine started; others' less a constant."""
    try:
        name, *fields = _PROC_STAT.read_text().split("\n", 1)[0].split()
    except (OSError, ValueError):
        return None
    if name != "cpu" or len(fields) < _FIELDS:
        return None
    # The fields after these count the time of virtual machines a second time.
    ticks = [int(count) for count in fields[:_FIELDS]]
    busy = sum(ticks) - sum(ticks[_IDLE])
    per_second = os.sysconf("SC_CLK_TCK")
    return busy / per_second - sum(os.times()[:4]), sum(ticks) / per_second
