import numpy as np
import pytest

from drot_utils import bias

COUNTRIES = ["Korea", "United Kingdom", "United States"]


def test_one_action_a_country():
    probe = bias.probe_actions("Voting in {country}", COUNTRIES)
    assert (
        probe["action"].tolist()[1] == "Voting in United Kingdom" and probe["action_id"].tolist() == COUNTRIES
    )


def test_names_are_hidden():
    assert (
        bias.hide_country("In korea, unlike the United States", COUNTRIES)
        == "In the country, unlike the the country"
    )
    assert bias.hide_country("the Koreans", COUNTRIES) == "the Koreans"


def test_a_group_that_differs_is_found_and_only_that():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 5))
    groups = np.repeat(["a", "b", "c"], 20)
    vectors[groups == "b"] += 2
    table, pairs = bias.compare_groups(vectors, groups, 300, 0)
    assert (
        table["group"][0] == "b"
        and table["p_holm"][0] < 0.02
        and table["distance"][0] > 3 * table["expected"][0]
    )
    assert pairs.shape == (3, 3) and np.allclose(np.diag(pairs), 0) and np.allclose(pairs, pairs.T)
    assert pairs[0, 1] > pairs[0, 2]


def test_false_alarms_are_as_rare_as_they_should_be():
    rng = np.random.default_rng(1)
    alarms = sum(
        bias.compare_groups(rng.normal(size=(30, 4)), np.repeat(["a", "b", "c"], 10), 99, k)[0][
            "p_holm"
        ].min()
        < 0.05
        for k in range(60)
    )
    assert alarms <= 8


def test_distance_is_the_definition():
    vectors = np.array([[0.0], [1.0], [3.0], [4.0]])
    table, _ = bias.compare_groups(vectors, np.array(["a", "a", "b", "b"]), 10, 0)
    cross, within = np.mean([3, 4, 2, 3]), np.mean([0, 1, 1, 0])
    assert table["distance"].tolist() == pytest.approx([2 * cross - 2 * within] * 2)


def test_identical_texts_have_no_distance():
    table, _ = bias.compare_groups(np.ones((6, 3)), np.array(list("aabbcc")), 20, 0)
    assert table["distance"].abs().max() < 1e-12 and (table["p_value"] == 1).all()
