"""Multi-task feedback loss: projection to the tasks' logits and the loss of every task, as one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from argus_kernels.core import Backend, Op, Problems, autocast
from argus_kernels.core.problems import FLOATING
from argus_kernels.core.triton_support import triton_backend
from argus_kernels.core.varlen import require_values
from argus_kernels.ops.feedback_loss import native, reference, triton_limits
from argus_kernels.ops.feedback_loss.arguments import Arguments
from argus_kernels.ops.feedback_loss.samples import drawn, samples, tiles


def feedback_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    classes: Sequence[int],
    *,
    task_weight: Tensor | None = None,
    row_weight: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The loss of every feedback task (like, skip, share of the track listened …) from one projection.

    Task f owns classes[f] neighbouring columns of `hidden @ weight + bias`, in the order of the tasks: one column is
    a Bernoulli logit (binary cross-entropy), two or more are a softmax (cross-entropy). With w_n = row_weight[n] (or
    1) and the sums over the rows in which task f was observed,

        loss[f] = task_weight[f] · Σ_n w_n · l_nf / Σ_n w_n,    0 with zero gradients where nothing was observed.

    Args:
        hidden: [N, D], float32, bfloat16, float16 or float64.
        weight: [D, C] with C the sum of `classes`, dtype like hidden.
        bias: [C], dtype like hidden.
        targets: [N, F] int64: the class, 0 or 1 for a Bernoulli task, −1 where the task was not observed.
        classes: F counts, each at least 1.
        task_weight: [F] floating point, or None for 1; gets no gradient.
        row_weight: [N] floating point, at least 0, or None for 1; gets no gradient. A row of weight 0 is left out
            entirely: whatever it holds, NaN included, reaches neither losses nor gradients.
        backend: which backend computes; None for the default.

    Returns:
        loss [F], float32 (float64 for float64 inputs), differentiable in hidden, weight and bias.

    Raises:
        ValueError: a shape, dtype, layout or device does not fit; on the CPU also a target outside its task's classes
            or a row weight that is negative or not finite, with its position. On a GPU these two are device-side
            assertions, see `argus_kernels.set_device_checks`.

    Under autocast hidden, weight and bias are cast to its dtype; losses stay float32. The task losses are those of
    ARGUS's feedback head (arXiv 2507.15994); the mean over observed rows and the weights are this package's choice.
    """
    hidden, weight, bias = autocast(hidden, weight, bias)
    classes = _check_arguments(hidden, weight, bias, targets, classes, task_weight, row_weight)
    statistics = torch.promote_types(hidden.dtype, torch.float32)
    task_weight = task_weight if task_weight is None else task_weight.detach().to(statistics)
    row_weight = row_weight if row_weight is None else row_weight.detach().to(statistics)
    given = Arguments(hidden, weight, bias, targets, classes, task_weight, row_weight)
    return OP(given, backend=backend)


def _check_arguments(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    classes: Sequence[int],
    task_weight: Tensor | None,
    row_weight: Tensor | None,
) -> list[int]:
    """The classes as a list of integers; raises ValueError with all that is wrong."""
    problems = Problems("feedback_loss")
    if not problems.tensor("hidden", hidden, shape=(None, None), dtype=FLOATING):
        problems.raise_if_any()
    rows, width = hidden.shape
    device = hidden.device
    if not problems.sequence("classes", classes, "integers"):
        problems.raise_if_any()
    classes = [problems.integer(f"classes[{task}]", count, least=1) for task, count in enumerate(classes)]
    problems.tensor("weight", weight, shape=(width, sum(classes)), dtype=hidden.dtype, device=device, like="hidden")
    problems.tensor("bias", bias, shape=(sum(classes),), dtype=hidden.dtype, device=device, like="hidden")
    problems.tensor("targets", targets, shape=(rows, len(classes)), dtype=torch.int64, device=device)
    if task_weight is not None:
        problems.tensor("task_weight", task_weight, shape=(len(classes),), dtype=FLOATING, device=device)
    if row_weight is not None:
        problems.tensor("row_weight", row_weight, shape=(rows,), dtype=FLOATING, device=device)
    problems.raise_if_any()
    return classes


def _check_values(given: Arguments) -> None:
    targets, classes, row_weight = given.targets, given.classes, given.row_weight
    # Column by column: a tensor of the highest classes would have to be copied from the host.
    wrong = torch.zeros_like(targets, dtype=torch.bool)
    for task, count in enumerate(classes):
        wrong[:, task] = (targets[:, task] < -1) | (targets[:, task] > _highest(count))
    wrong_weight = None if row_weight is None else ~(row_weight >= 0) | row_weight.isinf()
    if targets.device.type != "cpu":
        require_values(~wrong, "feedback_loss: a target is outside its task's classes")
        if wrong_weight is not None:
            require_values(~wrong_weight, "feedback_loss: a row weight is negative or not finite")
        return
    if bool(wrong.any()):
        row, task = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"feedback_loss: targets[{row}, {task}] is {int(targets[row, task])}, expected −1 (not observed) or "
            f"0 to {_highest(classes[task])} for task {task}"
        )
    if row_weight is not None and wrong_weight is not None and bool(wrong_weight.any()):
        row = int(wrong_weight.nonzero()[0])
        raise ValueError(f"feedback_loss: row_weight[{row}] is {float(row_weight[row])}, expected a finite value ≥ 0")


def _highest(count: int) -> int:
    return max(count, 2) - 1


def _fake(given: Arguments) -> Tensor:
    return given.hidden.new_empty(len(given.classes), dtype=torch.promote_types(given.hidden.dtype, torch.float32))


BACKENDS = (
    Backend("cuda", native.forward, native.backward, why_not=native.why_not_cuda, available=native.available_cuda),
    triton_backend("argus_kernels.ops.feedback_loss.triton_kernels", triton_limits.why_not),
    Backend("cpp", native.forward, native.backward, why_not=native.why_not_cpp, available=native.available_cpp),
    Backend("reference", reference.forward, reference.backward),
)

OP = Op(
    "feedback_loss",
    arguments=Arguments,
    returns="Tensor",
    fake=_fake,
    backends=BACKENDS,
    differentiable=("hidden", "weight", "bias"),
    check=_check_values,
    samples=samples,
    tiles=tiles,
    drawn=drawn,
)
