"""causal_attention with scores and a mask of one's own, in the C++ kernels and in the definition.

    python examples/own_scores/thirds.py --out build          compiles thirds.cpp (a minute) and compares the two

It needs a checkout, whose csrc/ it compiles, and a C++20 compiler.
"""

from __future__ import annotations

import argparse
import subprocess
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from argus_kernels import causal_attention
from argus_kernels.attention.native import why_not_cpp
from argus_kernels.attention.query_tiles import Tile
from argus_kernels.attention.reference_tiles import Buckets, Pairs
from argus_kernels.core import Backend
from argus_kernels.ops.causal_attention import OP, native, reference

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
TORCH = Path(torch.__file__).parent


class Thirds(Pairs):
    """What the definition knows of pairs, with the mask and the scores of thirds.cpp."""

    def seen(self, tile: Tile) -> Tensor:
        """The pairs that the op shows, of these every third."""
        back = tile.query_place[:, None] - tile.key_place
        return super().seen(tile) & (back % 3 == 0)

    def scores(self, products: Tensor, tile: Tile, buckets: Buckets) -> Tensor:
        """The op's scores, less 0.01 for every event back."""
        back = tile.query_place[:, None] - tile.key_place
        return super().scores(products, tile, buckets) - 0.01 * back.to(products.dtype)


def build(library: Path) -> None:
    """Compiles the policy with the op's own checks and products; the op is registered as thirds::causal_attention."""
    flags = (
        "-std=c++20 -O3 -fPIC -shared -fvisibility=hidden -ffp-contract=off -DTORCH_TARGET_VERSION=0x020a000000000000"
    )
    sources = [HERE / "thirds.cpp", CSRC / "causal_attention/causal_attention.cpp", *CSRC.glob("common/cpu/*.cpp")]
    include = ["-DARGUS_NATIVE_LIBRARY=thirds", f"-I{CSRC}", "-isystem", TORCH / "include"]
    torch_library = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(["c++", *flags.split(), *include, *sources, "-o", library, *torch_library], check=True)


def backends(library: Path) -> tuple[Backend, Backend]:
    """The compiled backend and its truth."""
    torch.ops.load_library(str(library))
    ops = torch.ops.thirds
    compiled = Backend(
        "thirds",
        partial(native.forward, launch=ops.causal_attention),
        partial(native.backward, launch=ops.causal_attention_backward),
        why_not_cpp,
    )
    forward, backward = (partial(one, pairs_of=Thirds) for one in (reference.forward, reference.backward))
    return compiled, Backend("thirds_reference", forward, backward)


def main() -> None:
    """Compiles, compares outputs and gradients."""
    parser = argparse.ArgumentParser(description="causal_attention with scores and a mask of one's own")
    parser.add_argument("--out", type=Path, default=Path("build"))
    library = parser.parse_args().out / "thirds.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    build(library)
    OP.backends = (*OP.backends, *backends(library))
    torch.manual_seed(0)
    q, k, v = (torch.randn(700, 2, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    offsets, visible = torch.tensor([0, 500, 700]), torch.cat([torch.arange(500), torch.arange(200)]).clamp(max=400)
    results = []
    for backend in ("thirds", "thirds_reference"):
        out = causal_attention(q, k, v, offsets, visible=visible, window=300, backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    print("output and gradients equal")


if __name__ == "__main__":
    main()
