"""Launches the Triton attention kernels over packed histories: their order, their tiles, and the sums for the tables.

The work of a batch is a flat list of tiles (user, block), computed on the device from the offsets (`schedule`), once
per pass for all its kernels; the host knows an upper bound of its length. The most expensive tiles come first, and a
free multiprocessor takes the next one, so that one long user among many short ones does not leave the GPU idle at the
end.

A user's tiles and their sizes depend on their own events alone, not on the other users of the batch.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from argus_kernels.attention.arguments import OF_QUERIES, History
from argus_kernels.attention.mask_rule import MOST_PLACES
from argus_kernels.attention.relative_bias import time_thresholds
from argus_kernels.attention.triton.backward import key_gradient_kernel, query_gradient_kernel
from argus_kernels.attention.triton.boxes import user_box
from argus_kernels.attention.triton.dropout import threshold_of
from argus_kernels.attention.triton.forward import forward_kernel
from argus_kernels.attention.triton.records import Biases, Rows, Rule, Shape, Statistics
from argus_kernels.attention.triton.schedule import tile_schedules
from argus_kernels.attention.triton.tables import table_gradient_kernel
from argus_kernels.core.triton_support import gpu_generation, launch, loads_by_tma, next_power_of_two
from argus_kernels.core.tuning import Config, Tunable, configuration

TABLE_BLOCK = 32


class Attention(History):
    """The record of both ops, and the values that the kernels' launches derive from it."""

    __slots__ = ()

    @property
    def op(self) -> str:
        """Names the tuned configurations."""
        return "causal_attention" if self.softmax else "hstu_attention"

    @property
    def biased(self) -> bool:
        """Whether a pair has a bias."""
        return self.position_bias is not None or self.time_bias is not None

    @property
    def ruled(self) -> bool:
        """Whether pairs take registers beyond those of `visible` and the window: more of the mask rule, or dropout."""
        return not self.lagged or self.dropout > 0

    @property
    def users(self) -> int:
        """How many users the batch has."""
        return self.offsets.shape[0] - 1

    @property
    def windowed(self) -> bool:
        """Whether the window may hide a key; positions reach up to MOST_PLACES."""
        return self.window is not None and (self.lagged or self.window <= MOST_PLACES)

    def block_width(self) -> int:
        """The head width of the tiles."""
        return max(16, next_power_of_two(self.q.shape[2]))

    def config(self, part: str) -> Config:
        """The configuration of a kernel; the size is left out, see the module's last sentence."""
        return configuration(
            f"{self.op}/{part}",
            width=self.q.shape[2],
            dtype=self.q.dtype,
            size=1,
            default=self._default_config(part),
            device=self.q.device,
        )

    def _default_config(self, part: str) -> Config:
        generation, width = gpu_generation(self.q.device), self.block_width()
        found = default_config(part, width, self.q.dtype, self.biased or self.ruled, generation)
        if self.ruled:
            return {**found, **ruled_config(part, width, self.q.dtype, generation, self.softmax)}
        if self.visible is not None:
            found = {**found, **limited_config(part, width, self.q.dtype)}
        if part == "forward" and self.described and not self.biased:
            return {**found, **described_config(width)}
        return found

    @property
    def described(self) -> bool:
        """Whether the forward kernel loads q, k and v by TMA."""
        return loads_by_tma(self.q, self.k, self.v)

    def shared_arguments(self) -> dict[str, Any]:
        """The arguments that all kernels take."""
        position, time = _rows(self.position_bias), _rows(self.time_bias)
        biases = Biases(
            position,
            0 if position is None else position.stride(0),
            time,
            0 if time is None else time.stride(0),
            None if time is None or self.query_time is None else self.query_time.contiguous(),
            None if time is None or self.key_time is None else self.key_time.contiguous(),
            None if time is None else upper_edges(time.shape[1], self.q.device),
        )
        return {
            "q": Rows(self.q, *self.q.stride()),
            "k": Rows(self.k, *self.k.stride()),
            "v": Rows(self.v, *self.v.stride()),
            "rule": self._rule(),
            "biases": biases,
            "scale": self.scale * math.log2(math.e) if self.softmax else self.scale,
            "window": self.window if self.windowed else 0,
            "rows": self.q.shape[0],
            "heads": self.q.shape[1],
            "SHAPE": Shape(
                self.softmax,
                self.windowed,
                0 if position is None else position.shape[1],
                0 if time is None else time.shape[1],
                self.q.shape[2],
                self.block_width(),
                self.q.dtype != torch.float32,
                not self.lagged,
                self.q.shape[1] // self.k.shape[1],
                self.dropout > 0,
            ),
        }

    def _rule(self) -> Rule:
        numbers = (getattr(self, name) for name in (*OF_QUERIES, "prefix", "dropout_seed"))
        offsets = (None, None) if self.key_offsets is None else (self.offsets, self.key_offsets)
        rate = (threshold_of(self.dropout), 1 / (1 - self.dropout)) if self.dropout > 0 else (None, None)
        return Rule(*(None if one is None else one.contiguous() for one in (*offsets, *numbers)), *rate)


