"""What an export holds is what the model says, in every form, and needs no data set afterwards."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from python_model.data.schema import Dataset
from python_model.evaluation.recommend import recommend
from python_model.io.integrity import seal
from python_model.serving.bundle import Export
from python_model.serving.exact import best_items
from python_model.serving.export import export
from python_model.serving.ids import IdTable
from python_model.serving.quantize import from_bfloat16, from_int8, to_bfloat16, to_int8
from python_model.training import checkpoint
from python_model.training.checkpoint.sharded import BackgroundSaver
from tests.model.serving.conftest import WINDOW

VECTORS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
)  # fmt: skip


@given(VECTORS)
def test_int8_is_off_by_half_a_step_at_most(vectors: np.ndarray) -> None:
    values, scale = to_int8(vectors)
    assert values.dtype == np.int8 and scale.shape == (len(vectors),)
    error = np.abs(vectors.astype(np.float64) - from_int8(values, scale))
    assert (error <= 0.5001 * scale[:, None] + 1e-30).all()
    assert (np.abs(values).max(1)[scale > 1e-37] == 127).all()


@given(VECTORS)
def test_bfloat16_is_off_by_half_a_bit_at_most(vectors: np.ndarray) -> None:
    bits = to_bfloat16(vectors)
    assert bits.dtype == np.uint16
    assert (np.abs(vectors.astype(np.float64) - from_bfloat16(bits)) <= 2.0**-8 * np.abs(vectors)).all()
    np.testing.assert_array_equal(to_bfloat16(from_bfloat16(bits)), bits)


def test_vectors_are_those_recommend_asks_with(service: Dataset, finetuned: Path, exported: Export) -> None:
    model = checkpoint.load_model(finetuned)
    with torch.inference_mode():
        np.testing.assert_array_equal(exported.item_vectors(), model.item_matrix().numpy())
    found, scores = best_items(exported.user_vectors(), exported.item_vectors(), 5)
    expected = recommend(model, service, np.arange(service.info.users), k=5, window=WINDOW, score="pair")
    for user, one in enumerate(expected):
        assert exported.item_ids.original(found[user]).tolist() == [item.item_id for item in one.items]
        np.testing.assert_allclose(scores[user], [item.score for item in one.items], rtol=1e-4, atol=1e-5)
    table = pq.read_table(exported.path / "scores.parquet").to_pydict()
    assert table["item_id"] == exported.item_ids.original(found.ravel()).tolist()
    assert table["user_id"] == np.repeat(service.user_ids, 5).tolist()
    assert table["rank"][:5] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(table["score"], scores.ravel(), rtol=1e-6)


def test_parquet_and_npy_hold_the_same(service: Dataset, exported: Export) -> None:
    for side, ids in (("items", service.item_column("item_id")), ("users", service.user_ids)):
        table = pq.read_table(exported.path / f"{side}.parquet")
        arrays = {form: np.load(exported.path / "vectors" / f"{side}.{form}.npy")
                  for form in ("float32", "bfloat16", "int8", "int8_scale")}  # fmt: skip
        names = {"float32": "vector", "bfloat16": "vector_bfloat16", "int8": "vector_int8"}
        for form, name in names.items():
            column = table.column(name).combine_chunks().flatten().to_numpy()
            np.testing.assert_array_equal(column.reshape(len(ids), -1), arrays[form])
        np.testing.assert_array_equal(table.column("vector_int8_scale").to_numpy(), arrays["int8_scale"])
        np.testing.assert_array_equal(table.column(f"{side[:-1]}_id").to_numpy(), ids)
        exact = arrays["float32"].astype(np.float64)
        for form, small in (
            ("bfloat16", from_bfloat16(arrays["bfloat16"])),
            ("int8", from_int8(arrays["int8"], arrays["int8_scale"])),
        ):
            stated = exported.info.errors[side][form]
            error = np.abs(exact - small)
            assert stated["largest"] == pytest.approx(error.max())
            assert stated["relative_rms"] == pytest.approx(((error**2).sum() / (exact**2).sum()) ** 0.5)
            assert stated["least_cosine"] > 0.999
    assert exported.info.errors["items"]["int8"]["relative_rms"] < 0.01


def test_histories_and_seen_items_need_no_data(service: Dataset, exported: Export) -> None:
    for user in (0, 7, service.info.users - 1):
        rows = slice(int(service.offsets[user]), int(service.offsets[user + 1]))
        np.testing.assert_array_equal(exported.seen(user), np.unique(service.item[rows]))
        history = exported.history(user)
        np.testing.assert_array_equal(history["items"], service.item[rows][-WINDOW:])
        np.testing.assert_array_equal(history["time"], service.time[rows][-WINDOW:])
        likes = list(service.info.feedback).index("like")
        np.testing.assert_array_equal(history["feedback"][:, likes], service.feedback("like")[rows][-WINDOW:])
        assert exported.user_time[user] == service.time[rows][-1]
    assert exported.info.delay == exported.info.lag == 7200
    assert (exported.path / "model" / "model.safetensors").is_file()


def test_a_pretrained_run_is_exported_with_its_own_score(service: Dataset, pretrained: Path, tmp_path: Path) -> None:
    info = export(service, pretrained, tmp_path / "out", window=16, best=0)
    assert info.score == "next_item" and info.delay == 0 and not (tmp_path / "out" / "scores.parquet").exists()
    found = Export.open(tmp_path / "out")
    items, _ = best_items(found.user_vectors()[:3], found.item_vectors(), 4)
    expected = recommend(found.model(), service, np.arange(3), k=4, window=16)
    for user, one in enumerate(expected):
        assert found.item_ids.original(items[user]).tolist() == [item.item_id for item in one.items]
    assert max(len(found.history(user)["items"]) for user in range(found.info.users)) == 16
    with pytest.raises(ValueError, match="score pair needs a fine-tuned run"):
        export(service, pretrained, tmp_path / "pair", score="pair")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_half_written_and_nothing_of_others_is_replaced(
    service: Dataset, finetuned: Path, exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "out"
    shutil.copytree(exported.path, copy)
    with pytest.raises(FileExistsError, match="exists and is not empty: choose another directory or pass --overwrite"):
        export(service, finetuned, copy)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(FileExistsError, match=r"has no export\.json"):
        export(service, finetuned, tmp_path / "mine", overwrite=True)

    def fail(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("python_model.serving.export._write_seen", fail)
    with pytest.raises(OSError, match="out: cannot be written, no space is left on the device"):
        export(service, finetuned, copy, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]
    assert Export.open(copy).info == exported.info
    monkeypatch.undo()
    assert export(service, finetuned, copy, overwrite=True, best=2).best == 2


def test_a_run_of_several_ranks_is_exported_like_any_other(
    service: Dataset, finetuned: Path, exported: Export, tmp_path: Path
) -> None:
    description, model = checkpoint.read_description(finetuned), checkpoint.load_model(finetuned)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        saver = BackgroundSaver(tmp_path / "run", keep=1)
        weights = {f"{checkpoint.MODEL}/{name}": value for name, value in model.state_dict().items()}
        saver.start(description, {}, weights)
        saved = saver.finish()
    finally:
        dist.destroy_process_group()
    assert saved is not None and checkpoint.is_sharded(saved) and not (saved / checkpoint.MODEL).exists()
    info = export(service, tmp_path / "run", tmp_path / "out", best=5)
    assert info == exported.info
    found = Export.open(tmp_path / "out")
    np.testing.assert_array_equal(found.item_vectors(), exported.item_vectors())
    np.testing.assert_array_equal(found.model().item_matrix().detach(), model.item_matrix().detach())
    assert sorted(os.listdir(found.path / "model")) == ["checksums.json", "config.json", "model.safetensors"]


def test_a_model_that_has_diverged_is_not_exported(service: Dataset, finetuned: Path, tmp_path: Path) -> None:
    description, model = checkpoint.read_description(finetuned), checkpoint.load_model(finetuned)
    with torch.no_grad():
        for parameter in model.user_head.parameters():
            parameter.fill_(1e30)
    checkpoint.save(tmp_path / "run", model, description, checkpoint.TrainerState({}, {}), keep=1)
    with pytest.raises(ValueError, match="the model gives users' vectors that are not finite, first in row 0"):
        export(service, tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_export_is_one_sentence(exported: Export, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a directory that `argus export` made"):
        Export.open(tmp_path)
    for text, sentence in (
        ("{", "expected JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "expected format 1"),
        ('{"format": 1}', "key is missing"),
    ):
        (tmp_path / "export.json").write_text(text)
        with pytest.raises(ValueError, match=sentence):
            Export.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(exported.path, copy)
    np.save(copy / "vectors" / "items.float32.npy", np.zeros((3, 8), np.float32))
    seal(copy)
    with pytest.raises(ValueError, match=r"items\.float32\.npy: expected float32 \[80, 8\], found float32 \[3, 8\]"):
        Export.open(copy).item_vectors()


def test_ids_are_found_whatever_their_type() -> None:
    numbers = IdTable(np.array([7, 3, 900]), "the items")
    assert numbers.find(pa.array([3, None, 8, 900, 7], pa.int32()), "item_id").tolist() == [1, -1, -1, 2, 0]
    assert numbers.find(pa.nulls(2), "item_id").tolist() == [-1, -1]
    assert [numbers.number(one) for one in ("900", 7, "x", None)] == [2, 0, -1, -1]
    texts = IdTable(np.array(["b", "a"], object), "the users")
    column = pa.chunked_array([pa.array(["a", "c"]), pa.array([None, "b"])])
    assert texts.find(column, "user_id").tolist() == [1, -1, -1, 0]
    assert texts.find(pa.array(["a", None, "a"]).dictionary_encode(), "user_id").tolist() == [1, -1, 1]
    with pytest.raises(ValueError, match="column 'item_id': its ids are integers, found string"):
        numbers.find(pa.array(["7"]), "item_id")
    with pytest.raises(ValueError, match="'z' is not among the users, which has b, a"):
        texts.require(["a", "z"])
