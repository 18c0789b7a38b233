"""A browser talks to `argus serve --http`: an event, recommendations, scores, a refusal, the counts of all that."""

from __future__ import annotations

from pathlib import Path

import pytest

from python_model.serving.bundle import Export
from tests.browser import Page, needs_chromium
from tests.model.serving.http_process import serving

pytestmark = [pytest.mark.slow, needs_chromium]

ASK = """
(async () => {
  const ask = async (path, body) => {
    const answer = await fetch(path, body && {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
    const text = await answer.text();
    return [answer.status, answer.headers.get("content-type").startsWith("application/json") ? JSON.parse(text) : text];
  };
  const openapi = (await ask("/openapi.json"))[1];
  return {
    health: await ask("/health"),
    event: await ask("/events", { user: "visitor", item: 3, time: 1700000000 }),
    recommended: await ask("/recommend", { user: "visitor", k: 4 }),
    scored: await ask("/score", { user: "visitor", items: [3, 5] }),
    refused: await ask("/events", { user: "visitor", item: 3, time: "yesterday" }),
    unknown: await ask("/nowhere"),
    documented: Object.keys(openapi.paths).sort(),
    metrics: (await ask("/metrics"))[1],
  };
})()
"""


def test_a_page_of_the_service_asks_and_is_answered(exported: Export, tmp_path: Path) -> None:
    with (
        serving(exported.path, "--state", str(tmp_path / "sessions"), "--max-events", "128") as server,
        Page(f"http://127.0.0.1:{server.port}/health", tmp_path / "profile") as page,
    ):
        assert page.run("document.body.textContent").startswith('{"live":')
        found = page.run(ASK)
    assert found["health"] == [200, {"live": True, "ready": True}]
    assert found["event"] == [200, {"user": "visitor", "event": 0}]
    status, said = found["recommended"]
    assert status == 200 and len({one["item"] for one in said["items"]}) == 4, said
    status, said = found["scored"]
    assert status == 200 and [one["item"] for one in said["scores"]] == [3, 5], said
    status, said = found["refused"]
    assert status == 422 and "time" in said["error"], said
    assert found["unknown"][0] == 404
    assert {"/events", "/recommend", "/score", "/health", "/metrics"} <= set(found["documented"])
    assert 'path="/events"' in found["metrics"]