def default_config(part: str, width: int, dtype: torch.dtype, biased: bool, generation: int) -> Config:
    """The tile sizes of a kernel ("forward", "query_gradient", "key_gradient") without an entry in a tuning table.

    generation: the first number of the GPU's compute capability. float32 products are fused multiply-adds whose tiles
    live in registers; biases need a tile of 64-bit differences. On sm_90 the tiles of plain 16-bit products are chosen
    from the compiled code, not measured: wgmma of 32 columns and more (of 16 it is bound by shared memory), three
    stages, so that a load is in flight during a product, and no spills. On sm_80 the gradients' tiles are smaller,
    because those spill there. With biases, four warps leave registers for a second block per multiprocessor of sm_90
    and split no product's columns; at head widths past 64 they spill.
    """
    if dtype == torch.float32:
        side = 32 if width <= 64 else 16
        warps = 8 if part == "query_gradient" or (part == "forward" and width <= 32) else 4
        # Without a limit ptxas takes 68 and 166 registers, and one block fewer fits a multiprocessor; the limit spills
        # nothing.
        limits = {"forward": 64, "query_gradient": 128} if width <= 32 else {}
        if biased and 32 < width <= 64:
            # Without a limit ptxas spills 16 bytes to reach 128.
            limits = {"key_gradient": 168}
        limit = {"registers": limits[part]} if part in limits else {}
        return {"block_query": side, "block_key": side, "warps": warps, "stages": 1, **limit}
    plain, narrow = width <= 128 and not biased, width <= 64
    paired = biased and narrow and generation == 9
    warps = 4 if paired else 8
    if part == "forward":
        # 128 keys spill at a head width of 16 on sm_100.
        tile = (128, 128 if width == 64 else 64, 8, 3) if plain else (64, 32, warps, 2)
    elif part == "query_gradient" and (generation < 9 or not plain):
        keys = 16 if biased and not paired else 64 if narrow and not paired else 32
        tile = (64, keys, 4 if plain else warps, 2)
    elif part == "query_gradient":
        tile = (64, 64, 4, 3 if narrow else 2)
    elif generation < 9 or not plain:
        tile = (32 if plain else 16, 64, warps, 2)
    else:
        tile = (64, 64, 4, 3) if narrow else (32, 64, 4, 2)
    config = dict(zip(("block_query", "block_key", "warps", "stages"), tile, strict=True))
    if biased and narrow and generation >= 10 and part != "query_gradient":
        # Without a limit ptxas spills up to 64 bytes to reach 128 and 80 registers; with these limits it spills
        # nothing.
        config["registers"] = 168 if part == "forward" else 128
    return config


