"""Training batches from shards, in bounded memory, shuffled, resumable in the middle of a shard.

A step has `of` batches (`TrainConfig.batches_per_step`); batch n comes from lane n. In an epoch the shards are
permuted by (seed, epoch) and dealt to the lanes in turn. A lane reads its shards one after the other, in blocks of row
groups permuted by (seed, epoch, shard), and cuts and shuffles each block's users into batches (`BatchPlan`). Each lane
advances from epoch to epoch on its own. The output of a lane depends only on the settings and its position, and ranks
take whole lanes, so the number of ranks changes no batch: in every epoch each user is read once by one lane, wherever a
run was resumed. The last batch of a block may be less than full; BLOCK_BATCHES bounds this cost.

Memory: one block per lane, which is BLOCK_BATCHES batches, or one row group where that is more (a row group holds
`shards.ROW_GROUP` events, or one user).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from python_model.config import TrainConfig
from python_model.data.batches import NOBODY, BatchPlan, JaggedBatch, Step, empty_batch
from python_model.data.columns import require_range
from python_model.data.schema import Dataset
from python_model.data.shards import Manifest, Shard
from python_model.data.splits import YAMBDA_GAP, YAMBDA_SPAN, events_to_predict, targets_of
from python_model.data.stochastic_length import StochasticLength
from python_model.io.errors import DataError
from python_model.io.files import open_parquet, reading_parquet, require_values

BLOCK_BATCHES = 16
HELD_OUT = 0.15
"""Share of the events in the validation and test parts of the temporal split."""


@dataclass(frozen=True)
class Place:
    """The position of a lane: epoch, shard, block and batches taken from it, each counted in the lane's own order."""

    epoch: int = 0
    shard: int = 0
    block: int = 0
    batch: int = 0


class Block(Dataset):
    """Some row groups of a shard as a data set; its user u is user `first_user` + u of the whole data set."""

    def __init__(self, whole: Dataset, shard: Shard, groups: Sequence[int]) -> None:
        super().__init__(whole.path)
        file = whole.path / shard.file
        table, self.rows = _read(file, shard, groups)
        arrays = {name: table.column(name).to_numpy() for name in table.column_names}
        for name, values in arrays.items():
            whole.require_in_range(name, values, file, self.rows - shard.first_row + 1)
        _require_order(arrays["user"], arrays["time"], shard, file, self.rows - shard.first_row + 1)
        self.users, local = np.unique(arrays["user"], return_inverse=True)
        self._columns = {**arrays, "user": local.astype(np.int32)}
        self.info = replace(whole.info, users=len(self.users), events=table.num_rows)

    def column(self, name: str) -> np.ndarray:
        """One column of the block's events."""
        return self._columns[name]


