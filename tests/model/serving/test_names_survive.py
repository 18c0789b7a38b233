"""Titles and labels from a log of one's own through shards, recommendations, an export, candidates and a server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from python_model.config import FeatureSpec
from python_model.data.description import DatasetInfo
from python_model.data.feedback import BINARY
from python_model.data.names import LABELS, Names
from python_model.data.readers.table.reader import from_frame
from python_model.data.schema import DatasetWriter, load_dataset, validate
from python_model.data.shards import shard_dataset
from python_model.evaluation.recommend import recommend
from python_model.io.errors import DataError
from python_model.reporting import console
from python_model.serving.answering import answer
from python_model.serving.bundle import Export
from python_model.serving.candidates import search_of, write_candidates
from python_model.serving.export import export
from python_model.serving.http import schema
from python_model.serving.store import SessionStore
from tests.model.serving.conftest import random_model, save_run

TITLES = {"tea": "Green tea", "cup": 'Cup, "blue"', "pot": "", "mate": "Mate"}
KINDS = {"tea": "drink", "cup": "thing", "pot": "", "mate": "drink"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, its shards, and the export of an untrained run on it."""
    folder = tmp_path_factory.mktemp("names")
    row = np.arange(24)
    # The first user has two of the items, the others all.
    items_of = [list(TITLES)[number % (2 if number < 8 else 4)] for number in row.tolist()]
    log = pa.table({
        "user": [f"u{number}" for number in row // 8], "item": items_of,
        "time": 1_700_000_000 + row, "device": [("phone", "tv")[number % 2] for number in row],
        "stars": row % 3 + 3, "ignored": row % 2,
    })  # fmt: skip
    items = pa.table({"item": list(TITLES), "name": list(TITLES.values()), "kind": list(KINDS.values())})
    from_frame(
        log, folder / "data", items=items, title="name", item_features={"kind": "kind"}, context={"device": "device"},
        feedback={"stars": "stars:classes", "ignored": "ignored"}, negative=("ignored",),
    )  # fmt: skip
    shard_dataset(folder / "data", folder / "shards", 2)
    dataset = load_dataset(folder / "data")
    run = save_run(folder / "run", random_model(dataset, "finetune"), dataset, "finetune")
    export(dataset, run, folder / "export")
    return folder


def title_of(item_id: str) -> str | None:
    return TITLES[item_id] or None


@pytest.mark.parametrize("name", ["data", "shards"])
def test_names_of_a_data_set(folder: Path, name: str) -> None:
    dataset = load_dataset(folder / name)
    ids = dataset.item_column("item_id").tolist()
    assert {one: dataset.names.title(item) for item, one in enumerate(ids)} == {one: title_of(one) for one in ids}
    assert [dataset.names.label("feedback_stars", number) for number in (-1, 0, 2, 7)] == ["–", "3", "5", "7"]
    assert dataset.names.number("context_device", "tv") == 1


def test_recommendations_can_be_read(folder: Path) -> None:
    dataset = load_dataset(folder / "data")
    [found] = recommend(random_model(dataset, "finetune"), dataset, np.array([0]), k=4, window=8)
    for item in found.items:
        assert (item.title, item.labels["kind"]) == (title_of(item.item_id), KINDS[item.item_id] or "–")
    table = console.recommendations_table(found)
    assert [str(column.header) for column in table.columns] == ["", "item", "score", "title", "kind", "why"]
    assert {item.item_id: item.why for item in found.items} == {
        "tea": "in the history 4 times", "cup": "in the history 4 times", "pot": "new to this user",
        "mate": "kind drink in the history 4 times",
    }  # fmt: skip


def test_names_of_an_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Export.open(folder / "export")
    search = search_of(found, exact=True)
    write_candidates(folder / "candidates.parquet", found, np.arange(3), 4, search)
    for row in pq.read_table(folder / "candidates.parquet").to_pylist():
        assert row["title"] == TITLES[row["item_id"]]
    console.print_candidates(found, np.array([0]), found.item_ids.require(["tea", "pot"])[None], np.zeros((1, 2)))
    assert "│ tea  │ 0.000 │ Green tea │" in capsys.readouterr().out


def test_a_server_answers_with_titles_and_takes_labels(folder: Path) -> None:
    with SessionStore.open(folder / "export", resident=2) as store:
        event = {"user": "u0", "item": "tea", "time": 1_750_000_000, "context": {"device": "tv"},
                 "feedback": {"stars": "4"}, "k": 4}  # fmt: skip
        said = answer(store, json.dumps(event))
        assert {one["item"]: one.get("title") for one in said["items"]} == {one: title_of(one) for one in TITLES}
        row = store.memory.admit(["u0"])[0].log.row(said["event"])
        assert (row.context[-1], row.feedback) == (1, (1, -1))
        wrong = answer(store, json.dumps(event | {"context": {"device": "radio"}}))
        assert wrong == {"error": "context 'device' is 'radio', expected one of \"phone\", \"tv\", or a number to 1"}
        wrong = answer(store, json.dumps(event | {"context": {"device": 7}}))
        assert wrong == {
            "error": 'context \'device\' is 7, expected a whole number in [-1, 1], or a label: "phone", "tv"'
        }
        before = store.memory.admit(["u0"])[0].log.total
        for number in (0, 2, 4, 5, 4.0, True):
            wrong = answer(store, json.dumps(event | {"feedback": {"stars": number}}))
            assert re.fullmatch(
                r"feedback 'stars' is \w+(\.0)?, expected −1 or a label as text, since labels are numbers here: "
                r"(\"\d\"(, |$))+",
                wrong["error"],
            ), wrong
        wrong = answer(store, json.dumps(event | {"feedback": {"stars": "9"}}))
        assert wrong == {"error": 'feedback \'stars\' is \'9\', expected one of "3", "4", "5"'}
        assert store.memory.admit(["u0"])[0].log.total == before
        assert "error" not in answer(store, json.dumps(event | {"feedback": {"stars": -1}, "context": {"device": 0}}))
        numbers = schema.keys(store.reader)["feedback"]["properties"]["stars"]
        assert numbers == {"anyOf": [{"const": -1}, {"enum": ["3", "4", "5"]}]}


@pytest.mark.parametrize(
    ("labels", "mistakable"),
    [
        (["phone", "tv"], False), (["0", "1", "2"], False), (["1", "2"], True), (["a", "3"], True),
        (["0.0", "1.0"], False), (["nan", "inf"], False), (["-1"], True), ([], False),
    ],
)  # fmt: skip
def test_labels_that_read_as_other_numbers(labels: list[str], mistakable: bool) -> None:
    assert Names(labels={"column": dict(enumerate(labels))}).mistakable("column") == mistakable


def test_damaged_labels_are_refused(folder: Path, tmp_path: Path) -> None:
    shard_dataset(folder / "data", tmp_path / "copy", 1)
    pq.write_table(pa.table({"column": ["item_kind"], "number": [0], "label": [1]}), tmp_path / "copy" / LABELS)
    with pytest.raises(DataError, match=r"labels.parquet, column 'number': expected type int32"):
        validate(tmp_path / "copy")


def test_what_was_written_before_reads_as_it_did(tmp_path: Path) -> None:
    row = np.arange(4)
    with DatasetWriter(
        tmp_path / "data", name="old", source="test", context={},
        feedback=dict.fromkeys(("like", "skip", "hate"), BINARY), item_features={}, grades="", pair_window=60,
    ) as writer:  # fmt: skip
        columns = {f"feedback_{name}": row % 2 for name in ("like", "skip", "hate")}
        writer.write_events(
            {"user": row // 2, "item": row % 2, "time": row, "organic": row < 0, "grade": row, **columns}
        )
        writer.write_users([1, 2])
        writer.write_items([1, 2], {})
    assert DatasetInfo.load(tmp_path / "data").negative == ()
    file = tmp_path / "data" / "dataset.json"
    said = json.loads(file.read_text())
    del said["negative"]
    file.write_text(json.dumps(said))
    assert validate(tmp_path / "data").negative == ("skip", "hate")
    dataset = load_dataset(tmp_path / "data")
    assert (dataset.names.titles, dict(dataset.names.labels)) == (None, {})
    spec = json.loads(FeatureSpec.of(dataset.info).to_json())
    assert FeatureSpec.from_dict(spec) == FeatureSpec.of(dataset.info)
    del spec["negative"]
    assert FeatureSpec.from_dict(spec) == FeatureSpec.of(dataset.info)


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"labels of context_device: expected at most 2, found 3"):
        _labelled(tmp_path / "data", {"context_device": ["a", "b", "c"]})
    with pytest.raises(ValueError, match=r"labels: expected one of context_device, feedback_like, found 'device'"):
        _labelled(tmp_path / "data", {"device": ["a"]})


def _labelled(out: Path, labels: dict[str, list[str]]) -> None:
    with DatasetWriter(
        out, name="x", source="test", context={"device": 2}, feedback={"like": BINARY}, item_features={}, grades="",
        pair_window=60,
    ) as writer:  # fmt: skip
        writer.write_labels(labels)