def ruled_config(part: str, width: int, dtype: torch.dtype, generation: int, softmax: bool) -> Config:
    """What the whole mask rule with dropout and biases changes in `default_config`, so that ptxas spills nothing.

    The generator's words take registers. In float32 the key gradient's four warps spilled up to 1,112 bytes at head
    width 64 (168 registers) and 472 at 128 (255); SiLU's eight spill 8 on sm_90 over 32 queries. In bfloat16, at 64,
    forward's four warps spilled 32 bytes on sm_90 and the gradients 24 on sm_100 (128 registers); at 128, 64 keys
    spilled 64 bytes on sm_90 (255 registers), and SiLU's query gradient 8 on sm_100 (128 registers).
    """
    if dtype == torch.float32:
        if part != "key_gradient" or width <= 32:
            return {}
        smaller = {"block_query": 16} if generation == 9 and width == 64 and not softmax else {}
        return {**limited_config(part, width, dtype), **smaller}
    if part == "key_gradient" and width == 128 and generation == 9:
        return {"block_key": 32}
    if width <= 64 and generation == 9 and part == "forward":
        return {"warps": 8}
    limited = width <= 64 or (width == 128 and part == "query_gradient")
    return {"registers": 168} if limited and generation >= 10 else {}


def described_config(width: int) -> Config:
    """What loads by TMA change in forward: without addresses two programs fit a multiprocessor at head width 64.

    One multiplies while the other works on its weights. With 128 keys, SiLU, `visible` and the window spill 40 to 192
    bytes under this limit; with 64 nothing does.
    """
    return {"block_key": 64, "registers": 128} if width == 64 else {}


def limited_config(part: str, width: int, dtype: torch.dtype) -> Config:
    """What `visible` changes: to look for the first query that sees a tile of keys spills 928 bytes in four warps."""
    wide = dtype == torch.float32 and part == "key_gradient" and width > 32
    return {"warps": 8, "registers": 255} if wide else {}


@functools.lru_cache(maxsize=64)
def upper_edges(buckets: int, device: torch.device) -> Tensor:
    """Entry b is the smallest difference past bucket b, int64 [buckets]; cached: a CUDA graph cannot capture a copy."""
    edges = time_thresholds(buckets, device)
    return torch.cat([edges[1:], edges.new_full((1,), torch.iinfo(torch.int64).max)])


def forward(given: Attention) -> tuple[Tensor, Tensor | None]:
    """Computes out [Tq, H, Dh], like q, and softmax's log_sum_exp float32 [H, Tq]; zero in padding rows."""
    total, heads, width = given.q.shape
    out = given.q.new_zeros(total, heads, width)
    log_sum_exp = given.q.new_zeros(heads, total, dtype=torch.float32) if given.softmax else None
    if given.users and total:
        config = given.config("forward")
        own = [(config["block_query"], False)]
        (schedule,) = tile_schedules(given.offsets, total, own, lambda: _backward_tiles(given, given.offsets))
        arguments = given.shared_arguments() | {
            "out": out,
            "log_sum_exp": log_sum_exp,
            "schedule": schedule,
            "divisor": given.divisor or 1.0,
            **_boxes(given, config),
            **_blocks(config),
        }
        _launch(forward_kernel, heads, arguments, config)
    return out, log_sum_exp


