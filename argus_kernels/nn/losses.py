"""FeedbackLoss and PairwiseLoss: the loss ops as modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from argus_kernels.core import Problems
from argus_kernels.core.offsets import Offsets
from argus_kernels.ops.feedback_loss import feedback_loss
from argus_kernels.ops.pairwise_loss import pairwise_loss

REDUCTIONS = ("mean", "sum")


class FeedbackLoss(nn.Module):
    """The head of F feedback tasks: a projection to their logits, and the loss of each.

    Initialisation: weight [D, C] N(0, 1/D), bias [C] 0, with C the sum of `classes`.

    Args:
        width: D, of the hidden vectors.
        classes: classes of each task; 1 is a Bernoulli task with one logit.
        task_weight: factor of each task's loss, at least 0; None for 1. A setting, not in `state_dict`.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or weights that are not as many as the tasks, negative or not finite.

    Examples:
        >>> import torch
        >>> from argus_kernels.nn import FeedbackLoss
        >>> loss = FeedbackLoss(16, classes=[1, 5])               # liked or not; a rating of 5 classes
        >>> loss(torch.randn(3, 16), torch.tensor([[1, 4], [0, -1], [-1, 2]])).shape
        torch.Size([2])
    """

    task_weight: Tensor | None

    def __init__(
        self,
        width: int,
        classes: Sequence[int],
        *,
        task_weight: Sequence[float] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        problems = Problems("FeedbackLoss")
        problems.integer("width", width, least=1)
        if not problems.sequence("classes", classes, "integers"):
            problems.raise_if_any()
        self.classes = [problems.integer(f"classes[{task}]", count, least=1) for task, count in enumerate(classes)]
        problems.require(len(self.classes) > 0, "classes is empty, expected at least one task")
        weights = None
        if task_weight is not None:
            weights = [problems.number(f"task_weight[{task}]", one, least=0) for task, one in enumerate(task_weight)]
            fits = len(weights) == len(self.classes)
            problems.require(fits, f"task_weight has {len(weights)} values, expected {len(self.classes)} as classes")
        problems.raise_if_any()
        self.weight = nn.Parameter(torch.empty(width, sum(self.classes), device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(sum(self.classes), device=device, dtype=dtype))
        held = None if weights is None else torch.tensor(weights, device=device)
        self.register_buffer("task_weight", held, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the projection anew."""
        nn.init.normal_(self.weight, std=self.weight.shape[0] ** -0.5)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor, targets: Tensor, row_weight: Tensor | None = None) -> Tensor:
        """Losses [F] float32 of hidden [N, D] and targets [N, F] int64 (−1: not observed).

        row_weight: [N] or None. Each loss is a mean over its observed rows; errors as `argus_kernels.feedback_loss`.
        """
        return feedback_loss(
            hidden, self.weight, self.bias, targets, self.classes, task_weight=self.task_weight, row_weight=row_weight
        )

    def logits(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """The logits of each task, [N, classes[f]] in hidden's dtype."""
        return torch.addmm(self.bias, hidden, self.weight).split(self.classes, dim=-1)

    def extra_repr(self) -> str:
        weights = None if self.task_weight is None else self.task_weight.tolist()
        return f"width={self.weight.shape[0]}, classes={self.classes}, task_weight={weights}"


class PairwiseLoss(nn.Module):
    """RankNet's loss over all pairs of a user's events at most `window` apart in time. No parameters.

    Args:
        window: the longest distance in time within a pair, at least 0, in the unit of the times.
        reduction: "mean" over the pairs (0 without any), or "sum".

    Raises:
        ValueError: a window below 0, another reduction.

    Examples:
        >>> import torch
        >>> from argus_kernels.nn import PairwiseLoss
        >>> scores, grades = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1, 0, -1])
        >>> print(PairwiseLoss(60)(scores, grades, torch.tensor([0, 3]), torch.tensor([0, 5, 9])))
        tensor(0.3133)
    """

    def __init__(self, window: int, *, reduction: str = "mean") -> None:
        super().__init__()
        problems = Problems("PairwiseLoss")
        self.window: int = problems.integer("window", window, least=0)
        problems.choice("reduction", reduction, REDUCTIONS)
        problems.raise_if_any()
        self.reduction = reduction

    def forward(self, scores: Tensor, grades: Tensor, offsets: Tensor | Offsets, times: Tensor) -> Tensor:
        """The loss of scores [T], grades [T] (negative: in no pair), offsets [B + 1] and times [T]: no dimension.

        `argus_kernels.pairwise_loss` also returns the numbers of pairs and of concordant ones.
        """
        loss, pairs, _ = pairwise_loss(scores, grades, offsets, times, self.window)
        return loss / pairs.clamp(min=1) if self.reduction == "mean" else loss

    def extra_repr(self) -> str:
        return f"window={self.window}, reduction={self.reduction!r}"
