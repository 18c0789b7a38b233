"""Optimisers for embedding tables, over the rows that a step has touched; clipping of row-sparse gradients."""

from argus_kernels.optim.clipping import clip_grad_norm_
from argus_kernels.optim.elementwise import RowAdagrad, RowAdam, RowSGD
from argus_kernels.optim.rowwise_adagrad import RowwiseAdagrad

__all__ = ["RowAdagrad", "RowAdam", "RowSGD", "RowwiseAdagrad", "clip_grad_norm_"]