def backward(
    given: Attention,
    needs: dict[str, bool],
    d_out: Tensor,
    out: Tensor | None = None,
    log_sum_exp: Tensor | None = None,
    d_log_sum_exp: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of q, k and v, and of the tables that need one; softmax also needs its outputs."""
    total, heads, _ = given.q.shape
    gradients = [one.new_zeros(one.shape) for one in (given.q, given.k, given.v)]
    tables: list[Tensor | None] = [
        None if table is None else torch.zeros_like(table, memory_format=torch.contiguous_format)
        for table in (given.position_bias, given.time_bias)
    ]
    if not (given.users and total):
        return [*gradients, *tables]
    delta = given.q.new_empty(heads, total, dtype=torch.float32) if given.softmax else None
    exact = given.softmax and given.q.dtype == torch.float32
    shared = given.shared_arguments() | {
        "d_out": Rows(d_out, *d_out.stride()),
        "statistics": Statistics(log_sum_exp, delta, torch.empty_like(delta) if delta is not None and exact else None),
        "factor": given.scale / (given.divisor or 1.0),
    }
    configs = given.config("query_gradient"), given.config("key_gradient")
    of_queries, of_keys, *of_tables = _schedules(given, needs)
    shared_by_queries = shared | {"schedule": of_queries, **_blocks(configs[0])}
    _query_gradient(given, shared_by_queries, configs[0], gradients[0], out, d_log_sum_exp)
    shared_by_keys = shared | {"schedule": of_keys, **_blocks(configs[1])}
    _key_gradient(given, shared_by_keys, configs[1], gradients[1], gradients[2])
    for schedule in of_tables:
        tables = _table_gradients(given, shared | {"schedule": schedule}, _table_side(given), needs)
    return [*gradients, *tables]


def _backward_tiles(given: Attention, offsets: Tensor) -> list[tuple[int, bool]]:
    """The tiles of the backward pass over the users' rows by these offsets: of queries, of keys, of the tables."""
    tiles = [
        (given.config("query_gradient")["block_query"], False),
        (given.config("key_gradient")["block_key"], True),
        (_table_side(given), False),
    ]
    return [tile for tile in tiles if given.key_offsets is None or tile[1] == (offsets is given.key_offsets)]


def _table_side(given: Attention) -> int:
    """The side of the tiles behind the tables' gradients."""
    return TABLE_BLOCK if given.block_width() <= 128 else TABLE_BLOCK // 2


def _schedules(given: Attention, needs: dict[str, bool]) -> list[Tensor]:
    """The schedules of the backward pass, of queries, of keys, and of the tables where these get gradients."""
    with_tables = any(needs.get(name) for name in ("position_bias", "time_bias"))
    of_queries = _backward_tiles(given, given.offsets)
    of_queries = of_queries if with_tables else of_queries[:-1]
    found = tile_schedules(given.offsets, given.q.shape[0], of_queries)
    if given.key_offsets is not None:
        found[1:1] = tile_schedules(given.key_offsets, given.k.shape[0], _backward_tiles(given, given.key_offsets))
    return found


def _query_gradient(
    given: Attention,
    shared: dict[str, Any],
    config: Config,
    d_q: Tensor,
    out: Tensor | None,
    d_log_sum_exp: Tensor | None,
) -> None:
    """Fills d_q and, for softmax, delta: the sum over the keys of weight times its gradient."""
    arguments = shared | {
        "out": out,
        "d_statistic": None if d_log_sum_exp is None else d_log_sum_exp.contiguous(),
        "d_q": d_q,
    }
    _launch(query_gradient_kernel, given.q.shape[1], arguments, config)


def _table_gradients(
    given: Attention, shared: dict[str, Any], side: int, needs: dict[str, bool]
) -> list[Tensor | None]:
    """The gradients of position_bias and time_bias, if needed, in tiles of `side` queries and keys."""
    heads, programs = given.q.shape[1], shared["schedule"].shape[0]
    tables = {"position": given.position_bias, "time": given.time_bias}
    sums: dict[str, Tensor | None] = {}
    sizes: dict[str, int | None] = {}
    for name, table in tables.items():
        wanted = table is not None and needs.get(f"{name}_bias")
        sizes[name] = next_power_of_two(table.shape[1]) if table is not None and wanted else None
        sums[name] = given.q.new_zeros(programs, heads, sizes[name] or 0, dtype=torch.float32)
    own = {name: value for name, value in shared.items() if name != "factor"}
    arguments = own | {
        "position_sums": None if sizes["position"] is None else sums["position"],
        "time_sums": None if sizes["time"] is None else sums["time"],
        "POSITION_SUMS": sizes["position"],
        "TIME_SUMS": sizes["time"],
        "BLOCK_QUERY": side,
        "BLOCK_KEY": side,
    }
    launch(table_gradient_kernel, (programs * heads,), arguments, warps=4, stages=1)
    gradients: list[Tensor | None] = []
    for name, table in tables.items():
        partial = sums[name]
        if table is None or partial is None or sizes[name] is None:
            gradients.append(None)
        else:
            # A bucket may hold a million pairs: float64 across programs, as in the definition.
            summed = partial.sum(0, dtype=torch.float64)[:, : table.shape[1]]
            gradients.append((summed / (given.divisor or 1.0)).to(table.dtype))
    return gradients


def _key_gradient(given: Attention, shared: dict[str, Any], config: Config, d_k: Tensor, d_v: Tensor) -> None:
    arguments = shared | {"d_k": d_k, "d_v": d_v, "divisor": given.divisor or 1.0}
    arguments["heads"] = given.k.shape[1]
    _launch(key_gradient_kernel, given.k.shape[1], arguments, config)


def _launch(kernel: Any, heads: int, arguments: dict[str, Any], config: Config) -> None:
    # The heads of a tile are neighbours: they read the same schedule entry, limits and times.
    launch(
        kernel,
        (arguments["schedule"].shape[0] * heads,),
        arguments,
        warps=config["warps"],
        stages=config["stages"],
        registers=config.get("registers"),
    )


def _blocks(config: Config) -> dict[str, int]:
    return {"BLOCK_QUERY": config["block_query"], "BLOCK_KEY": config["block_key"]}


def _boxes(given: Attention, config: Config) -> dict[str, Any]:
    """The descriptors of q, k and v, or None for each where TMA cannot load them."""
    sides = {
        "query_box": (given.q, "block_query"),
        "key_box": (given.k, "block_key"),
        "value_box": (given.v, "block_key"),
    }
    if not given.described:
        return dict.fromkeys(sides)
    return {name: user_box(one, config[side], given.block_width()) for name, (one, side) in sides.items()}


def _rows(table: Tensor | None) -> Tensor | None:
    """A table whose columns are contiguous in memory; float64 becomes float32, the dtype of the scores."""
    if table is None:
        return None
    return (table.float() if table.dtype == torch.float64 else table).contiguous()


def tunables(op: str) -> tuple[Tunable, ...]:
    """The configurations of an op's three kernels that `python -m benchmarks tune` may choose from."""
    tiles: dict[str, tuple[tuple[int, ...], ...]] = {
        "forward": ((128, 64, 8, 3), (128, 128, 8, 3), (128, 64, 8, 3, 128), (128, 64, 8, 2), (64, 64, 4, 3)),
        "query_gradient": ((64, 64, 4, 3), (64, 64, 4, 2), (128, 64, 8, 2), (64, 32, 4, 3)),
        "key_gradient": ((64, 64, 4, 3), (32, 64, 4, 2), (64, 64, 8, 2), (32, 64, 8, 2)),
    }
    names = ("block_query", "block_key", "warps", "stages", "registers")
    return tuple(
        Tunable(
            f"{op}/{part}",
            "triton",
            tuple(dict(zip(names, config, strict=False)) for config in configs),
            backward=part != "forward",
        )
        for part, configs in tiles.items()
    )


def meta_history(
    width: int, dtype: torch.dtype, given: str, scale: float = 1.0, divisor: float | None = None
) -> History:
    """The record of 16 users and 8 heads, on the meta device; for the compile gates.

    given: "plain": no optional argument; "everything": `visible`, the window and both tables; "rule": all arguments of
    the mask rule and dropout too, of queries in groups of four heads. divisor: of hstu_attention; None is
    causal_attention.
    """
    total, heads, users = 16_384, 8, 16
    with torch.device("meta"):
        q = torch.empty(total, heads, width, dtype=dtype)
        k, v = torch.empty(2, total, 2 if given == "rule" else heads, width, dtype=dtype)
        offsets, key_offsets = torch.empty(2, users + 1, dtype=torch.int32)
        plain = History(q, k, v, offsets, 8192, scale=scale, divisor=divisor)
        if given == "plain":
            return plain
        position_bias, time_bias = torch.empty(2, heads, 128, dtype=dtype)
        query_time, key_time = torch.empty(2, total, dtype=torch.int64)
        biased = plain._replace(
            visible=torch.empty(total, dtype=torch.int32),
            position_bias=position_bias,
            time_bias=time_bias,
            query_time=query_time,
            key_time=key_time,
            window=1024,
        )
        if given == "everything":
            return biased
        position, own_begin, own_end = torch.empty(3, total, dtype=torch.int32)
        return biased._replace(
            key_offsets=key_offsets,
            key_max_length=8192,
            position=position,
            own_begin=own_begin,
            own_end=own_end,
            prefix=torch.empty(users, dtype=torch.int32),
            dropout=0.1,
            dropout_seed=torch.empty(users, dtype=torch.int64),
        )
