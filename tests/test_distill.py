"""Tests of `distill`."""

import json
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drot_utils.analysis import statistics
from drot_utils.data import corpora, table
from drot_utils.data.gold import read_gold
from drot_utils.data.parsing import Parsed
from drot_utils.engine import load, writer
from drot_utils.engine.writer import Written
from drot_utils.method import critic, distill, nli, student
from drot_utils.method.nli import filter_unique
from drot_utils.report import release
from drot_utils.study.errors import DataError, MissingInputError
from drot_utils.study.outputs import BY_HAND, finish
from drot_utils.study.params import Threshold
from drot_utils.study.paths import write_text


class FixedCritic:
    """Scores by the length of the context."""

    def score(self, rows: pd.DataFrame) -> np.ndarray:
        return rows["context"].str.len().to_numpy(dtype=float) / 20


def letters_filter(study, groups):
    """Drop what has the same letters."""

    def entails(premises, hypotheses):
        pairs = zip(premises, hypotheses, strict=True)
        return np.array([float(p.replace(" ", "") == h.replace(" ", "")) for p, h in pairs])

    filtered = filter_unique(groups, entails, 0.5)
    POSSIBLE.append(filtered.pairs_possible)
    return filtered


POSSIBLE = []


@pytest.fixture
def apply(study, monkeypatch):
    """Apply the filters to rows, with these two as judges."""
    monkeypatch.setattr(distill, "filter_groups", letters_filter)

    def apply(rows, threshold, leave_out=()):
        scorer = distill.Scorer("x", FixedCritic().score, {"seed": 0.0, "distill": threshold})
        return distill.apply_filters(study, rows, scorer, "distill", leave_out)

    return apply


def test_actions_are_sampled_without_replacement(actions, smoke):
    parts = corpora.sample_actions(actions, smoke.corpus, 1)
    ids = [set(part["action_id"]) for part in parts.values()]
    assert sum(map(len, ids)) == len(set().union(*ids)) and [len(p) for p in parts.values()] == [40, 12, 12, 16, 12]
    splits = {name: set(part["split"]) for name, part in parts.items()}  # dev actions are in none of them
    assert splits == {name: {"test" if name == "test" else "train"} for name in parts}
    again = corpora.sample_actions(actions, smoke.corpus, 1)
    assert all(parts[k].equals(again[k]) for k in parts) and not parts["seed"].equals(
        corpora.sample_actions(actions, smoke.corpus, 2)["seed"]
    )


def test_all_that_remain(actions, smoke):
    plan = smoke.corpus.model_copy(update={"final_actions": None, "test_actions": None})
    parts = corpora.sample_actions(actions, plan, 1)
    assert len(parts["final"]) == 670 - 40 - 24 and len(parts["test"]) == 120


@pytest.mark.parametrize(
    "changes", [{"seed_actions": 700}, {"test_actions": 121}, {"seed_actions": 646, "final_actions": None}]
)
def test_fewer_actions_than_asked_for(actions, smoke, changes):
    with pytest.raises(DataError, match=r"asked for \d+ actions of the (train|test) split, found"):
        corpora.sample_actions(actions, smoke.corpus.model_copy(update=changes), 1)


def test_filters_flag_and_never_delete(candidates, apply):
    rows, kept, dropped = apply(candidates, 0.45)
    assert rows["nli_kept"].fillna(False).tolist() == [True, False, True, True, False, True] and pd.isna(
        rows["nli_kept"][4]
    )
    assert rows["kept"].tolist() == [True, False, True, True, False, False] and kept.index.tolist() == [0, 2, 3]
    assert rows["dropped"].astype(object).where(~rows["kept"], "").tolist() == ["", "nli", "", "", "unparsed", "critic"]
    assert dropped == {"unparsed": 1, "nli": 1, "critic": 1, "per_prompt": 0, "repeats": 0} and len(rows) == len(
        candidates
    )
    assert POSSIBLE[-1] == 3 * 2 + 2


def test_what_an_earlier_round_scored_is_not_scored_again(candidates, study, apply):
    asked = []
    scorer = distill.Scorer(
        "x", lambda rows: asked.append(rows.index.tolist()) or [0.9] * len(rows), {"distill": 0.5, "seed": 0.0}
    )
    earlier = candidates.assign(critic_score=[0.1, None, 0.6, None, None, 0.7])
    rows, kept, _ = distill.apply_filters(study, earlier, scorer, "distill", ("nli",))
    assert asked == [[1, 3, 4]] and kept.index.tolist() == [1, 2, 3, 5]
    again, _, _ = distill.apply_filters(study, rows, scorer, "distill", ("nli",))
    assert asked[1:] == [[]] and again["critic_score"].equals(rows["critic_score"])


