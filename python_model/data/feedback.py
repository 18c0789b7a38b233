"""What users say or do about an event: the components of feedback, and which events are positive ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from python_model.io.settings import Between, OneOf

KINDS = ("binary", "categorical")
MAX_CLASSES = 2**15 - 1


@dataclass(frozen=True)
class FeedbackComponent:
    """One component of feedback; its labels are 0 to classes − 1, −1 where it was not observed.

    kind: "binary" (it happened or not: two classes, one logit, sigmoid) or "categorical" (one logit a class, softmax).
    """

    kind: Annotated[str, OneOf(KINDS)]
    classes: Annotated[int, Between(2, MAX_CLASSES)]

    def __post_init__(self) -> None:
        if self.kind == "binary" and self.classes != 2:
            raise ValueError(f"a binary component has 2 classes, found {self.classes}")

    @property
    def is_binary(self) -> bool:
        """Whether it has one logit for two classes."""
        return self.kind == "binary"

    @property
    def logits(self) -> int:
        """Number of logits that predict it: the `classes` of the op feedback_loss."""
        return 1 if self.is_binary else self.classes


BINARY = FeedbackComponent("binary", 2)


def categorical(classes: int) -> FeedbackComponent:
    """A component with a logit for each class; ValueError below two of them."""
    return FeedbackComponent("categorical", classes)


def components(given: Any) -> Any:
    """Feedback components by name; also reads the number of logits that earlier versions wrote (1: binary).

    Any other value is returned unchanged; the caller's checks refuse it.
    """
    if not isinstance(given, Mapping):
        return given
    return {name: _component(value) for name, value in given.items()}


def _component(value: Any) -> Any:
    if type(value) is not int or not 1 <= value <= MAX_CLASSES:
        return value
    return BINARY if value == 1 else categorical(value)


@dataclass(frozen=True)
class PositiveEvents:
    """The events whose label in a feedback component is at least a threshold: the targets of a protocol."""

    feedback: str
    at_least: Annotated[int, Between(0, MAX_CLASSES - 1)]
