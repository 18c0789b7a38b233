"""decode_attention's CUDA kernels and launcher on the CPU, by the SIMT executor: backend "cuda_on_host", tests only."""

from __future__ import annotations

import ctypes
from itertools import count

import torch
from torch import Tensor

from argus_kernels.core import Backend
from argus_kernels.core.records import Given
from argus_kernels.ops.decode_attention import native
from argus_kernels.ops.decode_attention.arguments import Arguments
from tests.csrc.simt import host_executor

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
SOURCES = (
    host_executor.REPOSITORY / "csrc/decode_attention/decode_attention_cuda.cu",
    host_executor.HERE / "decode_attention.cpp",
)
SEEDS = count()
"""Every call runs the threads in another order."""

_POINTERS = (
    "q", "key_pages", "value_pages", "key_scales", "value_scales", "time_pages", "block_table", "lengths", "offsets",
    "k", "v", "position_bias", "time_bias", "cell_bucket", "cell_edge", "query_time", "key_time", "out", "partial",
)  # fmt: skip
_SIZES = (
    "users", "rows", "heads", "kv_heads", "group", "width", "pages", "page_size", "table_width", "key_page_stride",
    "key_slot_stride", "value_page_stride", "value_slot_stride", "time_page_stride", "time_slot_stride",
    "key_scale_page_stride", "key_scale_slot_stride", "key_scale_head_stride", "value_scale_page_stride",
    "value_scale_slot_stride", "value_scale_head_stride",
    "position_buckets", "time_buckets", "window", "chunk",
)  # fmt: skip


class Params(ctypes.Structure):
    """argus::decode_attention::Params."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_double),
        ("divisor", ctypes.c_double),
        ("dtype", ctypes.c_int),
    )


def _scale_strides(given: Arguments) -> dict[str, int]:
    return {
        f"{side}_scale_{of}_stride": scales.stride(place)
        for side, scales in (("key", given.key_scales), ("value", given.value_scales))
        if scales is not None
        for place, of in enumerate(("page", "slot", "head"))
    }


def forward(given: Arguments) -> Tensor:
    """What the CUDA library does with these arguments, its launches included; RuntimeError with the report."""
    if given.key_scales is not None and given.q.dtype != torch.float32:
        k, v = (None if one is None else one.float() for one in (given.k, given.v))
        return forward(given._replace(q=given.q.float(), k=k, v=v)).to(given.q.dtype)
    rows, heads, width = given.q.shape
    out = torch.empty(given.q.shape, dtype=given.q.dtype)
    if out.numel() == 0:
        return out
    tensors = {
        "q": given.q.contiguous(),
        "block_table": given.block_table.contiguous(),
        "lengths": given.lengths.contiguous(),
        "offsets": None if given.offsets is None else given.offsets.contiguous(),
        "k": None if given.k is None else given.k.contiguous(),
        "v": None if given.v is None else given.v.contiguous(),
        "position_bias": None if given.position_bias is None else given.position_bias.float().contiguous(),
        "time_bias": None if given.time_bias is None else given.time_bias.float().contiguous(),
        "query_time": None if given.query_time is None else given.query_time.contiguous(),
        "key_time": None if given.key_time is None or given.k is None else given.key_time.contiguous(),
        "key_pages": given.key_pages,
        "value_pages": given.value_pages,
        "key_scales": given.key_scales,
        "value_scales": given.value_scales,
        "time_pages": given.time_pages,
        "out": out,
    }
    params = Params(
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()},
        users=given.lengths.shape[0],
        rows=rows,
        heads=heads,
        kv_heads=given.key_pages.shape[2],
        group=given.group,
        width=width,
        pages=given.key_pages.shape[0],
        page_size=given.key_pages.shape[1],
        table_width=given.block_table.shape[1],
        key_page_stride=given.key_pages.stride(0),
        key_slot_stride=given.key_pages.stride(1),
        value_page_stride=given.value_pages.stride(0),
        value_slot_stride=given.value_pages.stride(1),
        time_page_stride=given.time_pages.stride(0),
        time_slot_stride=given.time_pages.stride(1),
        **_scale_strides(given),
        position_buckets=0 if given.position_bias is None else given.position_bias.shape[1],
        time_buckets=0 if given.time_bias is None else given.time_bias.shape[1],
        window=2**63 - 1 if given.window is None else given.window,
        scale=given.scale,
        divisor=given.divisor or 0.0,
        dtype=DTYPES[given.q.dtype],
    )
    report = ctypes.create_string_buffer(host_executor.REPORT_BYTES)
    function = host_executor.load("decode_attention", SOURCES).decode_attention_on_host
    function(ctypes.byref(params), ctypes.c_uint64(next(SEEDS)), report, ctypes.c_size_t(len(report)))
    if report.value:
        raise RuntimeError(report.value.decode())
    return out


def _why_not(given: Given) -> list[str]:
    # Everything the CUDA backend wants, but on the CPU.
    return [reason for reason in native.why_not_cuda(given) if "expected cuda" not in reason]


DECODE_ATTENTION = Backend("cuda_on_host", forward, why_not=_why_not, available=host_executor.why_not)