def test_filters_can_be_left_out(candidates, apply):
    rows, _, dropped = apply(candidates, 0.45, ("nli",))
    assert rows["kept"].sum() == 4 and rows["nli_kept"].isna().all() and dropped["nli"] == 0
    rows, _, dropped = apply(candidates, 0.45, ("critic",))
    assert rows["kept"].sum() == 4 and not rows["kept"][4] and dropped["nli"] == 1 and dropped["critic"] == 0
    assert rows["critic_score"].notna().sum() == 5  # scores are kept where they do not filter
    assert apply(candidates, 0.45, ("nli", "critic"))[0]["kept"].sum() == 5


def test_a_filter_of_ones_own_is_counted_in_its_place(candidates, apply, monkeypatch):
    short = lambda rows, study, threshold: ({}, {"short": rows["context"].str.split().str.len() < 3})  # noqa: E731
    unparsed, *others = distill.FILTERS.items()
    monkeypatch.setattr(distill, "FILTERS", dict([unparsed, ("short", short), *others]))
    rows, _, dropped = apply(candidates, 0.45)
    assert list(dropped)[:4] == ["unparsed", "short", "nli", "critic"] and dropped["short"] == 1
    assert rows["kept"].sum() + sum(dropped.values()) == len(rows)
    assert pd.isna(rows["nli_kept"][5])  # who is dropped before blocks nobody


SCORES = st.sampled_from([0.2, 0.5, 0.5000001, 0.9])
WRITTEN = st.lists(st.tuples(st.sampled_from(["a1", "a2"]), st.sampled_from([1, -1]), st.sampled_from("xXyz"), SCORES))


def capped(study, drawn, per_prompt, repeats, seed=1, writer="distill_base"):
    """Apply the filters but the NLI filter to such rows, with these caps, and a threshold that drops the lowest score."""
    rows = pd.DataFrame(drawn, columns=["action_id", "moral_variance", "context", "score"]).astype({"context": "str"})
    rows = rows.assign(source=writer, candidate=range(len(rows)), critic_score=None)
    limits = study.params.distill.model_copy(update={"max_per_prompt": per_prompt, "max_repeats": repeats})
    study.params = study.params.model_copy(update={"distill": limits, "seed": seed})
    scorer = distill.Scorer("x", lambda rows: rows["score"].to_numpy(), {"seed": 0.0, "distill": 0.5})
    return distill.apply_filters(study, rows, scorer, "distill", ("nli",))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WRITTEN, st.sampled_from([None, 1, 2, 3]), st.sampled_from([None, 1, 2]), st.integers(0, 3))
def test_caps_keep_the_best_of_a_prompt_and_few_of_a_text(study, drawn, per_prompt, repeats, seed):
    rows, kept, dropped = capped(study, drawn, per_prompt, repeats, seed)
    assert rows["kept"].sum() + sum(dropped.values()) == len(rows) == len(drawn)
    assert kept.index.is_monotonic_increasing and rows["candidate"].tolist() == list(range(len(drawn)))
    ranked = rows[rows["dropped"].isin(["per_prompt", "repeats"]) | rows["kept"]]
    for _, prompt in ranked.groupby(table.PROMPT):
        best = sorted(zip(-prompt["critic_score"], prompt["candidate"], strict=True))[:per_prompt]
        assert set(prompt.loc[prompt["dropped"] != "per_prompt", "candidate"]) == {place for _, place in best}
    left = ranked[ranked["dropped"] != "per_prompt"]
    for _, same in left.groupby(left["context"].str.lower()):
        assert same["kept"].sum() == min(len(same), repeats or len(same))
    pd.testing.assert_frame_equal(rows, capped(study, drawn, per_prompt, repeats, seed)[0])


