"""Tests of `bias`."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from conftest import run_cells

from drot_utils.analysis import bias
from drot_utils.data.table import PROMPT, empty_columns
from drot_utils.method import student
from drot_utils.study.outputs import closing_path

COUNTRIES = ["Korea", "United Kingdom", "United States"]


def test_one_action_a_country():
    probe = bias.probe_actions("Voting in {country}", COUNTRIES)
    assert probe["action"].tolist()[1] == "Voting in United Kingdom" and probe["action_id"].tolist() == COUNTRIES


def test_names_are_hidden():
    assert (
        bias.hide_country("In korea, unlike the United States", COUNTRIES) == "In the country, unlike the the country"
    )
    assert bias.hide_country("the Koreans", COUNTRIES) == "the Koreans"


def test_a_group_that_differs_is_found_and_only_that():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 5))
    groups = np.repeat(["a", "b", "c"], 20)
    vectors[groups == "b"] += 2
    table, pairs = bias.compare_groups(vectors, groups, 300, 0)
    assert (table["expected_low"] <= table["expected"]).all() and (table["expected"] <= table["expected_high"]).all()
    assert table["group"][0] == "b" and table["p_holm"][0] < 0.02 and table["distance"][0] > 3 * table["expected"][0]
    assert pairs.shape == (3, 3) and np.allclose(np.diag(pairs), 0) and np.allclose(pairs, pairs.T)
    assert pairs[0, 1] > pairs[0, 2]


def test_false_alarms_are_as_rare_as_they_should_be(monkeypatch):
    monkeypatch.setattr("gc.collect", int)  # statsmodels calls it each time, which takes most of the test's
    rng = np.random.default_rng(1)
    alarms = sum(
        bias.compare_groups(rng.normal(size=(30, 4)), np.repeat(["a", "b", "c"], 10), 99, k)[0]["p_holm"].min() < 0.05
        for k in range(60)
    )
    assert alarms <= 8


def test_distance_is_the_definition():
    vectors = np.array([[0.0], [1.0], [3.0], [4.0]])
    table, _ = bias.compare_groups(vectors, np.array(["a", "a", "b", "b"]), 10, 0)
    cross, within = np.mean([3, 4, 2, 3]), np.mean([0, 1, 1, 0])
    assert table["distance"].tolist() == pytest.approx([2 * cross - 2 * within] * 2)


@pytest.mark.parametrize(("groups", "said"), [(["Korea"] * 6, "Texts of Korea only"), ([], "No texts")])
def test_one_group_has_nothing_to_be_compared_with(groups, said, capsys):
    table, pairs = bias.compare_groups(np.ones((len(groups), 5)), np.array(groups, dtype=object), 99, 0)
    assert list(table) == list(bias.COLUMNS) and table["texts"].tolist() == [6] * len(table)
    assert table[["distance", "expected", "p_value", "p_holm"]].isna().all(axis=None)
    assert pairs.shape == (len(table), len(table)) and f"{said}: there is nothing" in capsys.readouterr().out


@pytest.mark.parametrize("parsing", [0, 1, 2])
def test_notebook_10_where_hardly_anything_parses(study, parsing, monkeypatch):
    def write(study, name, actions, stage, n, method):
        prompts = pd.concat([student.list_prompts(actions)] * n, ignore_index=True)
        known = prompts["action_id"].isin(study.params.bias.countries[:parsing])
        rows = prompts.assign(candidate=prompts.groupby(PROMPT).cumcount(), source=name, raw="x", tokens=1)
        return empty_columns(rows.assign(context=np.where(known, "in " + rows["action_id"], None)))

    monkeypatch.setattr(student, "write_contexts", write)
    names = run_cells("10_cultural_bias", "params/smoke.yaml")
    table = pd.read_csv(study.run.figures / "bias.csv")
    assert table.columns.tolist() == ["country", *list(bias.COLUMNS)[1:]] and len(table) == parsing
    assert table["p_value"].count() == (parsing if parsing > 1 else 0) and names["matrix"].shape == (parsing, parsing)
    assert all((study.run.figures / f"{name}.png").exists() for name in ("bias", "bias_pairs"))
    record = json.loads(closing_path(study.run, "10_cultural_bias").read_text(), parse_constant=pytest.fail)
    assert record["rows"]["kept"] == 4 * parsing and len(record["distances"]) == parsing
    assert f"0 of {parsing if parsing > 1 else 0} countries differ" in record["summary"]


def test_identical_texts_have_no_distance():
    table, _ = bias.compare_groups(np.ones((6, 3)), np.array(list("aabbcc")), 20, 0)
    assert table["distance"].abs().max() < 1e-12 and (table["p_value"] == 1).all()


def test_equal_distances_are_ties_whatever_rounding_does():
    rng = np.random.default_rng(34)
    k, groups, each = rng.integers(2, 5), rng.integers(3, 9), rng.integers(2, 21)
    texts = rng.normal(size=(k, 384))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    written = rng.integers(0, k, groups * each)  # two texts, four in each of three groups
    names = np.repeat([f"c{i}" for i in range(groups)], each)
    table, _ = bias.compare_groups(texts[written].astype(np.float32), names, 2000, 1)
    p = table.set_index("group")["p_value"]
    # Exactly: of all ways to draw such a group, the share that is as far from the rest.
    found, ways = [written[names == name].sum() for name in ("c0", "c1")], [*itertools.combinations(written, each)]
    far = lambda count: abs(count / each - (written.sum() - count) / (len(written) - each))  # noqa: E731
    exact = [np.mean([far(sum(way)) >= far(count) - 1e-9 for way in ways]) for count in found]
    assert p[["c0", "c1"]].tolist() == pytest.approx(exact, abs=0.04)
