import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CPU

from drot_utils import critic, encoder, models, nli, scoring
from drot_utils.errors import MissingInputError
from drot_utils.settings import Executor, ModelRef
from drot_utils.tiny import build_tiny

MINILM = ModelRef(source="package", name="all-minilm-l6-v2")
PROCESSES = Executor(kind="processes", workers=2, address=None)


@pytest.fixture
def judges(study):
    """An untrained critic and entailment model in the run directory, and both as they are used without shards."""
    settings, place = study.params.critic, (CPU, torch.float32)
    torch.manual_seed(0)
    base, tokenizer = build_tiny("tiny-bert")
    model = encoder.PairClassifier(
        base, critic.CLASSES[settings.head], settings.pooling, settings.hidden, settings.dropout
    )
    one = critic.Critic(model.eval(), tokenizer, settings.head, settings.max_length, *place)
    one.save(study.run.model("critic"), {})
    base, tokenizer = build_tiny("tiny-bert")
    model = encoder.PairClassifier(base, len(nli.LABELS), **nli.HEAD)
    two = nli.Nli(model.eval(), tokenizer, 2, study.params.nli.max_length, *place)
    nli.save_nli(two, study.params.nli, study.run.model("nli"), {})
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
def test_a_critics_shards_give_its_scores(study, judges, rows, executor):
    change(study, shard_rows=16, **({"executor": executor} if executor else {}))
    scores = scoring.ShardedCritic(study).score(rows)
    np.testing.assert_allclose(scores, judges[0].score(rows), atol=1e-6)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [7, 31] and len(shards_of(study)) == 3


def test_what_was_scored_is_not_scored_again_unless_something_changed(study, judges, rows, monkeypatch):
    change(study, shard_rows=16)
    first = scoring.ShardedCritic(study).score(rows)
    shards_of(study)[1].write_bytes(b"PAR1 cut")
    opened = []
    load = scoring.load_critic
    monkeypatch.setattr(scoring, "load_critic", lambda *a: opened.append(a) or load(*a))
    np.testing.assert_array_equal(scoring.ShardedCritic(study).score(rows), first)
    np.testing.assert_array_equal(scoring.ShardedCritic(study).score(rows), first)
    assert len(opened) == 1  # for the broken shard
    scoring.ShardedCritic(study).score(rows.assign(context="at night"))
    assert len(opened) == 2


@pytest.mark.parametrize("executor", [None, PROCESSES])
def test_the_filters_shards_give_its_decisions(study, judges, executor):
    change(study, shard_rows=3, **({"executor": executor} if executor else {}))
    rng = np.random.default_rng(0)
    texts = ["at night", "at a camp", "in a field", "to a friend", "in court"]
    groups = [[texts[i] for i in rng.integers(0, 5, size)] for size in (6, 1, 0, 5, 7, 2, 4)]
    expected = nli.filter_unique(groups, judges[1], 0.3)
    assert scoring.ShardedNli(study).filter(groups, 0.3) == expected
    assert len(shards_of(study)) == 3 and 0 < sum(map(sum, expected.kept)) < 25


def test_the_models_must_be_there(study):
    with pytest.raises(MissingInputError, match="02_critic"):
        scoring.ShardedCritic(study)
    with pytest.raises(MissingInputError, match="03_nli_filter"):
        scoring.ShardedNli(study)


def test_embeddings_are_unit_length_and_like_goes_with_like(study, monkeypatch):
    change(study, shard_rows=2)
    texts = ["a dog barks", "the puppy is barking", "tax law reform"]
    found = scoring.embed(study, texts, MINILM)
    a, b, c = found
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert a @ b > 0.6 > 0.3 > a @ c
    monkeypatch.setattr(models, "load", lambda *a: pytest.fail("embedded again"))
    np.testing.assert_array_equal(scoring.embed(study, texts, MINILM), found)


def test_recorded_toxicity_is_read_again_when_the_record_changes(study, tmp_path):
    record = tmp_path / "scores.tsv"
    record.write_text("text\ttoxicity\na\t0.25\n")
    settings = study.params.toxicity.model_copy(update={"scorer": "recorded", "recorded": str(record)})
    study.params = study.params.model_copy(update={"toxicity": settings})
    np.testing.assert_array_equal(scoring.score_toxicity(study, ["a", "b"]), [0.25, np.nan])
    record.write_text("text\ttoxicity\na\t0.5\nb\t0.1\n")
    np.testing.assert_array_equal(scoring.score_toxicity(study, ["a", "b"]), [0.5, 0.1])


def test_nothing_to_score(study, judges):
    assert scoring.ShardedCritic(study).score(
        pd.DataFrame(columns=["action", "moral_variance", "context"])
    ).shape == (0,)
    assert scoring.ShardedNli(study).filter([], 0.5).kept == []


def test_no_rows_have_no_results_of_the_right_shape(study, judges, tmp_path):
    assert scoring.embed(study, [], study.params.topics.embedder).shape == (0, 32)
    assert scoring.score_toxicity(study, []).shape == (0,)
    assert judges[1].probabilities([], []).shape == (0, 3) and judges[1]([], []).shape == (0,)
    none = pd.DataFrame(columns=["text"])
    found = scoring.map_rows(study, none, lambda: lambda part, seed: part.assign(n=1), "work", "rows")
    assert found.empty and list(found) == ["text", "n"]