def test_which_repeats_stay_is_drawn_and_the_teachers_rows_all_stay(study):
    drawn = [(f"a{i}", 1, "Xx"[i % 2], 0.9) for i in range(40)]
    chosen = {tuple(capped(study, drawn, None, 3, seed)[1].index) for seed in range(5)}
    assert len(chosen) == 5 and all(len(rows) == 3 for rows in chosen)
    assert len(capped(study, drawn + drawn, 1, 3, writer="teacher")[1]) == 80
    drawn[0] = ("a0", 1, "x", 0.1)
    assert len(capped(study, drawn, 1, 3, writer="teacher")[1]) == 40  # by the threshold for the seed
    stay = study.params.distill.model_copy(update={"teacher_stays": False})
    study.params = study.params.model_copy(update={"distill": stay})
    rows = capped(study, drawn, 1, 3, writer="teacher")[0]
    assert rows["kept"].sum() == 39 and rows["dropped"][0] == "critic"


def test_caps_take_seconds_on_a_million_rows(study):
    rng, rows = np.random.default_rng(0), 1_000_000
    drawn = {"action_id": rng.integers(0, 50_000, rows).astype(str), "moral_variance": rng.choice([1, -1], rows),
             "context": rng.integers(0, 400_000, rows).astype(str), "score": rng.random(rows)}  # fmt: skip
    began = time.perf_counter()
    _, kept, dropped = capped(study, drawn, 3, 3)
    assert time.perf_counter() - began < 40  # 5 s on an idle core
    assert len(kept) + sum(dropped.values()) == rows and dropped["per_prompt"] > 0 and dropped["repeats"] > 0


def test_a_score_at_the_threshold_passes(candidates, apply):
    exact = 13 / 20  # "at a campsite"
    assert apply(candidates, exact)[0]["kept"][0]


def test_rows_that_are_counted_by_part_add_up(candidates, apply):
    rows, _, dropped = apply(candidates, 0.45)
    parts = [distill.count_dropped(part) for _, part in rows.groupby("action_id")]
    assert {name: sum(part[name] for part in parts) for name in dropped} == dropped


def test_fine_tune_keeps_a_record_and_is_not_done_twice(study, candidates, monkeypatch):
    rows = candidates[candidates["context"].notna()]
    record = student.fine_tune(study, rows, "distill_base", start=None, learning_rate=1e-3, epochs=2)
    assert record["rows"] == 5 and record == student.read_training(study, "distill_base")
    monkeypatch.setattr(student.trainer, "train", lambda *a, **k: pytest.fail("trained again"))
    assert student.fine_tune(study, rows, "distill_base", start=None, learning_rate=1e-3, epochs=2) == record


def test_nothing_kept_is_an_error(study, candidates):
    with pytest.raises(DataError, match="lower the critic's threshold"):
        student.fine_tune(study, candidates.iloc[:0], "distill_base", start=None, learning_rate=1e-3, epochs=1)


def test_a_round_in_which_nothing_is_kept_is_counted_and_can_be_kept(candidates, study, apply):
    rows, kept, dropped = apply(candidates, 2.0)
    assert kept.empty and sum(dropped.values()) == len(rows)
    path = table.write_candidates(kept, study.run.data("d1"))
    union = pd.concat([table.read_table(path), rows], ignore_index=True)
    union, kept, _ = apply(union, 2.0)
    assert union["kept"].sum() == 0 and len(union) == len(rows)
    assert statistics.table1(kept)["entries"].sum() == 0
    nobody = release.export_drot(
        rows.assign(kept=False),
        corpora.read_actions("data/demo/actions.tsv"),
        study.params,
        0.5,
        study.run.root / "export",
    )
    assert "written by\nnobody;" in (nobody / "README.md").read_text()


def test_scorers_are_whom_the_parameters_name(study, monkeypatch):
    monkeypatch.setattr(distill, "score_contexts", lambda study, name, rows: name)
    monkeypatch.setattr(distill, "load_panel", lambda study: SimpleNamespace(score=lambda rows: "the judges"))
    for name in ("critic", "critic_independent", "judges"):
        study.run.model(name).mkdir(parents=True, exist_ok=True)
        (study.run.model(name) / "settings.json").write_text(json.dumps({"thresholds": {"distill": 0.5}}))
    expected = {
        ("critic", "same"): ["critic", "critic_independent"],
        ("critic", "independent"): ["critic_independent", "critic"],
        ("critic", "judges"): ["the judges", "critic_independent"],
        ("judges", "same"): ["the judges", "critic_independent"],
        ("judges", "independent"): ["critic_independent", "the judges"],
    }
    for (filters, evaluates), critics in expected.items():
        section = study.params.judges.model_copy(update={"filter": filters})
        evaluation = study.params.evaluation.model_copy(update={"critic": evaluates})
        study.params = study.params.model_copy(update={"judges": section, "evaluation": evaluation})
        found = distill.load_scorers(study)
        second = "filter" if evaluates == "independent" else "independent"
        assert [o.score(None) for o in found.values()] == critics and [*found] == ["auto_", f"{second}_"]
        assert [o.label.endswith("that filtered") for o in found.values()].count(True) == (evaluates != "judges")
    (study.run.model("critic_independent") / "settings.json").unlink()
    with pytest.raises(MissingInputError, match="02_critic"):
        distill.load_scorers(study)  # names it first
    evaluation = study.params.evaluation.model_copy(update={"critic": "same"})
    alone = study.params.critic.model_copy(update={"independent_share": 0.0})  # a folder of an earlier run may be there
    study.params = study.params.model_copy(update={"evaluation": evaluation, "critic": alone})
    assert list(distill.load_scorers(study)) == ["auto_"]


