"""What goes on where it was stopped goes on with the same input: the same content, whatever its name and counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.config import TrainConfig
from python_model.data.identity import identity_of
from python_model.data.schema import EVENTS, ITEMS, USERS, Dataset, load_dataset
from python_model.data.shards import SHARDS, shard_dataset
from python_model.io.errors import DataError
from python_model.studies.trials import REFERENCES, EvaluationOptions, Trial, references, run_trial
from python_model.train import train
from python_model.training import checkpoint
from tests.model.reliability.conftest import CONFIG, MODEL
from tests.model.reliability.test_damage import rewritten
from tests.model.training.test_train import assert_same_run

LONGER = replace(CONFIG, steps=12)


@pytest.fixture
def data(tiny_service: Dataset, tmp_path: Path) -> Path:
    """A copy of the data set that a test may change."""
    return Path(shutil.copytree(tiny_service.path, tmp_path / "data"))


def change_column(file: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Rewrite a Parquet file with one column changed, its type and everything else kept."""
    table = pq.read_table(file)
    place, values = table.column_names.index(name), change(table.column(name).to_numpy())
    pq.write_table(
        table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type)), file
    )


@pytest.mark.parametrize(
    ("file", "column", "change", "named"),
    [
        (ITEMS, "item_artist", lambda values: values[::-1].copy(), "items_fingerprint"),
        (ITEMS, "item_id", lambda values: values[::-1].copy(), "items_fingerprint"),
        (USERS, "user_id", lambda values: values[::-1].copy(), "users_fingerprint"),
    ],
)
def test_items_or_users_that_changed(
    data: Path, run: Path, file: str, column: str, change: Callable[[np.ndarray], np.ndarray], named: str
) -> None:
    change_column(data / file, column, change)
    with pytest.raises(ValueError, match=rf"dataset differs: {named} was '[0-9a-f]{{8}}', now '[0-9a-f]{{8}}'$"):
        train("pretrain", load_dataset(data), run, MODEL, LONGER, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_events_under_the_description_of_others(data: Path, run: Path, tmp_path: Path, resume: bool) -> None:
    """dataset.json says what the events were; what counts is what they are."""
    change_column(data / EVENTS, "organic", lambda values: ~values)
    with pytest.raises(DataError, match=r"expected the fingerprint .* of dataset\.json, found .*: other events"):
        train("pretrain", load_dataset(data), run if resume else tmp_path / "new", MODEL, LONGER, resume=resume)


def test_the_same_values_compressed_otherwise(tiny_service: Dataset, data: Path, whole: Path, run: Path) -> None:
    for name in (EVENTS, ITEMS, USERS):
        pq.write_table(pq.read_table(data / name), data / name, compression="gzip", row_group_size=100)
    again = load_dataset(data)
    assert identity_of(again) == identity_of(tiny_service)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    train("pretrain", again, run, MODEL, LONGER, resume=True)
    assert_same_run(whole, run)


def test_shards_that_changed(tiny_service: Dataset, tmp_path: Path) -> None:
    shard_dataset(tiny_service.path, tmp_path / "data", 3)
    config = replace(CONFIG, steps=2)
    train("pretrain", load_dataset(tmp_path / "data"), tmp_path / "run", MODEL, config)
    part = tmp_path / "data" / SHARDS / "part-00001.parquet"
    change_column(part, "organic", lambda values: ~values)
    with pytest.raises(DataError, match=r"part-00001\.parquet: expected the checksum .* of shards/shards\.json, found"):
        train(
            "pretrain", load_dataset(tmp_path / "data"), tmp_path / "run", MODEL, replace(CONFIG, steps=2), resume=True
        )


def test_shards_are_cut_from_the_events_that_the_description_is_of(data: Path, tmp_path: Path) -> None:
    change_column(data / EVENTS, "organic", lambda values: ~values)
    with pytest.raises(DataError, match="other events"):
        shard_dataset(data, tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()


def test_shards_of_other_events_with_their_own_description(tiny_service: Dataset, tmp_path: Path) -> None:
    other = rewritten(tiny_service, tmp_path / "other", {"organic": ~tiny_service.organic})
    config = replace(CONFIG, steps=2)
    for name, source in (("a", tiny_service), ("b", other)):
        shard_dataset(source.path, tmp_path / name, 2)
    train("pretrain", load_dataset(tmp_path / "a"), tmp_path / "run", MODEL, config)
    with pytest.raises(ValueError, match="dataset differs: fingerprint was"):
        train("pretrain", load_dataset(tmp_path / "b"), tmp_path / "run", MODEL, config, resume=True)


class TestWhereFineTuningBegan:
    CONFIG = replace(CONFIG, stage="finetune", steps=2)

    def test_from_other_weights(self, tiny_service: Dataset, run: Path, tmp_path: Path) -> None:
        before = run / "checkpoints" / "step-00000008"
        out = tmp_path / "tuned"
        train("finetune", tiny_service, out, None, self.CONFIG, init_from=before)
        for source in (before, None):
            train("finetune", tiny_service, out, None, self.CONFIG, init_from=source, resume=True)
        with pytest.raises(
            ValueError, match=r"began with other weights \(pretrain step 8 \w+\) than .*leave out --from"
        ):
            train("finetune", tiny_service, out, None, self.CONFIG, init_from=run, resume=True)
        numbers = checkpoint.load_trainer(checkpoint.find(out)).numbers
        assert numbers["origin"].startswith("pretrain step 8 ")

    def test_from_random_weights(self, tiny_service: Dataset, run: Path, tmp_path: Path) -> None:
        train("finetune", tiny_service, tmp_path / "alone", MODEL, self.CONFIG)
        with pytest.raises(ValueError, match="began with random weights than"):
            train("finetune", tiny_service, tmp_path / "alone", MODEL, self.CONFIG, init_from=run, resume=True)

    def test_from_scratch_on_a_run_that_began_with_weights(
        self, tiny_service: Dataset, run: Path, tmp_path: Path
    ) -> None:
        out, data = tmp_path / "tuned", str(tiny_service.path)
        train("finetune", tiny_service, out, None, self.CONFIG, init_from=run)
        again = ["finetune", data, str(out), "--resume", "--from-scratch"]
        result = CliRunner().invoke(app, again)
        assert result.exit_code == 2 and "began with weights of another run (pretrain step " in result.stderr
        result = CliRunner().invoke(app, [*again, "--from", str(run)])
        assert result.exit_code == 2 and "give either --from RUN" in result.stderr
        train("finetune", tiny_service, tmp_path / "alone", MODEL, self.CONFIG)
        again[2] = str(tmp_path / "alone")
        assert CliRunner().invoke(app, again).exit_code == 0
        assert CliRunner().invoke(app, again[:-1]).exit_code == 0

    def test_on_other_items_of_the_same_number(self, data: Path, run: Path, tmp_path: Path) -> None:
        change_column(data / ITEMS, "item_id", lambda values: values[::-1].copy())
        with pytest.raises(ValueError, match=r"trained on other items than those of .*, which are as many"):
            train("finetune", load_dataset(data), tmp_path / "tuned", None, self.CONFIG, init_from=run)
        for command in (["evaluate"], ["recommend", "--user", "1"], ["export", str(tmp_path / "export")]):
            arguments = [command[0], str(data), str(run), *command[1:]]
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 2 and "trained on other items" in result.stderr, result.output

    def test_a_checkpoint_that_does_not_say_goes_on(self, tiny_service: Dataset, run: Path) -> None:
        """An earlier version wrote down fewer things: what it did write down is compared."""
        from python_model.io.integrity import seal

        directory = checkpoint.find(run)
        state, config = (json.loads((directory / name).read_text()) for name in (checkpoint.STATE, checkpoint.CONFIG))
        del state["origin"], config["dataset"]["items_fingerprint"], config["dataset"]["users_fingerprint"]
        (directory / checkpoint.STATE).write_text(json.dumps(state))
        (directory / checkpoint.CONFIG).write_text(json.dumps(config))
        seal(directory)
        train("pretrain", tiny_service, run, MODEL, LONGER, resume=True, init_from=run)


class TestStudies:
    SHORT = TrainConfig(
        stage="pretrain", steps=1, batch_events=256, window=32, negatives_in_batch=16, negatives_uniform=16,
        sketch_width=256,
    )  # fmt: skip

    def test_a_trial_is_of_its_events(self, tiny_service: Dataset, tmp_path: Path) -> None:
        options = EvaluationOptions(max_events=100)
        trial = Trial("one", replace(MODEL, layers=1), self.SHORT, None, options)
        result = run_trial(trial, tiny_service, tmp_path / "out")
        assert run_trial(trial, tiny_service, tmp_path / "out") == result
        other = rewritten(tiny_service, tmp_path / "data", {"organic": ~tiny_service.organic})
        with pytest.raises(ValueError, match=r"was begun with other settings: dataset\.fingerprint was"):
            run_trial(trial, other, tmp_path / "out")

    def test_references_are_of_their_events_and_window(self, tiny_service: Dataset, tmp_path: Path) -> None:
        options = EvaluationOptions(max_events=100)
        first = references(tiny_service, tmp_path / "out", "temporal", options, window=8)
        assert references(tiny_service, tmp_path / "out", "temporal", options, window=8) == first
        with pytest.raises(ValueError, match="window was 8, now 16"):
            references(tiny_service, tmp_path / "out", "temporal", options, window=16)
        other = rewritten(tiny_service, tmp_path / "data", {"organic": ~tiny_service.organic})
        with pytest.raises(ValueError, match=r"dataset\.fingerprint was"):
            references(other, tmp_path / "out", "temporal", options, window=8)

    @pytest.mark.parametrize(
        "text", ["[" * 100_000, "[]", "{}", '{"results": 1}', '{"results": [1]}', '{"results": [{"name": 1}]}', "NaN"]
    )
    def test_references_that_are_damaged(self, tiny_service: Dataset, tmp_path: Path, text: str) -> None:
        (tmp_path / REFERENCES).write_text(text)
        with pytest.raises(ValueError, match=r"references\.json.*(damaged|begun with other settings)|begun with other"):
            references(tiny_service, tmp_path, "temporal", EvaluationOptions(max_events=100))

    @pytest.mark.parametrize(("name", "key"), [("logq", "outcomes"), ("one_pass", "costs")])
    def test_studies_that_are_damaged(self, tmp_path: Path, name: str, key: str) -> None:
        from python_model.studies import logq, one_pass

        file = tmp_path / f"{name}.json"
        settings = logq.Settings(steps=1)
        plain = json.loads(json.dumps(vars(settings)))

        def read() -> object:
            return logq.read(file, settings) if name == "logq" else one_pass.read(file, plain)

        assert read() == []
        for content in ({key: 1}, {key: [1]}, {key: [{"loss": "x"}]}, {key: [{"events": "x"}]}, {}):
            file.write_text(json.dumps({"settings": plain, **content}))
            with pytest.raises(DataError, match=rf"{name}\.json.*damaged: .*; remove it to have it made again"):
                read()
        file.write_text("[" * 100_000)
        with pytest.raises(DataError, match="nested at most"):
            read()
        file.write_text(json.dumps({"settings": {**plain, "steps": 2}, key: []}))
        with pytest.raises(ValueError, match="holds a study with other settings"):
            read()
