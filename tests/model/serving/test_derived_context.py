"""A server computes hour, day of week and gap as `argus prepare` did, and a request may still give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from python_model.data.readers.table.reader import from_frame
from python_model.data.schema import Dataset, load_dataset
from python_model.io.errors import DataError
from python_model.io.integrity import seal
from python_model.serving.answering import answer
from python_model.serving.bundle import INFO, Export
from python_model.serving.export import export
from python_model.serving.store import SessionStore
from tests.model.serving.conftest import assert_close, random_model, save_run

TIME = 1_700_000_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Export]:
    """A log of one's own, whose context is a device, the hour, the day and the gap."""
    pandas = pytest.importorskip("pandas")
    folder, random = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    user, steps = np.repeat(np.arange(6), 30), 10 ** random.uniform(0, 6.5, 180)
    frame = pandas.DataFrame({
        "user": user, "item": random.integers(0, 9, 180), "time": TIME + np.cumsum(steps).astype(np.int64),
        "device": random.choice(["phone", "tablet"], 180),
    })  # fmt: skip
    from_frame(frame, folder / "data", context={"device": "device"})
    dataset = load_dataset(folder / "data")
    run = save_run(folder / "run", random_model(dataset, "pretrain"), dataset, "pretrain")
    export(dataset, run, folder / "export", best=0)
    return dataset, Export.open(folder / "export")


def test_events_get_what_prepare_computed(shop: tuple[Dataset, Export]) -> None:
    dataset, exported = shop
    assert exported.info.derived == ("hour", "day_of_week", "gap")
    with SessionStore.open(exported, resident=8, max_events=250) as store:
        for user in range(6):
            for row in range(30 * user, 30 * user + 30):
                item = int(dataset.item_column("item_id")[dataset.item[row]])
                device = int(dataset.context("device")[row])
                line = {"user": f"copy of {user}", "item": item, "time": int(dataset.time[row])}
                assert "event" in answer(store, json.dumps({**line, "context": {"device": device}}))
            found = store._log(f"copy of {user}").columns()["context"]
            rows = slice(30 * user, 30 * user + 30)
            expected = np.stack([dataset.context(name)[rows] for name in dataset.info.context], 1)
            np.testing.assert_array_equal(found, expected)


def test_a_request_may_give_them_and_a_later_one_has_its_own(shop: tuple[Dataset, Export]) -> None:
    _, exported = shop
    names = list(exported.model().features.context)
    with SessionStore.open(exported, resident=8, max_events=250) as store:
        answer(store, json.dumps({"user": "u", "item": 1, "time": TIME, "context": {"hour": 3, "device": "tablet"}}))
        [row] = store._log("u").columns()["context"].tolist()
        tablet = store.reader.values("context", {"device": "tablet"})[names.index("device")]
        given = {"hour": 3, "device": tablet}
        assert dict(zip(names, row, strict=True)) == {"day_of_week": 1, "gap": -1, **given}

        def query(**asked: Any) -> Any:
            return np.float64(answer(store, json.dumps({"user": "u", "vectors": True, **asked}))["query"])

        later = TIME + 90_000
        by_hand = {"hour": later // 3600 % 24, "day_of_week": 2, "gap": 6, "device": tablet}
        assert_close(query(now=later), query(now=later, context=by_hand))
        assert_close(query(now=later), query(now=later, context={"device": tablet}))
        assert np.abs(query(now=later) - query(now=later, context={**by_hand, "hour": 9})).max() > 1e-6
        # Without a later moment they are those of the newest event.
        assert_close(query(), query(context={"device": tablet}))
        assert_close(query(), query(now=TIME - 50))


def test_an_export_of_an_earlier_version_derives_nothing(shop: tuple[Dataset, Export], tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(shop[1].path, tmp_path / "export")
    said = json.loads((folder / INFO).read_text())
    for derived, sentence in ((["hours"], "derived: expected names of"), ("hour", "expected a list of texts")):
        (folder / INFO).write_text(json.dumps({**said, "derived": derived}))
        with pytest.raises(DataError, match=sentence):
            Export.open(folder)
    (folder / INFO).write_text(json.dumps({name: said[name] for name in said if name not in ("derived", "utc_offset")}))
    seal(folder)
    with SessionStore.open(Export.open(folder), resident=8, max_events=250) as store:
        answer(store, json.dumps({"user": "u", "item": 1, "time": TIME}))
        assert store._log("u").columns()["context"].tolist() == [[-1] * 4]
