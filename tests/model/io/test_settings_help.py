"""`--set help`: every setting with its default, its range and a meaning, all from where they are defined."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

import pytest

from python_model.config import ModelConfig, TrainConfig
from python_model.io.settings import Between
from python_model.io.settings_help import asked, listing, meanings


@pytest.mark.parametrize("owner", [ModelConfig, TrainConfig])
def test_every_setting_has_a_meaning(owner: type[ModelConfig | TrainConfig]) -> None:
    assert {name for name, text in meanings(owner).items() if len(text) < 15} == set()
    lines = listing(owner).split("\n")
    assert [line.split("=")[0] for line in lines] == [field.name for field in fields(owner)]


@dataclass
class Oven:
    """An oven.

    heat: degrees; at most 250. fan, light: on or off: see there. It hums.
    dish: what is in it.

    shelf: none of the settings above it.
    """

    heat: Annotated[int, Between(20, 250)] = 180
    fan: bool = True
    light: bool = False
    dish: str | None = None
    tray: tuple[int, ...] = (1, 2)


def test_a_docstring_is_read_name_by_name() -> None:
    assert meanings(Oven) == {
        "heat": "degrees; at most 250", "fan": "on or off: see there. It hums",
        "light": "on or off: see there. It hums", "dish": "what is in it", "tray": "",
    }  # fmt: skip
    assert listing(Oven, without=("fan", "tray")).split("\n") == [
        "heat=180     degrees; at most 250 (a whole number in [20, 250])",
        "light=false  on or off: see there. It hums (true or false)",
        "dish=null    what is in it (text or null)",
    ]


def bake(dish: str, *, heat: int = 180, slow: bool) -> None:
    """Bake a dish; heat: degrees. slow: overnight."""


def test_a_functions_keywords_are_settings_too() -> None:
    assert listing(bake) == "heat=180  degrees (a whole number)\nslow      overnight (true or false)"


def test_what_asks_for_the_list() -> None:
    assert asked(["steps=3", "help"]) and not asked(["help=1"]) and not asked(None)
