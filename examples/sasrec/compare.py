"""SASRec before and after its attention and its loss were replaced: the results agree; the times are compared.

    python examples/sasrec/compare.py

Measured on one core of an AMD EPYC: float32, forward and backward, length 1,024, 8 users, 1,024 negatives (medians):

    plain attention, written out        1,103 ms     with ops   214 ms     5.2 times as fast
    scaled_dot_product_attention          435 ms     with ops   216 ms     2.0 times as fast

Loss and gradients satisfy the error rule of `argus_kernels.testing`: as close to float64 as the plain model's are.
The plain attention is written out as in the published code; `--sdpa` puts torch's scaled_dot_product_attention in its
place, which keeps no [L, L] matrix either.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import replace

import plain
import torch
import with_ops
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from argus_kernels.testing import compare


class FusedAttention(plain.Attention):
    """The plain attention through scaled_dot_product_attention."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] → [B, L, d]."""
        q, k, v = (one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.query, self.key, self.value))
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(attended.transpose(1, 2).flatten(2))


def step(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and the gradients of all parameters."""
    model.zero_grad()
    loss = model(*inputs)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def failures(before: nn.Module, after: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """Where the error rule fails: loss and gradients of `after` against float64, judged by those of `before`."""
    truth, theirs, ours = step(copy.deepcopy(before).double(), inputs), step(before, inputs), step(after, inputs)
    judged = [compare("loss", ours[0], truth[0], theirs[0])]
    judged += [compare(name, ours[1][name], truth[1][name], theirs[1][name]) for name in truth[1]]
    return [one.sentence for one in judged if not one.passed]


def seconds(models: list[nn.Module], inputs: tuple[Tensor, ...], rounds: int) -> list[float]:
    """The median time of a step of each model; they take turns, so that other load slows all of them."""
    taken: list[list[float]] = [[] for _ in models]
    for turn in range(rounds + 1):
        for model, times in zip(models, taken, strict=True):
            begin = time.perf_counter()
            step(model, inputs)
            if turn > 0:
                times.append(time.perf_counter() - begin)
    return [statistics.median(times) for times in taken]


def main() -> None:
    """Compares and times; exits with 1 where results differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sdpa", action="store_true", help="compare with scaled_dot_product_attention")
    options = parser.parse_args()
    torch.manual_seed(0)
    settings = replace(plain.Settings(), length=options.length)
    before, after = plain.SasRec(settings), with_ops.SasRec(with_ops.Settings(length=options.length))
    if options.sdpa:
        for block in before.blocks:
            block.attention = FusedAttention(settings)
    after.load_state_dict(before.state_dict())
    inputs = plain.batch(settings, options.users, torch.Generator().manual_seed(0))
    found = failures(before, after, inputs)
    for sentence in found:
        print(sentence)
    if found:
        raise SystemExit(1)
    plain_time, ops_time = seconds([before, after], inputs, options.rounds)
    print(
        f"length {options.length}, {options.users} users, {torch.get_num_threads()} threads: loss and gradients equal"
    )
    print(
        f"plain {plain_time * 1e3:.0f} ms, with ops {ops_time * 1e3:.0f} ms: {plain_time / ops_time:.1f} times as fast"
    )


if __name__ == "__main__":
    main()