class ShardStream:
    """The batches of a data set in shards; a `BatchSource`."""

    def __init__(self, dataset: Dataset, manifest: Manifest, config: TrainConfig) -> None:
        self.dataset, self.manifest, self.config = dataset, manifest, config
        self._batch_events = config.batch_events
        self._shortening = StochasticLength.of(config)
        self._block_events = BLOCK_BATCHES * config.batch_events
        users = dataset.info.users
        # The same users as in memory, see `train.training_rows`.
        share = config.train_share
        order = np.random.default_rng(0).permutation(users) if share < 1 else None
        self._kept = None if order is None else order < max(1, round(share * users))

    def start(self) -> dict[str, Any]:
        """See `BatchSource`."""
        return {"lanes": {}}

    def require(self, of: int) -> None:
        """See `BatchSource`."""
        if self.config.balanced:
            raise ValueError(
                f"balanced is true, expected false for {self.dataset.path}, which is in shards: the batches of a step "
                "come from other files, which other ranks read"
            )
        if self.config.train_days is not None:
            raise ValueError(
                f"train_days is {self.config.train_days}, expected null for {self.dataset.path}, which is in shards"
            )
        if of > len(self.manifest.shards):
            raise ValueError(
                f"batches_per_step is {of}, expected at most the {len(self.manifest.shards)} shards of "
                f"{self.dataset.path}: each batch of a step comes from another shard"
            )

    def epoch_batches(self) -> int:
        """See `BatchSource`; the last batches of blocks, which may be less than full, do not count."""
        held_out = HELD_OUT if self.config.protocol == "temporal" else 0.0
        events = self.dataset.info.events * (1 - held_out) * self.config.train_share * self._kept_share()
        return max(1, round(events / self._batch_events))

    def walk(self, place: Mapping[str, Any], numbers: Sequence[int], of: int) -> Iterator[Step]:
        """See `BatchSource`; the position contains that of every lane that this rank reads."""
        self.require(of)
        lanes = {number: self._lane(number, of, _place(place, number)) for number in numbers if number < of}
        nothing = empty_batch(self.dataset.info)
        while True:
            taken = {number: next(lane) for number, lane in lanes.items()}
            places = {str(number): asdict(behind) for number, (_, behind) in taken.items()}
            yield Step([taken[number][0] if number in taken else nothing for number in numbers], {"lanes": places})

    def merge(self, places: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `BatchSource`: each rank knows the positions of its lanes."""
        return {"lanes": {number: lane for place in places for number, lane in place["lanes"].items()}}

    def training_items(self) -> Iterator[np.ndarray]:
        """The items of the training events that are next items to predict, int64, a block at a time, in file order."""
        for number, shard in enumerate(self.manifest.shards):
            for groups in self._blocks(shard, number, 0):
                block = Block(self.dataset, shard, groups)
                rows = self._training_rows(block) & events_to_predict(block, self.config.protocol)
                yield block.item[rows].astype(np.int64)

    def _lane(self, number: int, of: int, place: Place) -> Iterator[tuple[JaggedBatch, Place]]:
        """The batches of a lane, each with the position after it.

        A shard without training events is skipped; ValueError where every shard is one.
        """
        barren: set[int] = set()
        while True:
            order = np.random.default_rng([self.config.seed, place.epoch]).permutation(len(self.manifest.shards))
            mine = order[number::of]
            for position in range(place.shard, len(mine)):
                shard = int(mine[position])
                if shard not in barren:
                    begin = replace(place, shard=position)
                    steps = self._shard(shard, begin)
                    first = next(steps, None)
                    if first is not None:
                        yield first
                        yield from steps
                    elif begin == Place(place.epoch, position):
                        barren.add(shard)
                place = Place(place.epoch, position + 1)
            if len(barren) == len(self.manifest.shards):
                raise ValueError(f"{self.dataset.path}, shards {sorted(barren)}: {NOBODY}")
            place = Place(place.epoch + 1)

    def _shard(self, number: int, place: Place) -> Iterator[tuple[JaggedBatch, Place]]:
        """The batches of a shard from a position on."""
        shard = self.manifest.shards[number]
        blocks = self._blocks(shard, number, place.epoch)
        for index in range(place.block, len(blocks)):
            block = Block(self.dataset, shard, blocks[index])
            first = place.batch if index == place.block else 0
            for taken, batch in enumerate(self._batches(block, [place.epoch, number, index], first), first + 1):
                yield batch, replace(place, block=index, batch=taken)

    def _kept_share(self) -> float:
        """The share of the events that stochastic length keeps, of the windows in the first row group."""
        if self._shortening is None:
            return 1.0
        shard, window = self.manifest.shards[0], self.config.window
        table, _ = _read(self.dataset.path / shard.file, shard, [0])
        counts = np.bincount(table.column("user").to_numpy() - shard.first_user)
        lengths = np.concatenate([np.full(int((counts // window).sum()), window), counts % window])
        return float(self._shortening.expected(lengths).sum() / lengths.sum())

    def _blocks(self, shard: Shard, number: int, epoch: int) -> list[list[int]]:
        """The row groups of a shard in the epoch's order, in lists of BLOCK_BATCHES batches of events or more."""
        metadata = open_parquet(self.dataset.path / shard.file).metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        if sum(sizes) != shard.events:
            raise DataError(self.dataset.path / shard.file, f"expected {shard.events} rows, found {sum(sizes)}")
        blocks: list[list[int]] = [[]]
        held = 0
        for group in np.random.default_rng([self.config.seed, epoch, number]).permutation(len(sizes)).tolist():
            if held >= self._block_events:
                blocks.append([])
                held = 0
            blocks[-1].append(group)
            held += sizes[group]
        return blocks

    def _batches(self, block: Block, words: Sequence[int], first: int) -> Iterator[JaggedBatch]:
        train = self._training_rows(block)
        owned = np.bincount(block.user[train], minlength=block.info.users)
        if owned.max(initial=0) < 2:
            return
        seed = int(np.random.SeedSequence([self.config.seed, *words]).generate_state(1, np.uint32)[0])
        plan = BatchPlan(
            block, self.config.batch_events, self.config.window, seed, train=train, shortening=self._shortening,
            shuffled_ties=self.config.shuffle_ties,
        )  # fmt: skip
        for batch in plan.batches(0, first):
            users, rows = (values.numpy() for values in (batch.users, batch.rows))
            origin = block.users[users].astype(np.int64), block.rows[rows]
            yield replace(batch, users=torch.from_numpy(origin[0]), rows=torch.from_numpy(origin[1]))

    def _training_rows(self, block: Block) -> np.ndarray:
        """Which events of a block are trained on, bool [events], under the run's protocol."""
        protocol = self.config.protocol
        if protocol == "leave-last-out":
            lengths = np.diff(block.offsets)
            ends = block.offsets[1:] - np.where(lengths >= 3, 2, 0)
            rows = np.arange(len(block)) < ends[block.user]
        elif protocol == "yambda":
            targets_of(block, protocol)
            rows = block.time < self.manifest.last_time - 2 * YAMBDA_SPAN - 2 * YAMBDA_GAP
        elif protocol == "temporal":
            rows = block.time < self.manifest.temporal_start
        else:
            rows = np.ones(len(block), bool)
        return rows if self._kept is None else rows & self._kept[block.users][block.user]


def _place(place: Mapping[str, Any], number: int) -> Place:
    known = place["lanes"].get(str(number))
    return Place() if known is None else Place(**known)


def _require_order(user: np.ndarray, time: np.ndarray, shard: Shard, file: Path, rows: np.ndarray) -> None:
    """DataError where rows are not those of the shard's users in order, each user's by time."""
    require_range(user, shard.first_user, shard.first_user + shard.users - 1, file, "user", rows=rows)
    step = np.diff(user, prepend=user[:1])
    backwards = (np.diff(time, prepend=time[:1]) < 0) & (step == 0)
    for name, values, bad, expected in (("user", user, step < 0, "users sorted"),
                                        ("time", time, backwards, "times sorted within a user")):  # fmt: skip
        if bad.any():
            at = int(np.argmax(bad))
            raise DataError(file, f"expected {expected}, found {values[at]}", column=name, row=int(rows[at]))


def _read(file: Path, shard: Shard, groups: Sequence[int]) -> tuple[pa.Table, np.ndarray]:
    """Row groups of a shard in ascending order, and their row numbers in the whole data set, int64."""
    parquet = open_parquet(file)
    sizes = [parquet.metadata.row_group(index).num_rows for index in range(parquet.metadata.num_row_groups)]
    begins = np.concatenate([[0], np.cumsum(sizes)])
    chosen = sorted(groups)
    with reading_parquet(file):
        table = parquet.read_row_groups(chosen)
    rows = np.concatenate([np.arange(begins[index], begins[index + 1]) for index in chosen])
    for name in table.column_names:
        require_values(file, name, table.column(name), rows=rows + 1)
    return table, shard.first_row + rows
