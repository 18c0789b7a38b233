"""Sessions of models with the HSTU encoder: they read states that do not know the next event, as export does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from python_model.data.schema import Dataset
from python_model.evaluation.recommend import append_next_event, recommend
from python_model.serving import towers
from python_model.serving.bundle import Export
from python_model.serving.events import jagged
from python_model.serving.export import export
from python_model.serving.store import SessionStore
from tests.model.serving.conftest import WINDOW, assert_close
from tests.model.serving.test_sessions import events_of


def exported_beside_sessions(service: Dataset, run: Path, out: Path) -> tuple[Export, SessionStore]:
    """The export of a run and sessions over it, whose vectors are those exported."""
    export(service, run, out, best=5)
    found = Export.open(out)
    store = SessionStore.open(found, resident=3, max_events=WINDOW, page_size=16)
    for user in range(6):
        assert_close(store.session(found.user_ids.ids[user]).vector(), found.user_vectors()[user])
    return found, store


def test_sessions_of_an_hstu_model_are_what_is_exported_and_scored(
    service: Dataset, hstu: Path, tmp_path: Path
) -> None:
    """Both read states that do not know the next event; sessions are saved, replayed and amended as any other's."""
    found, _ = exported_beside_sessions(service, hstu, tmp_path / "out")
    store = SessionStore(found.model(), found.item_ids, folder=tmp_path / "s", resident=1, max_events=128, page_size=4)
    events = events_of(service, 3)[:10]
    for number, event in enumerate(events):
        store.session("somebody").add(event)
        if number % 4 == 3:
            store.session("somebody else").add(event)
    reading = store.session("somebody").amend(7, dict(events[7].feedback))
    log = store.memory.residents["somebody"].log
    batch = jagged(log.columns(), np.array([0, len(log)], np.int32), torch.device("cpu"))
    with torch.inference_mode():
        asked = append_next_event(batch, towers.delay_of(store.model, "pair"))
        assert_close(reading.user_vector, store.model.user_vectors(asked)[-1].numpy())
        queries = store.model.queries(store.model.read_lagged(append_next_event(batch, 0), lag=0))
        assert_close(reading.query, (store.model.temperature * queries)[-1].numpy())
    store.close()


def test_sessions_of_a_pretrained_hstu_model_are_what_is_exported_and_recommended(
    service: Dataset, pretrained_hstu: Path, tmp_path: Path
) -> None:
    """Its states are those that no later event has touched, in one pass too."""
    found, store = exported_beside_sessions(service, pretrained_hstu, tmp_path / "out")
    for user in range(6):
        session = store.session(found.user_ids.ids[user])
        [one] = recommend(found.model(), service, np.array([user]), k=5, window=WINDOW)
        assert [item.item_id for item in session.top_k(5)] == [item.item_id for item in one.items]
