"""The contents of a prepared data set: its files, its description (dataset.json) and the columns of its events."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa

from python_model.data.feedback import FeedbackComponent, PositiveEvents, components
from python_model.data.time_features import UtcOffset, require_time_features
from python_model.io.errors import DataError
from python_model.io.json_text import read_object
from python_model.io.settings import Between, checked_settings, shown

FORMAT = 1
LISTEN_PLUS_PCT = 50
"""The share of a track, in percent, from which Yambda's benchmark counts a listen as a positive one (Listen+)."""
EVENTS, ITEMS, USERS, INFO = "events.parquet", "items.parquet", "users.parquet", "dataset.json"

_UNSAID = ("dislike", "skip", "hate")
"""Components that count against an item in data sets and runs written before the field `negative` existed."""
_Rows = Annotated[int, Between(0, 2**31 - 1)]


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset.json says.

    context: name -> cardinality; feedback: name -> component; item_features: name -> cardinality.
    grades says how the grade column is defined; pair_window is the default window of pairs in seconds.
    negative: names of feedback that counts against an item; every other component counts for it.
    derived: names of context that follows from times (see `time_features`) and that a server computes; utc_offset:
    seconds by which the local time of its hour and day is ahead of UTC.
    positive: the events that are to be predicted under the protocol of the Yambda benchmark, None where no such are
    known.
    params holds the settings that made the data (for the synthetic service: all of them, the seed among them).
    fingerprint: checksum of the events, column after column; "" where it was not computed.
    """

    name: str
    source: str
    users: _Rows
    items: _Rows
    events: Annotated[int, Between(0)]
    context: Mapping[str, Annotated[int, Between(1, 2**31 - 1)]]
    feedback: Mapping[str, FeedbackComponent]
    item_features: Mapping[str, Annotated[int, Between(1, 2**31 - 1)]]
    grades: str
    pair_window: Annotated[int, Between(0)]
    has_oracle: bool = False
    negative: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    utc_offset: UtcOffset = 0
    positive: PositiveEvents | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        """ValueError where a field is of another type or out of range."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["feedback"] = components(values["feedback"])
        for name, value in checked_settings(DatasetInfo, values, INFO).items():
            object.__setattr__(self, name, value)
        if unknown := set(self.negative) - set(self.feedback):
            raise ValueError(f"negative: expected names of feedback, found {', '.join(sorted(unknown))}")
        require_time_features(self.derived, list(self.context))
        if "id" in self.item_features:
            raise ValueError("item_features: expected another name than 'id', as item_id has the original ids")
        if self.positive is not None:
            component = self.feedback.get(self.positive.feedback)
            if component is None or self.positive.at_least >= component.classes:
                found = f"{self.positive.feedback!r} of at least {self.positive.at_least}"
                raise ValueError(f"positive: expected a class of one of {', '.join(self.feedback)}, found {found}")

    @property
    def binary_feedback(self) -> tuple[str, ...]:
        """Names of the binary components."""
        return tuple(name for name, component in self.feedback.items() if component.is_binary)

    def to_json(self) -> str:
        """The text of dataset.json; ValueError where params hold what JSON does not."""
        try:
            return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ValueError(f"params: expected what JSON holds: {error}") from error

    @classmethod
    def load(cls, directory: str | Path) -> DatasetInfo:
        """Read dataset.json; DataError where it is missing, not JSON, incomplete or of another format."""
        file = Path(directory) / INFO
        raw = read_object(file, "the directory of a prepared data set (see `argus prepare`)")
        if raw.get("format") != FORMAT:
            raise DataError(file, f"expected format {FORMAT}, found {shown(raw.get('format'))}", column="format")
        known = {one.name for one in fields(cls)}
        optional = {"params", "has_oracle", "negative", "derived", "utc_offset", "positive", "fingerprint", "format"}
        for name in sorted(known - optional - raw.keys()):
            raise DataError(file, "this key is missing", column=name)
        if "negative" not in raw:
            raw["negative"] = negative_by_name(raw["feedback"])
        try:
            return cls(**{"positive": _positive_of_earlier(raw), **{key: raw[key] for key in raw if key in known}})
        except ValueError as error:
            raise DataError(file, str(error)) from error


def negative_by_name(feedback: Any) -> tuple[str, ...]:
    """Components that count against an item, for files written before the field `negative` existed."""
    return tuple(name for name in feedback if name in _UNSAID) if isinstance(feedback, Mapping) else ()


def _positive_of_earlier(raw: Mapping[str, Any]) -> PositiveEvents | None:
    """Listen+ of a Yambda data set of an earlier version, which stored only the bin edges of the listened share."""
    params = raw.get("params")
    edges = params.get("share_edges_pct") if raw.get("source") == "yambda" and isinstance(params, dict) else None
    if not isinstance(edges, list) or LISTEN_PLUS_PCT not in edges:
        return None
    return PositiveEvents("share", edges.index(LISTEN_PLUS_PCT) + 1)


class Fingerprint:
    """CRC-32 of every event column, updated chunk by chunk and independent of the chunk sizes; one string for all."""

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}

    def update(self, schema: pa.Schema, columns: Mapping[str, np.ndarray]) -> None:
        """The next rows, in the types of the schema."""
        for column in schema:
            values = np.ascontiguousarray(columns[column.name], column.type.to_pandas_dtype())
            self._columns[column.name] = zlib.crc32(values.tobytes(), self._columns.get(column.name, 0))

    def text(self) -> str:
        """Eight hexadecimal digits."""
        return f"{zlib.crc32(json.dumps(self._columns, sort_keys=True).encode()):08x}"


def event_schema(info: DatasetInfo) -> pa.Schema:
    """Arrow schema of events.parquet for a description."""
    columns = [
        ("user", pa.int32()),
        ("item", pa.int32()),
        ("time", pa.int64()),
        ("organic", pa.bool_()),
        ("grade", pa.int8()),
    ]
    columns += [(f"context_{name}", pa.int32()) for name in info.context]
    columns += [(f"feedback_{name}", pa.int16()) for name in info.feedback]
    if info.has_oracle:
        columns += [("oracle_affinity", pa.float32())]
        columns += [(f"oracle_feedback_{name}", pa.float32()) for name in info.binary_feedback]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])