def test_thresholds_by_other_rules_are_refused(study):
    rules = critic.list_rules(study.params.critic)
    record = {"thresholds": {"distill": 0.5}, "rules": rules}
    write_text(study.run.model("critic") / "settings.json", json.dumps(record))
    assert distill.load_scorer(study).thresholds == {"distill": 0.5}
    changed = study.params.critic.model_copy(update={"threshold_distill": Threshold(value=0.9)})
    study.params = study.params.model_copy(update={"critic": changed})
    with pytest.raises(
        DataError, match=r"(?s)other values of critic.threshold_distill\n.*run 02_critic with these parameters first"
    ):
        distill.load_scorer(study)


def test_what_another_critic_scored_is_named(study):
    def train(loss, threshold):
        record = {"curve": [{"dev_loss": loss}], "thresholds": {"dataset": threshold}}
        write_text(study.run.model("critic") / "settings.json", json.dumps(record))
        return distill.load_scorer(study)

    stages = ["04_distill_base", "05_self_distill-1", "05_self_distill-2"]
    before = train(0.5, 0.8)
    for stage in stages[:2]:  # of the third nothing is known
        finish(study.run, stage, BY_HAND, {"files": {}, "scored_by": before.known_by})
    assert distill.warn_mixed(study, train(0.5, 0.9), stages) == []
    now = train(0.4, 0.8)
    finish(study.run, stages[0], BY_HAND, {"files": {}, "scored_by": now.known_by})
    (said,) = distill.warn_mixed(study, now, stages)
    assert "another critic scored the rows of 05_self_distill-1. Run these" in said


ACTIONS = ["Telling a lie", "Setting a fire"]


@pytest.fixture
def keyboard(study, actions, smoke, monkeypatch):
    """A study with an untrained student, of whose texts nine in ten parse, and with a critic and an NLI model of one step."""
    model, tokenizer = load.build_tiny("tiny-llama")
    load.save_model(model, tokenizer, study.run.model("distill_base"), study.dtype)
    one_step = {"max_steps": 1, "evaluations": 1}
    sections = {name: getattr(smoke, name).model_copy(update=one_step) for name in ("critic", "nli")}
    study.params = smoke.model_copy(update=sections)
    gold = read_gold(smoke.critic.gold, actions)
    gold = gold[gold["shift"].notna()].head(32)
    critic.train_critic(study, gold, gold)[0].save(study.run.model("critic"), {"thresholds": {"distill": 0.5}})
    trained, *_ = nli.train_nli(study, corpora.read_groups("data/demo/entailment_groups.jsonl").head(80))
    nli.save_nli(study, trained, {})

    def parse(text):
        return None if text[:1] in "aeiou" else Parsed(text[:20].strip() or "none", text[20:40])

    monkeypatch.setattr(student, "parse_student", parse)
    monkeypatch.setattr(writer, "Written", lambda text, tokens, whole: Written(text, tokens))  # it never learnt to end
    monkeypatch.setattr(distill, "load_panel", lambda study: pytest.fail("asked the panel"))
    return study


