"""The synthetic service: its bytes, its statistics, and an oracle that is calibrated and out of popularity's reach."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

from python_model.data.schema import DataError, Dataset, load_dataset, validate
from python_model.data.splits import temporal_split
from python_model.data.synthetic import OracleScores, SyntheticConfig, generate, preset
from python_model.data.synthetic.arithmetic import Draws, choose, exp, sigmoid
from python_model.data.synthetic.behaviour import next_in_album
from python_model.data.synthetic.config import RADIO, SOURCES

TINY = preset("small", users=23, events_per_user=40.0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> OracleScores:
    out = tmp_path_factory.mktemp("synthetic") / "demo"
    started = time.process_time()
    generate(out, preset("demo"))
    assert time.process_time() - started < 20, "the demo data takes about 2 seconds on one core"
    return OracleScores(out)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("chunk_users", [1, 7, 23])
def test_files_do_not_depend_on_the_chunks(tmp_path: Path, chunk_users: int) -> None:
    generate(tmp_path / "whole", TINY)
    generate(tmp_path / "chunks", TINY, chunk_users=chunk_users)
    assert contents(tmp_path / "whole") == contents(tmp_path / "chunks")


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generate(tmp_path / name, preset("small", users=23, events_per_user=40.0, seed=seed))
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a["events.parquet"] != c["events.parquet"]


def test_users_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    generate(tmp_path / "few", TINY)
    generate(tmp_path / "many", preset("small", users=40, events_per_user=40.0))
    few, many = load_dataset(tmp_path / "few"), load_dataset(tmp_path / "many")
    np.testing.assert_array_equal(few.item, many.item[: len(few)])
    np.testing.assert_array_equal(few.time, many.time[: len(few)])


def test_the_same_on_every_machine(small: Dataset) -> None:
    """A digest worked out once: another machine or version must find the same events."""
    digest = hashlib.sha256()
    for name in ("user", "item", "time", "organic", "grade", "feedback_share", "feedback_like", "context_device"):
        digest.update(np.ascontiguousarray(small.column(name)).astype("<i8").tobytes())
    digest.update(small.column("oracle_affinity").astype("<f4").tobytes())
    assert digest.hexdigest() == "2d553dd170c14627c5ec9cd39bdc956a46cde93a59f2f5fb5f7ed28e8e571576"


def test_it_keeps_the_contract(small: Dataset) -> None:
    info = validate(small.path)
    assert info.has_oracle and info.source == "synthetic"
    assert SyntheticConfig.from_params(info.params) == preset("small")
    assert info.binary_feedback == ("like", "dislike", "skip")
    organic = small.context("source") < RADIO
    np.testing.assert_array_equal(small.organic, organic)
    np.testing.assert_array_equal(small.grade == -1, organic)
    skip, like, dislike = (small.feedback(name) for name in ("skip", "like", "dislike"))
    assert not (skip & like).any() and not (dislike & ~skip).any()
    shown = ~organic
    np.testing.assert_array_equal(small.grade[shown] == 4, like[shown] == 1)
    np.testing.assert_array_equal(small.grade[shown] == 0, dislike[shown] == 1)
    np.testing.assert_array_equal(small.grade[shown] == 1, (skip & ~dislike)[shown] == 1)
    np.testing.assert_array_equal(small.context("hour"), small.time // 3600 % 24)
    np.testing.assert_array_equal(small.context("day_of_week"), (small.time // 86400 + 3) % 7)


def test_statistics_are_those_of_music_sessions(demo: OracleScores) -> None:
    dataset = demo.dataset
    statistics = dataset.info.params["statistics"]
    assert statistics["skip_rate"] == pytest.approx(0.24, abs=0.03)
    assert statistics["mean_played_share"] == pytest.approx(0.73, abs=0.04)
    assert statistics["recommended_share"] == pytest.approx(0.44, abs=0.04)
    assert statistics["listens_per_session"] == pytest.approx(9, abs=1)
    # The stored figures are those of the rows: skips, organic flags, and sessions as 2 hours without a listen.
    assert statistics["skip_rate"] == pytest.approx((dataset.feedback("skip") == 1).mean())
    assert statistics["recommended_share"] == pytest.approx((~dataset.organic).mean())
    breaks = (np.diff(dataset.user) != 0) | (np.diff(dataset.time) > 7200)
    assert len(dataset) / (1 + breaks.sum()) == pytest.approx(9, abs=1)
    assert len(dataset) == pytest.approx(300_000, rel=0.05)
    counts = np.sort(dataset.item_column("count"))[::-1]
    assert counts[: len(counts) // 10].sum() > 0.3 * len(dataset), "popularity has a heavy tail"


def test_feedback_probabilities_are_calibrated(demo: OracleScores) -> None:
    """Events of one predicted probability happen that often, within 4 standard errors of each bin."""
    dataset, rows = demo.dataset, np.arange(len(demo.dataset))
    for task in ("like", "dislike", "skip"):
        _assert_calibrated(demo.feedback_probabilities(task, rows), dataset.feedback(task) == 1)
    share = demo.feedback_probabilities("share", rows)
    np.testing.assert_allclose(share.sum(axis=1), 1, atol=1e-6)
    for bin_ in range(share.shape[1]):
        _assert_calibrated(share[:, bin_], dataset.feedback("share") == bin_)


def _assert_calibrated(probability: np.ndarray, happened: np.ndarray) -> None:
    order = np.argsort(probability, kind="stable")
    for rows in np.array_split(order, 20):
        p = probability[rows].astype(np.float64)
        error = (happened[rows].mean() - p.mean()) / np.sqrt((p * (1 - p)).sum() + 1e-12) * len(rows)
        assert abs(error) < 4.5


def test_expected_grade_is_calibrated(demo: OracleScores) -> None:
    dataset = demo.dataset
    shown = np.flatnonzero(~dataset.organic)
    utility, grade = demo.utility(shown), dataset.grade[shown]
    for rows in np.array_split(np.argsort(utility, kind="stable"), 20):
        assert grade[rows].mean() == pytest.approx(utility[rows].mean(), abs=4.5 * grade[rows].std() / len(rows) ** 0.5)


def test_next_item_probabilities_are_calibrated(demo: OracleScores) -> None:
    """Hits at rank k come as often as the oracle says, on every surface, and so does the average log-loss."""
    dataset = demo.dataset
    rows = np.sort(np.random.default_rng(1).choice(len(dataset), 12_000, replace=False))
    scores = demo.next_item_scores(rows)
    probability = np.exp(scores.astype(np.float64))
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
    ranked = -np.sort(-probability, axis=1)
    chosen = probability[np.arange(len(rows)), dataset.item[rows]]
    assert (chosen > 0).all()
    rank = (probability > chosen[:, None]).sum(axis=1)
    entropy = -(ranked * np.log(np.maximum(ranked, 1e-300))).sum(axis=1)
    for source in range(len(SOURCES)):
        here = dataset.context("source")[rows] == source
        assert -np.log(chosen[here]).mean() == pytest.approx(entropy[here].mean(), abs=0.12)
        for k in (1, 3, 10):
            expected = ranked[here, :k].sum(axis=1)
            slack = 4.5 * np.sqrt((expected * (1 - expected)).sum()) / here.sum()
            assert (rank[here] < k).mean() == pytest.approx(expected.mean(), abs=slack)


def test_the_ceiling_is_far_above_popularity(demo: OracleScores) -> None:
    dataset = demo.dataset
    split = temporal_split(dataset)
    test = np.random.default_rng(0).choice(np.flatnonzero(split.test), 3000, replace=False)
    popularity = np.bincount(dataset.item[split.train], minlength=dataset.info.items).astype(np.float32)
    popularity = np.broadcast_to(popularity, (len(test), dataset.info.items))
    oracle, popular = (_ndcg_at_10(scores, dataset.item[test]) for scores in (demo.next_item_scores(test), popularity))
    assert 0.25 < oracle < 0.5
    assert popular < 0.1
    assert 0.75 < _pair_accuracy(dataset, dataset.column("oracle_affinity")) < 0.88
    assert _pair_accuracy(dataset, popularity[0][dataset.item]) < 0.6


def _ndcg_at_10(scores: np.ndarray, items: np.ndarray) -> float:
    rank = (scores > scores[np.arange(len(items)), items][:, None]).sum(axis=1)
    return float(np.where(rank < 10, 1 / np.log2(rank + 2), 0).mean())


def _pair_accuracy(dataset: Dataset, scores: np.ndarray) -> float:
    """Over pairs of neighbouring impressions (up to 20 apart) of a user within the pair window, unequal grades."""
    shown = np.flatnonzero(dataset.grade >= 0)
    user, when, grade = dataset.user[shown], dataset.time[shown], dataset.grade[shown].astype(int)
    scores = scores[shown]
    right = pairs = 0
    for k in range(1, 21):
        valid = (user[k:] == user[:-k]) & (when[k:] - when[:-k] <= dataset.info.pair_window) & (grade[k:] != grade[:-k])
        pairs += valid.sum()
        right += (valid & ((scores[k:] > scores[:-k]) == (grade[k:] > grade[:-k])))[scores[k:] != scores[:-k]].sum()
    return right / pairs


def test_organic_listening_is_sequential(demo: OracleScores) -> None:
    """Repeats and album order are far more frequent than popularity would have them."""
    dataset = demo.dataset
    inside = np.flatnonzero(np.diff(demo.event_session) == 0) + 1
    inside = inside[dataset.organic[inside]]
    following = dataset.item[inside] == next_in_album(dataset.item[inside - 1].astype(np.int64), demo.config.tracks)
    recent = np.stack([dataset.item[np.maximum(inside - k, 0)] for k in range(2, 11)])
    assert following.mean() > 0.15
    assert (recent == dataset.item[inside]).any(axis=0).mean() > 0.2


def test_oracle_refuses(small: Dataset, tmp_path: Path) -> None:
    oracle = OracleScores(small.path)
    for rows in (np.array([-1]), np.array([len(small)]), np.array([[0]])):
        with pytest.raises(ValueError, match="event_rows"):
            oracle.next_item_scores(rows)
    with pytest.raises(ValueError, match="task: expected one of like"):
        oracle.feedback_probabilities("hate", np.array([0]))
    assert oracle.next_item_scores(np.zeros(0, np.int64)).shape == (0, small.info.items)
    np.testing.assert_array_equal(
        oracle.next_item_scores(np.array([5, 3, 5]))[0], oracle.next_item_scores(np.array([5]))[0]
    )


def test_a_damaged_oracle_is_named(tmp_path: Path) -> None:
    generate(tmp_path / "d", TINY)
    for name in ("event_session", "full_listen", "session_taste", "session_estimate"):
        file = tmp_path / "d" / "oracle" / f"{name}.npy"
        good = file.read_bytes()
        for bad in (b"rubbish", good[:-8]):
            file.write_bytes(bad)
            with pytest.raises(DataError, match=rf"{name}\.npy: (expected a NumPy array|damaged or truncated): "):
                OracleScores(tmp_path / "d")
        np.save(file, np.load(tmp_path / "d" / "oracle" / "full_listen.npy")[:-1] if name != "full_listen" else [1.0])
        with pytest.raises(DataError, match=r"\.npy: expected (int64|float32) \["):
            OracleScores(tmp_path / "d")
        file.write_bytes(good)
    OracleScores(tmp_path / "d")


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert 0 < done < total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "d", TINY, chunk_users=5, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_users(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    generate(tmp_path / "d", TINY, chunk_users=10, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(10, 23), (20, 23), (23, 23)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"users": 0}, r"users is 0, expected a whole number in \[1, 2147483647\]"),
        ({"drift": 1.0}, r"drift is 1.0, expected a finite number in \[0, 1\)"),
        ({"events_per_user": 5000.0}, "do not fit into 30 days"),
        ({"session_length": 50.0}, "session_length"),
        ({"recent": 1}, r"recent is 1, expected a whole number in \[2, 1000\]"),
        ({"clusters": 1, "artists": 1, "tracks": 1}, "at least 2 items, found 1"),
        (
            {"clusters": 10**6, "tracks": 10**6},
            "expected at most 33,554,432 items of 8 dimensions, found 5,000,000,000",
        ),
        ({"tempo": 3}, "unknown setting tempo"),
    ],
)
def test_settings_are_checked(changes: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        preset("small", **changes)


def test_unknown_presets_are_named() -> None:
    with pytest.raises(ValueError, match="preset is 'huge', expected one of demo, small, large, years"):
        preset("huge")


def test_exp_is_accurate() -> None:
    x = np.concatenate([np.linspace(-40, 40, 20_001), [0.0, -600, 600, 1e-300]])
    np.testing.assert_allclose(exp(x), np.exp(x), rtol=4e-16)
    np.testing.assert_allclose(sigmoid(x), 1 / (1 + np.exp(-x)), rtol=1e-15)
    assert exp(np.array([-1e9]))[0] == exp(np.array([-600.0]))[0]


def test_draws_are_uniform_normal_and_independent() -> None:
    draws = Draws(3)
    user, event = np.arange(400)[:, None], np.arange(500)
    uniform = draws.uniform(1, user, event)
    assert uniform.shape == (400, 500)
    histogram = np.bincount((uniform.ravel() * 100).astype(int), minlength=100)
    assert ((histogram - 2000) ** 2 / 2000).sum() < 160  # chi-squared, 99 degrees of freedom
    normal = draws.normal(1, user, event)
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.01
    others = (draws.uniform(2, user, event), draws.uniform(1, event[:400], user), uniform[:, ::-1])
    for other in (*others, Draws(4).uniform(1, user, event)):
        correlation = np.corrcoef(uniform[:, :400].ravel(), other[:, :400].ravel())[0, 1]
        assert abs(correlation) < 0.012
    assert abs(np.corrcoef(uniform[:, 1:].ravel(), uniform[:, :-1].ravel())[0, 1]) < 0.012


def test_choose_follows_the_weights() -> None:
    weights = np.array([0.0, 1.0, 0.0, 3.0, 0.0])
    uniform = (np.arange(1000) + 0.5) / 1000
    chosen = choose(np.broadcast_to(weights, (1000, 5)), uniform)
    assert np.bincount(chosen, minlength=5).tolist() == [0, 250, 0, 750, 0]
    edges = choose(np.broadcast_to(weights, (2, 5)), np.array([0.0, 1.0]))
    assert edges.tolist() == [1, 3], "items without weight are never chosen, not even at the edges"


def test_permutations_hold_every_number_once() -> None:
    order = Draws(0).permutation(1, 50, 9)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(9), (50, 1)))
    assert len(np.unique(order, axis=0)) > 45


def test_damaged_arrays_of_the_oracle_are_refused(tmp_path: Path) -> None:
    generate(tmp_path / "d", TINY)
    for name in ("event_session", "full_listen", "session_taste", "session_estimate"):
        file = tmp_path / "d" / "oracle" / f"{name}.npy"
        good = file.read_bytes()
        array = np.load(file)
        bad = [b"", b"\x93NUMPY", good[:60], good[:-1], b"rubbish", good.replace(b"'descr'", b"'desc(''")]
        for content in bad:
            file.write_bytes(content)
            with pytest.raises(DataError, match=rf"{name}\.npy: (expected a NumPy array|damaged or truncated): "):
                OracleScores(tmp_path / "d")
        for other in (array.astype(np.float64), array[:-1], array[None], array.astype(object)):
            np.save(file, other, allow_pickle=True)
            with pytest.raises(DataError, match=rf"{name}\.npy"):
                OracleScores(tmp_path / "d")
        if name == "event_session":
            for place, value in ((0, -1), (3, 10**9), (-1, -1)):
                np.save(file, np.concatenate([array[:place], [value], array[place:][1:]]))
                with pytest.raises(DataError, match=r"event_session\.npy, column 'session'"):
                    OracleScores(tmp_path / "d")
        file.unlink()
        with pytest.raises(DataError, match=rf"{name}\.npy: not found"):
            OracleScores(tmp_path / "d")
        file.write_bytes(good)
    OracleScores(tmp_path / "d")
