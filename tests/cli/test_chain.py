"""The whole chain as a user types it, one command in a process of its own: from prepare to evaluate and recommend."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from python_model.cli import app

SMALL = ["--set", "users=60", "--set", "events_per_user=50"]
QUICK = ["--window", "32", "--batch-events", "256", "--set", "checkpoint_every=5"]
REPOSITORY = Path(__file__).resolve().parents[2]
KEYS = ["ndcg@10", "recall@10", "pairwise_accuracy", "next_item_ne", "feedback_ne", "feedback_auc"]


def argus(*arguments: str | Path, folder: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "python_model", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == expect, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def here(*arguments: str | Path, expect: int = 0) -> Result:
    """The same in this process, where nothing depends on having one of its own."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"NO_COLOR": "1"})
    assert result.exit_code == expect, result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared data set and both stages trained on it."""
    folder = tmp_path_factory.mktemp("chain")
    here("prepare", "synthetic", "small", folder / "data", *SMALL)
    here("pretrain", folder / "data", folder / "pretrain", "--steps", "12", *QUICK)
    argus("finetune", "data", "finetune", "--from", "pretrain", "--steps", "6", *QUICK, folder=folder)
    return folder


def printed_rows(text: str) -> dict[str, list[str]]:
    """Row name -> cells of the table that a command printed."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        if line.startswith("│") and len(cells) == len(KEYS) + 1:
            rows[cells[0]] = cells[1:]
    return rows


def test_evaluate_prints_what_it_writes(folder: Path) -> None:
    runs = folder / "pretrain", folder / "finetune"
    written = "--json", folder / "table.json", "--report", folder / "report.html"
    done = here("evaluate", folder / "data", *runs, *written)
    found = json.loads((folder / "table.json").read_text())
    assert list(found["rows"]) == ["popularity", "pretrained", "finetuned", "oracle"]
    assert all(list(row) == KEYS for row in found["rows"].values())
    printed = printed_rows(done.stdout)
    assert printed == {row: [f"{value:.4f}" for value in values.values()] for row, values in found["rows"].items()}
    assert found["counts"]["events"] > 100 and found["counts"]["pairs"] > 100
    report = (folder / "report.html").read_text()
    assert "pre-training" in report and "fine-tuning" in report
    assert (
        f"<b>{max(found['rows'][row]['ndcg@10'] for row in ('popularity', 'pretrained', 'finetuned')):.4f}</b>"
        in report
    )


def test_evaluate_is_repeatable(folder: Path) -> None:
    tables = []
    for name in ("a.json", "b.json"):
        here("evaluate", folder / "data", folder / "finetune", "--max-events", "150", "--json", folder / name)
        tables.append(json.loads((folder / name).read_text()))
    assert tables[0] == tables[1]


def test_recommend_prints_the_users_items(folder: Path) -> None:
    asked = "--user", "3", "--user", "7", "--k", "4", "--json", folder / "items.json"
    done = here("recommend", folder / "data", folder / "finetune", *asked)
    users = json.loads((folder / "items.json").read_text())["users"]
    assert [user["user_id"] for user in users] == [3, 7]
    for user in users:
        assert len(user["items"]) == 4
        scores = [item["score"] for item in user["items"]]
        assert scores == sorted(scores, reverse=True)
        for item in user["items"]:
            assert re.search(rf"│\s*{item['item_id']}\s*│\s*{item['score']:.3f}", done.stdout)


@pytest.mark.slow
def test_ctrl_c_saves_the_step_it_was_in_and_says_how_to_resume(folder: Path) -> None:
    steps = ["--steps", "400", *QUICK]
    command = [sys.executable, "-m", "python_model", "pretrain", "data", "stopped", *steps]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    log = folder / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and log.read_text().count("\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    stopped = re.search(r"saved after step (\d+). Resume with: argus pretrain data stopped --resume", message)
    assert stopped is not None, message
    step = int(stopped.group(1))
    assert 3 <= step < 400
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    # Step 0 is the validation before the first.
    assert [entry["step"] for entry in logged] == list(range(step + 1))
    refused = here("pretrain", folder / "data", folder / "stopped", "--resume", "--batch-events", "999", expect=2)
    assert re.search(r"batch_events was \d+, now 999", refused.stderr)


@pytest.mark.slow
def test_killing_and_resuming_changes_no_loss(folder: Path) -> None:
    steps = ["--steps", "30", *QUICK]
    here("pretrain", folder / "data", folder / "whole", *steps)
    command = [sys.executable, "-m", "python_model", "pretrain", "data", "killed", *steps]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    log = folder / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and log.read_text().count("\n") >= 8):
        time.sleep(0.01)
    process.kill()
    process.wait()
    here("pretrain", folder / "data", folder / "killed", "--resume")
    losses = {}
    for run in ("whole", "killed"):
        entries = [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        trained = [entry for entry in entries if "loss" in entry]
        losses[run] = [(entry["step"], entry["loss"], entry["next_item"]) for entry in trained]
    assert losses["whole"] == losses["killed"]
    assert len(losses["whole"]) == 30


def test_the_python_of_the_tutorial_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block in turn, on the small service in place of MovieLens."""
    (folder / "data" / "ml").symlink_to(folder / "data")
    (folder / "runs").mkdir()
    (folder / "runs" / "ml-finetune").symlink_to(folder / "finetune")
    monkeypatch.chdir(folder)
    text = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert (folder / "data" / "mine" / "dataset.json").is_file()


def test_help_is_quick() -> None:
    """Processor time, which a busy machine does not stretch as it does the clock's."""
    times: list[float] = []
    while len(times) < 3 and min(times, default=1.0) >= 0.5:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "python_model", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5, f"argus --help took {min(times):.2f} s at best, expected below 0.5 s"
