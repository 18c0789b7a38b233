"""The options of `argus prepare table`: the meaning of the columns of the user's own log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

_PANEL = "A log of one's own (table)"
_SPELLINGS = {"item_id": "--item-id", "item_features": "--item-feature"}
_PAIRS = ("feedback", "context", "item_features")


def _option(metavar: str | None, meaning: str) -> Any:
    return typer.Option(metavar=metavar, rich_help_panel=_PANEL, help=meaning, show_default=False)


MappingFile = Annotated[
    Path | None, _option("FILE", "These options as a TOML file, such as the mapping.toml that OUT then has.")
]
User = Annotated[str | None, _option("COLUMN", "Who; `user` by default.")]
Item = Annotated[str | None, _option("COLUMN", "With what; `item` by default.")]
Time = Annotated[str | None, _option("COLUMN", "When: seconds or finer since 1970, or ISO 8601; `time` by default.")]
Unit = Annotated[
    str | None, _option("UNIT", "Of times that are numbers: seconds, milliseconds, …; found out by default.")
]
Feedback = Annotated[
    list[str] | None,
    _option("NAME=COLUMN[:KIND]", "What the user did, as bool (default), classes, or bins=0.2,0.8; may be repeated."),
]
Negative = Annotated[list[str] | None, _option("NAME", "Feedback that counts against an item; may be repeated.")]
Grade = Annotated[
    str | None, _option("COLUMN|NAME", "What orders impressions: whole numbers, or feedback; made of all by default.")
]
Organic = Annotated[str | None, _option("COLUMN", "True where the user chose the item and no recommender did.")]
Context = Annotated[
    list[str] | None,
    _option("NAME=COLUMN", "A category known before the item, such as the device; may be repeated."),
]
Items = Annotated[str | None, _option("FILE", "A file with one row an item.")]
ItemId = Annotated[str | None, _option("COLUMN", "Its column of ids; that of --item by default.")]
Title = Annotated[str | None, _option("COLUMN", "Its column of titles.")]
ItemFeature = Annotated[
    list[str] | None,
    _option("NAME=COLUMN[:KIND]", "category (default), several=3, quantiles=10, or bins=5,20; may be repeated."),
]
Missing = Annotated[str | None, _option("refuse|drop", "Rows without user, item or time; refuse by default.")]
Duplicates = Annotated[str | None, _option("keep|drop", "Rows that are there twice; keep by default.")]


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as settings of a `TableMapping`."""
    found = {name: value for name, value in options.items() if value is not None}
    for name in _PAIRS:
        if name in found:
            found[name] = _pairs(spelling(name), found[name])
    if "negative" in found:
        found["negative"] = tuple(found["negative"])
    return found


def spelling(name: str) -> str:
    """How the option of a setting is written."""
    return _SPELLINGS.get(name, f"--{name}")


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=COLUMN texts as a mapping; NAME alone, or NAME:KIND, is the column of that name."""
    out: dict[str, str] = {}
    for text in texts:
        name, equals, column = text.partition("=")
        if not equals or ":" in name:
            name, column = text.partition(":")[0], text
        if name in out:
            raise ValueError(f"{option} {name}: expected once, found again with {text!r}")
        out[name] = column
    return out
