"""Tests of `shards`."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_work import open_damaged, open_suicide, open_work

from drot_utils.analysis import topics, toxicity
from drot_utils.engine import classifier, load, shards
from drot_utils.engine.load import build_tiny
from drot_utils.engine.shards import derive_seed, fingerprint, map_shards
from drot_utils.method import critic, nli, student
from drot_utils.method.critic import load_critic
from drot_utils.study.errors import DrotError, MissingInputError, ModelError, StorageError
from drot_utils.study.outputs import borrow
from drot_utils.study.params import Executor, ModelRef
from drot_utils.study.paths import Run

LOCAL = Executor(kind="local", workers=1, address=None)


def run(folder, executor, opened=open_work, n=11):
    rows = pd.DataFrame({"x": range(n)})
    return map_shards(rows, 2, opened, folder, seed=3, stage="test", executor=executor)


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_processes_give_the_rows_of_one(tmp_path, workers, request):
    if workers != 2:  # two are started as users start them
        request.getfixturevalue("forked")
    expected = run(tmp_path / "local", LOCAL)
    found = run(tmp_path / "many", Executor(kind="processes", workers=workers, address=None))
    pd.testing.assert_frame_equal(found, expected)
    for path in (tmp_path / "local").iterdir():
        assert path.read_bytes() == (tmp_path / "many" / path.name).read_bytes()


def test_a_killed_worker_is_a_clear_error_and_nothing_is_lost(tmp_path, forked):
    executor = Executor(kind="processes", workers=2, address=None)
    opened = partial(open_suicide, tmp_path / "mark")
    with pytest.raises(DrotError, match="finished shards are kept"):
        run(tmp_path / "s", executor, opened)
    pd.testing.assert_frame_equal(run(tmp_path / "s", executor, opened), run(tmp_path / "local", LOCAL))


@pytest.mark.parametrize("kind", ["local", "processes"])
def test_what_keeps_the_work_from_being_opened_is_said_whoever_does_it(tmp_path, forked, kind):
    with pytest.raises(ModelError, match=r"model\.safetensors: expected SHA-256 x, found y\n.*copy it again"):
        run(tmp_path, Executor(kind=kind, workers=2, address=None), open_damaged)


def test_ray_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(DrotError, match="make extras"):
        run(tmp_path, Executor(kind="ray", workers=2, address=None))


@pytest.mark.slow
def test_ray_gives_the_rows_of_one_even_when_a_worker_is_killed(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="extra: make extras")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where its workers find this module
    executor = Executor(kind="ray", workers=2, address=None)
    found = run(tmp_path / "ray", executor, partial(open_suicide, tmp_path / "mark"))
    assert (tmp_path / "mark").exists()
    pd.testing.assert_frame_equal(found, run(tmp_path / "local", LOCAL))


def test_a_students_samples_are_the_same_from_several_processes(study, actions, forked):
    model, tokenizer = build_tiny("tiny-llama")
    load.save_model(model, tokenizer, study.run.model("distill_base"), study.dtype)
    expected = student.write_contexts(study, "distill_base", actions.head(8), "round_1", 2, "nucleus")
    compute = study.params.compute.model_copy(update={"executor": Executor(kind="processes", workers=2, address=None)})
    study.params = study.params.model_copy(update={"compute": compute})
    for path in study.run.work("shards").rglob("*.parquet"):
        path.unlink()
    pd.testing.assert_frame_equal(
        student.write_contexts(study, "distill_base", actions.head(8), "round_1", 2, "nucleus"), expected
    )


def work_shards(part: pd.DataFrame, seed: int) -> pd.DataFrame:
    return pd.DataFrame({"x": part["x"].repeat(2) * 10, "seed": seed})


def run_shards(rows, folder, size=3, do=work_shards):
    return map_shards(rows, size, lambda: do, folder, seed=7, stage="test", executor=LOCAL)


@given(st.integers(0, 30), st.integers(1, 12))
@settings(max_examples=25)
def test_rows_and_order_depend_on_nothing_but_the_shard_size(tmp_path_factory, n, size):
    rows = pd.DataFrame({"x": range(n)})
    folder = tmp_path_factory.mktemp("s")
    out = run_shards(rows, folder, size)
    assert out["x"].tolist() == [x * 10 for x in range(n) for _ in range(2)]
    again = run_shards(rows, folder, size, do=lambda part, seed: pytest.fail("done work_shards was done again"))
    pd.testing.assert_frame_equal(out, again)


def test_after_a_kill_only_what_is_missing_is_done(tmp_path):
    rows = pd.DataFrame({"x": range(10)})
    whole = run_shards(rows, tmp_path / "whole")
    calls = []

    def dies_in_the_third(part, seed):
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return work_shards(part, seed)

    with pytest.raises(KeyboardInterrupt):
        run_shards(rows, tmp_path / "killed", do=dies_in_the_third)
    calls.clear()

    def counts(part, seed):
        calls.append(seed)
        return work_shards(part, seed)

    again = run_shards(rows, tmp_path / "killed", do=counts)
    assert calls == [derive_seed(7, "test", k) for k in (2, 3)]
    pd.testing.assert_frame_equal(again, whole)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


@pytest.mark.parametrize("harm", [b"", b"PAR1 not parquet", None])
def test_a_shard_that_is_not_whole_is_done_again(tmp_path, harm):
    rows = pd.DataFrame({"x": range(9)})
    whole = run_shards(rows, tmp_path)
    (shard,) = tmp_path.glob("000001-*.parquet")
    data = shard.read_bytes()
    shard.write_bytes(harm if harm is not None else data[: len(data) // 2])
    pd.testing.assert_frame_equal(run_shards(rows, tmp_path), whole)
    assert shard.read_bytes() == data


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=100)
def test_no_changed_byte_of_a_shard_goes_unseen(tmp_path_factory, where, change):
    folder = tmp_path_factory.mktemp("s")
    rows = pd.DataFrame({"x": range(3)})
    whole = run_shards(rows, folder)
    (shard,) = folder.iterdir()
    data = bytearray(shard.read_bytes())
    data[int(where * len(data))] ^= change
    shard.write_bytes(data)
    calls = []
    again = run_shards(rows, folder, do=lambda part, seed: calls.append(seed) or work_shards(part, seed))
    pd.testing.assert_frame_equal(again, whole)
    assert len(calls) == 1 and len(list(folder.iterdir())) == 1


def test_another_runs_result_of_a_shard_does_not_replace_ones_own():
    one, other, rows = Run("one"), Run("other"), pd.DataFrame({"x": [1, 2]})
    (other.root / "stages").mkdir(parents=True)
    for bits in range(8):  # names, by checksum, in any order
        key = f"shards/{bits}"
        run_shards(rows[:1], one.work(key), 1, do=lambda part, seed, bits=bits: part.assign(bits=bits))
        run_shards(rows, other.work(key), 1, do=lambda part, seed: part.assign(bits=-1))
        again = run_shards(rows, borrow(one, key), 1, do=lambda part, seed: pytest.fail("done again"))
        assert again["bits"].tolist() == [bits, -1]  # its own, and what it has not


def test_of_several_results_of_a_shard_the_first_by_name_counts(tmp_path):
    rows = pd.DataFrame({"x": [1]})
    for by in range(6):
        run_shards(rows, tmp_path / str(by), do=lambda part, seed, by=by: part.assign(by=by))
    for path in tmp_path.glob("?/*"):
        shutil.copy(path, tmp_path)
    first = min(tmp_path.glob("?/*"), key=lambda path: path.name)
    assert run_shards(rows, tmp_path)["by"].tolist() == [int(first.parent.name)]


def test_a_full_disk_loses_no_finished_shard(tmp_path, full_disk):
    rows = pd.DataFrame({"x": range(9)})

    def grows(part, seed):  # the third shard is too large
        return pd.DataFrame({"x": [f"{i * (part['x'].min() + seed)}" for i in range(100 ** (part["x"].min() // 3))]})

    whole = run_shards(rows, tmp_path / "whole", do=grows)
    with full_disk(10_000), pytest.raises(StorageError, match="free some space"):
        run_shards(rows, tmp_path / "full", do=grows)
    assert [p.name[:6] for p in sorted((tmp_path / "full").iterdir())] == ["000000", "000001"]
    pd.testing.assert_frame_equal(run_shards(rows, tmp_path / "full", do=grows), whole)


def test_seeds_differ_by_each_part():
    seeds = {derive_seed(*key) for key in [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1)]}
    assert len(seeds) == 4 and all(0 <= s < 2**32 for s in seeds)


def test_fingerprint_changes_with_any_part():
    frame = pd.DataFrame({"x": [1]})
    assert fingerprint(frame, 1) != fingerprint(frame, 2) != fingerprint(frame.assign(x=2), 2)
    assert fingerprint(frame, {"a": 1}) == fingerprint(frame.copy(), {"a": 1})


MINILM = ModelRef(source="package", name="all-minilm-l6-v2")
PROCESSES = Executor(kind="processes", workers=2, address=None)


@pytest.fixture
def judges(study):
    """An untrained critic and entailment model in the run directory, and both as they are used without shards."""
    heads = {"classes": 3, "pooling": "mean", "hidden": study.params.critic.hidden, "dropout": 0.1}, nli.HEAD
    torch.manual_seed(0)
    made = []
    for head, length in zip(heads, (study.params.critic.max_length, study.params.nli.max_length), strict=True):
        base, tokenizer = build_tiny("tiny-bert")
        model = classifier.PairClassifier(base, **head).eval()
        made.append(classifier.Classifier(model, tokenizer, length, CPU, torch.float32))
    one, two = critic.Critic(made[0], study.params.critic.head), nli.Nli(made[1], nli.ENTAILMENT)
    one.save(study.run.model("critic"), {})
    nli.save_nli(study, two, {})
    return one, two


def change(study, **compute):
    study.params = study.params.model_copy(
        update={"compute": study.params.compute.model_copy(update={"dtype": "float32", **compute})}
    )


@pytest.fixture
def rows(actions):
    contexts = [f"{'very ' * (i % 5)}near person {i % 13}" for i in range(40)]
    contexts[7] = contexts[31] = None
    return actions.head(40).assign(moral_variance=[1, -1] * 20, context=contexts)


def shards_of(study):
    return sorted(study.run.work("shards").rglob("*.parquet"))


@pytest.mark.parametrize("executor", [None, PROCESSES])
def test_a_critics_shards_give_its_scores(study, judges, rows, executor, forked):
    change(study, shard_rows=16, **({"executor": executor} if executor else {}))
    scores = critic.score_contexts(study, "critic", rows)
    np.testing.assert_allclose(scores, judges[0].score(rows), atol=1e-6)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [7, 31] and len(shards_of(study)) == 3


def test_what_was_scored_is_not_scored_again_unless_something_changed(study, judges, rows, monkeypatch):
    change(study, shard_rows=16)
    first = critic.score_contexts(study, "critic", rows)
    shards_of(study)[1].write_bytes(b"PAR1 cut")
    opened = []
    monkeypatch.setattr(critic, "load_critic", lambda *a: opened.append(a) or load_critic(*a))
    np.testing.assert_array_equal(critic.score_contexts(study, "critic", rows), first)
    np.testing.assert_array_equal(critic.score_contexts(study, "critic", rows), first)
    assert len(opened) == 1  # for the broken shard
    critic.score_contexts(study, "critic", rows.assign(context="at night"))
    assert len(opened) == 2


@pytest.mark.parametrize("executor", [None, PROCESSES])
def test_the_filters_shards_give_its_decisions(study, judges, executor, forked):
    change(study, shard_rows=3, **({"executor": executor} if executor else {}))
    rng = np.random.default_rng(0)
    texts = ["at night", "at a camp", "in a field", "to a friend", "in court"]
    groups = [[texts[i] for i in rng.integers(0, 5, size)] for size in (6, 1, 0, 5, 7, 2, 4)]
    section = study.params.nli.model_copy(update={"threshold": 0.3})
    study.params = study.params.model_copy(update={"nli": section})
    expected = nli.filter_unique(groups, judges[1], 0.3)
    assert nli.filter_groups(study, groups) == expected
    assert len(shards_of(study)) == 3 and 0 < sum(map(sum, expected.kept)) < 25


def test_the_models_must_be_there(study):
    with pytest.raises(MissingInputError, match="02_critic"):
        critic.score_contexts(study, "critic", pd.DataFrame())
    with pytest.raises(MissingInputError, match="03_nli_filter"):
        nli.filter_groups(study, [["at night"]])


def test_embeddings_are_unit_length_and_like_goes_with_like(study, monkeypatch):
    change(study, shard_rows=2)
    texts = ["a dog barks", "the puppy is barking", "tax law reform"]
    found = topics.embed(study, texts, MINILM)
    a, b, c = found
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert a @ b > 0.6 > 0.3 > a @ c
    monkeypatch.setattr(load, "load_model", lambda *a: pytest.fail("embedded again"))
    np.testing.assert_array_equal(topics.embed(study, texts, MINILM), found)


def test_recorded_toxicity_is_read_again_when_the_record_changes(study, tmp_path):
    record = tmp_path / "scores.tsv"
    record.write_text("text\ttoxicity\na\t0.25\n")
    settings = study.params.toxicity.model_copy(update={"scorer": "recorded", "recorded": str(record)})
    study.params = study.params.model_copy(update={"toxicity": settings})
    np.testing.assert_array_equal(toxicity.score_toxicity(study, ["a", "b"]), [0.25, np.nan])
    record.write_text("text\ttoxicity\na\t0.5\nb\t0.1\n")
    np.testing.assert_array_equal(toxicity.score_toxicity(study, ["a", "b"]), [0.5, 0.1])


def test_nothing_to_score(study, judges):
    assert critic.score_contexts(
        study, "critic", pd.DataFrame(columns=["action", "moral_variance", "context"])
    ).shape == (0,)
    assert nli.filter_groups(study, []).kept == []


def open_counting():
    return lambda part, seed: part.assign(n=1)


def test_no_rows_have_no_results_of_the_right_shape(study, judges, tmp_path):
    assert topics.embed(study, [], study.params.topics.embedder).shape == (0, 32)
    assert toxicity.score_toxicity(study, []).shape == (0,)
    assert judges[1].probabilities([], []).shape == (0, 3) and judges[1]([], []).shape == (0,)
    none = pd.DataFrame(columns=["text"])
    local = study.params.compute.executor
    found = shards.map_shards(none, 5, open_counting, tmp_path / "shards", seed=1, stage="work", executor=local)
    assert found.empty and list(found) == ["text", "n"]
