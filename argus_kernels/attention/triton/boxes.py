"""Tensor descriptors of packed histories for TMA, on sm_90; a block of a user's rows ends where the user does.

A plain descriptor knows the tensor's end alone. A block at a user's end would hold the next user's rows, or padding,
and a hidden value of NaN makes 0 · NaN of a weight of 0. So the descriptor has two dimensions more, as in Triton's
`tools/ragged_tma.py`: the row of a box counts up to LAST_ROW, whatever the user, and the dimensions before move the
whole box to the user's end: (2³⁴ − row stride) · LAST_ROW is −(row stride) · LAST_ROW in 64 bits.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LAST_ROW = tl.constexpr(2**30)
"""The bound of a user's rows in a descriptor."""
_UNBOUNDED = 2**31 - 2**16


def user_box(tensor: Tensor, block: int, block_width: int) -> TensorDescriptor:
    """The descriptor of a tensor [T, H, Dh] whose boxes are `block` rows of one head; see `tiles.load_block`."""
    (_, heads, width), (row, head, column) = tensor.shape, tensor.stride()
    shape = [_UNBOUNDED, _UNBOUNDED, heads, LAST_ROW.value, width]
    return TensorDescriptor(tensor, shape, [2**34 - row, row, head, row, column], [1, 1, 1, block, block_width])