def test_a_student_is_asked_about_ones_own_actions(keyboard):
    rows = distill.ask_student(keyboard, "distill_base", ACTIONS, 2)
    assert list(rows) == distill.ANSWER and rows["action"].unique().tolist() == ACTIONS
    assert rows.groupby(["action", "moral_variance"]).size().eq(2).all() and len(rows) == 8
    assert rows["moral_variance"].tolist() == [1, 1, -1, -1] * 2
    assert rows.groupby(["action", "moral_variance"])["critic_score"].is_monotonic_decreasing.all()
    again = distill.ask_student(keyboard, "distill_base", ACTIONS, 2)
    pd.testing.assert_frame_equal(again, rows)
    typed = [" Setting a  fire.", "Telling a lie\n", "Setting a fire"]
    turned = distill.ask_student(keyboard, "distill_base", typed, 2)
    assert turned["action"].unique().tolist() == ACTIONS[::-1]
    pd.testing.assert_frame_equal(pd.concat([turned[4:], turned[:4]], ignore_index=True), rows)
    shutil.rmtree(keyboard.run.work("shards"))
    pd.testing.assert_frame_equal(distill.ask_student(keyboard, "distill_base", ACTIONS, 2), rows)


def test_all_candidates_say_why_they_are_not_chosen(keyboard, monkeypatch):
    def one_in_two(study, groups):
        for group in groups:
            assert len(group) > 2
        return nli.Filtered([[None if i % 2 == 0 else i - 1 for i in range(len(group))] for group in groups])

    monkeypatch.setattr(distill, "filter_groups", one_in_two)
    every = distill.ask_student(keyboard, "distill_base", "Setting a fire", 2, raw=True)
    assert len(every) == 2 * 4 * 2 and every["raw"].ne("").all()
    parsed = every[every["context"].notna()]
    assert len(parsed) < len(every) and every.loc[every["context"].isna(), ["nli_kept", "same_as"]].isna().all(None)
    for _, group in parsed.groupby("moral_variance"):
        assert group["critic_score"].is_monotonic_decreasing
        assert group["nli_kept"].tolist() == [i % 2 == 0 for i in range(len(group))]
        assert group["same_as"][1::2].tolist() == group["context"][: len(group) // 2 * 2 : 2].tolist()
    best = distill.ask_student(keyboard, "distill_base", ["Setting a fire"], 2)
    expected = parsed[parsed["nli_kept"]].groupby("moral_variance", sort=False).head(2)
    pd.testing.assert_frame_equal(best, expected[distill.ANSWER].reset_index(drop=True))


def test_fewer_contexts_where_all_say_the_same_or_none_parses(keyboard, monkeypatch):
    settings = keyboard.params.nli.model_copy(update={"threshold": 1e-6})
    keyboard.params = keyboard.params.model_copy(update={"nli": settings})
    every = distill.ask_student(keyboard, "distill_base", ACTIONS, raw=True)
    assert len(distill.ask_student(keyboard, "distill_base", ACTIONS)) == every["nli_kept"].sum() == 4
    assert every["same_as"].notna().sum() == every["context"].notna().sum() - 4
    monkeypatch.setattr(student, "parse_student", lambda text: None)
    shutil.rmtree(keyboard.run.work("shards"))
    assert distill.ask_student(keyboard, "distill_base", ACTIONS).empty
    every = distill.ask_student(keyboard, "distill_base", ACTIONS, raw=True)
    assert len(every) == 48 and every["nli_kept"].isna().all() and every["critic_score"].isna().all()


def test_what_cannot_be_asked_is_named(keyboard, monkeypatch):
    monkeypatch.setattr(distill, "write_contexts", lambda *a: pytest.fail("wrote"))
    long = "Telling a lie to somebody " * 12
    with pytest.raises(DataError) as caught:
        distill.ask_student(keyboard, "distill_base", ["Setting a fire", " ", ".", long])
    said = str(caught.value)
    assert "number 2, ' ', is empty" in said and "number 3, '.', is empty" in said
    assert f"'{long[:60]}'... is too long" in said and "96 tokens" in said and "Setting a fire' is" not in said
    for asked, n in (([], 3), (ACTIONS, 0)):
        with pytest.raises(DataError, match=f"found {len(asked)} and {n}"):
            distill.ask_student(keyboard, "distill_base", asked, n)
    with pytest.raises(MissingInputError, match="05_self_distill"):
        distill.ask_student(keyboard, "self_distill_1", ACTIONS)


def test_an_action_that_fits_is_read_in_full(keyboard):
    (author, ask, _), limit = student.open_author(keyboard, "distill_base"), keyboard.params.student.max_prompt_length
    texts = [f"{'Lying ' * k}now" for k in range(60)]
    cut = student.find_cut(keyboard, "distill_base", texts)
    longest = [max(len(author.tokenizer(ask(text, way))["input_ids"]) for way in (1, -1)) for text in texts]
    assert cut == [text for text, tokens in zip(texts, longest, strict=True) if tokens > limit] and 0 < len(cut) < 60
