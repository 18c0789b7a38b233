"""Exports a model that uses an op through AOTInductor, loads the package and calls it.

    python examples/export_aotinductor.py --out next_item.pt2

The compiled package computes what the model computes, for any number of events. It calls the op through torch's
dispatcher: a process that loads it needs `import argus_kernels` first, as the last lines show.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from argus_kernels.nn import CausalAttention


class NextItem(nn.Module):
    """States of one attention layer over packed histories, scored against every item."""

    def __init__(self, items: int, width: int, heads: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items, width)
        self.project = nn.Linear(width, 3 * width)
        self.attention = CausalAttention(heads, position_buckets=64)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Scores [T, items] of ids int64 [T], offsets int32 [B + 1]."""
        q, k, v = self.project(self.items(ids)).unflatten(1, (3, self.attention.heads, -1)).unbind(1)
        return self.attention(q, k, v, offsets).flatten(1) @ self.items.weight.T


def export(model: nn.Module, out: Path) -> str:
    """Writes the package; returns its path."""
    events, users = torch.export.Dim("events", min=2, max=1 << 20), torch.export.Dim("users_and_one", min=2, max=4096)
    example = (torch.zeros(9, dtype=torch.int64), torch.tensor([0, 4, 9], dtype=torch.int32))
    program = torch.export.export(model, example, dynamic_shapes=({0: events}, {0: users}))
    return torch._inductor.aoti_compile_and_package(program, package_path=str(out))


def main() -> None:
    """Exports, loads, compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("next_item.pt2"))
    out = parser.parse_args().out
    torch.manual_seed(0)
    model = NextItem(items=500, width=32, heads=2).eval()
    with torch.no_grad():
        package = torch._inductor.aoti_load_package(export(model, out))
        ids, offsets = torch.randint(500, (23,)), torch.tensor([0, 10, 11, 23], dtype=torch.int32)
        found, expected = package(ids, offsets), model(ids, offsets)
    torch.testing.assert_close(found, expected)
    print(
        f"{out}: {len(ids)} events of 3 users, scores within {float((found - expected).abs().max()):.1e} of the model's"
    )


if __name__ == "__main__":
    main()
