"""TripleEmbedding: the tables and the projection of `triple_embedding` as a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from argus_kernels.core import Problems
from argus_kernels.ops.triple_embedding import triple_embedding


class TripleEmbedding(nn.Module):
    """One vector per event from K id columns: looked up in tables, concatenated, projected.

    Initialisation: tables N(0, 1/d), weight N(0, 1/K), bias 0, so that a column adds variance 1/K to each output.
    The names in `state_dict` are `tables.<name>`, `weight` and `bias`.

    Args:
        tables: by name, (rows, width) of a new table, or an `nn.Parameter` [rows, width] shared with another module.
        columns: the table of each of the K columns; several may read one table, as hashed ids do.
        width: D, of the result.
        sparse: gradients of the tables are row-sparse, see `argus_kernels.optim.RowwiseAdagrad`. A table that is tied
            to another use stays row-sparse where that use reads rows too: `rows` does. A backward pass that adds a
            dense gradient to such a table, as `query @ table.T` does, is refused.
        bias: whether the projection has a bias.
        device: of new parameters.
        dtype: of new parameters.

    Raises:
        ValueError: a column that names no table, a size below 1, a table that is neither sizes nor a parameter.

    Examples:
        >>> import torch
        >>> from argus_kernels.nn import TripleEmbedding
        >>> embed = TripleEmbedding({"item": (1000, 32), "action": (4, 8)}, ["item", "action"], 64)
        >>> embed(torch.tensor([[7, 900, -1], [0, 3, 1]])).shape
        torch.Size([3, 64])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        tables: Mapping[str, tuple[int, int] | nn.Parameter],
        columns: Sequence[str],
        width: int,
        *,
        sparse: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        problems = Problems("TripleEmbedding")
        self.width = problems.integer("width", width, least=1)
        self.sparse = problems.flag("sparse", sparse)
        self.column_names = tuple(columns)
        problems.require(len(self.column_names) > 0, "columns is empty, expected at least one name of a table")
        for k, name in enumerate(self.column_names):
            problems.require(name in tables, f"columns[{k}] is {name!r}, expected one of {', '.join(tables)}")
        for name, given in tables.items():
            if not isinstance(given, nn.Parameter):
                sizes = tuple(given) if isinstance(given, (tuple, list)) else (given,)
                fits = len(sizes) == 2 and all(isinstance(size, int) and size >= 1 for size in sizes)
                problems.require(fits, f"tables[{name!r}] is {given!r}, expected (rows, width), each at least 1")
            elif given.dim() != 2:
                problems.require(False, f"tables[{name!r}] has shape {list(given.shape)}, expected [rows, width]")
        problems.raise_if_any()
        made: dict[str, nn.Parameter] = {}
        for name, given in tables.items():
            if not isinstance(given, nn.Parameter):
                given = nn.Parameter(torch.empty(*given, device=device, dtype=dtype))
            made[name] = given
        self._new = tuple(name for name, given in tables.items() if not isinstance(given, nn.Parameter))
        self.tables = nn.ParameterDict(made)
        names = list(self.tables)  # in the order of ParameterDict, which sorts them
        self.columns = [names.index(name) for name in self.column_names]
        fan_in = sum(made[name].shape[1] for name in self.column_names)
        self.weight = nn.Parameter(torch.empty(fan_in, self.width, device=device, dtype=dtype))
        self.register_parameter("bias", nn.Parameter(torch.empty(width, device=device, dtype=dtype)) if bias else None)
        self._guards: dict[str, tuple[nn.Parameter, Any]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew; tables that were given stay as they are."""
        for name in self._new:
            nn.init.normal_(self.tables[name], std=self.tables[name].shape[1] ** -0.5)
        nn.init.normal_(self.weight, std=len(self.columns) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [T, D] of ids [K, T] int64; −1 is missing and reads as zeros. Errors as `triple_embedding`."""
        if self.sparse and torch.is_grad_enabled():
            self._guard_tables()
        tables = list(self.tables.values())
        return triple_embedding(ids, tables, self.columns, self.weight, self.bias, sparse=self.sparse)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Rows of one table [*ids.shape, d], ids int64 from 0: for a tied output layer; sparse as the module is."""
        return nn.functional.embedding(ids, self.tables[name], sparse=self.sparse)

    def extra_repr(self) -> str:
        sizes = ", ".join(f"{name} {list(table.shape)}" for name, table in self.tables.items())
        return f"{sizes}; columns={list(self.column_names)}, width={self.width}, sparse={self.sparse}"

    def _guard_tables(self) -> None:
        """Hooks that refuse a dense gradient, on the parameters as they now are: a copy or a load replaces them."""
        for name, table in self.tables.items():
            if table.requires_grad and self._guards.get(name, (None,))[0] is not table:
                hook = table.register_post_accumulate_grad_hook(_RefuseDense(name))
                self._guards[name] = (table, hook)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_guards": {}}


class _RefuseDense:
    """Raises where the gradient of a table has become dense."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, table: Tensor) -> None:
        if table.grad is not None and table.grad.layout is torch.strided:
            raise ValueError(
                f"TripleEmbedding(sparse=True): the gradient of table {self.name!r} is dense, expected row-sparse: the "
                "table is also used as a whole; read its rows with rows(), or set sparse=False"
            )
