"""Tests of `figures`."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from drot_utils.analysis import evaluation
from drot_utils.data.paper import TABLE2
from drot_utils.report import figures
from drot_utils.study.paths import Run


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_stacked_bars_add_up():
    table = pd.DataFrame({"kept": [3, 1], "dropped": [2, 5]}, index=["d0", "d1"])
    axes = figures.draw_stacked(table, "rows", "t").axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axes.containers[1]]
    assert ends == [5, 6] and [t.get_text() for t in axes.get_yticklabels()] == ["d0", "d1"]


def test_a_confusion_matrix_shows_every_count():
    axes = figures.draw_confusion(pd.DataFrame([[7, 2], [0, 30]], ["a", "b"], ["a", "b"]), "t").axes[0]
    assert [text.get_text() for text in axes.texts] == ["7", "2", "0", "30"]


AGAINST = pd.DataFrame({
    "c": ["x", "y"], "distance": [0.2, 0.1], "expected_low": [0.05, 0.02], "expected_high": [0.15, 0.12], "p_holm": [0.001, 0.4],
})  # fmt: skip


def test_what_was_found_stands_on_the_interval_of_chance():
    figure = figures.draw_against(AGAINST, "c", "t")
    axes = figure.axes[0]
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.containers[0]] == [(0.05, 0.15), (0.02, 0.12)]
    assert axes.lines[0].get_xdata().tolist() == [0.2, 0.1]
    assert [text.get_text() for text in axes.texts] == [
        "p < .01",
        "p = 0.40",
    ] and "y 0.100 (p 0.40)" in figure.get_label()


DIFFERENCES = pd.DataFrame({
    "earlier": ["base", "distill_base"] * 4, "later": ["distill_base", "self_distill_1"] * 4, "metric": ["vld", "vld", "avg", "avg"] * 2,
    "difference": [0.4, 0.1] * 4, "low": [0.3, -0.1] * 4, "high": [0.5, 0.3] * 4, "critic": ["one"] * 4 + ["two"] * 4,
})  # fmt: skip


def test_differences_are_a_forest_of_intervals():
    figure = figures.draw_differences(DIFFERENCES)
    assert [axes.get_title() for axes in figure.axes] == ["Vld (top 1)", "Avg score (top 1)"]
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names == ["base to Distill_base", "Distill_base to Self_1"]
    segments = [c.get_segments() for c in figure.axes[0].collections if hasattr(c, "get_segments")]
    assert len(segments) == 2 and segments[0][1][:, 0] == pytest.approx([-0.1, 0.3])
    assert "base to Distill_base 0.40 [0.30, 0.50] by two" in figure.get_label()
    empty = figures.draw_differences(DIFFERENCES.iloc[:0])
    assert [text.get_text() for text in empty.axes[0].texts] == ["There is nothing to draw."]


def test_the_flow_is_in_shares():
    figure = figures.draw_flow({"D1": {"critic": 50, "nli": 12, "kept": 138, "repeats": 0}, "D2": {"kept": 0}}, "t")
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["D1 (200)", "D2 (0)"]
    assert [text.get_text() for text in axes.texts] == ["69", "6", "25"]
    assert "D1 (200): 69% kept, 6% NLI: says the same" in figure.get_label() and " 0%" not in figure.get_label()


def test_the_axis_of_lengths_ends_where_the_texts_do():
    figure = figures.draw_lengths({"x": pd.Series(["a b", "a b c " * 20])}, "t")
    assert figure.axes[0].get_xlim() == (0, 61) and sum(figure.axes[0].patches[0].get_xy()[:, 1] > 0)


def test_losses_have_a_panel_a_student():
    figure = figures.draw_losses({"distill_base": [2.0, 1.0], "self_distill_1": [0.5]})
    assert [axes.get_title() for axes in figure.axes] == ["Distill_base", "SelfDistill_1"]
    assert figure.get_label().endswith("Distill_base 2.00 to 1.00, SelfDistill_1 0.50 to 0.50.")


def test_a_figure_is_saved_with_its_words(tmp_path):
    from PIL import Image

    figure = figures.draw_losses({"distill_base": [2.0, 1.0]})
    png = figures.save_figure(figure, Run("smoke"), "losses")
    assert (
        Image.open(png).text["Description"] == figure.get_label()
        and b"/Subject" in png.with_suffix(".pdf").read_bytes()
    )


def test_nothing_to_draw_is_said_in_the_figure():
    columns = pd.DataFrame(columns=["name", "found", "found_low", "found_high"])
    drawn = [
        figures.draw_confusion(pd.DataFrame(), "t"),
        figures.draw_stacked(columns.set_index("name"), "rows", "t"),
        figures.draw_against(AGAINST.iloc[:0], "c", "t"),
        figures.draw_matrix(pd.DataFrame(), "t"),
    ]
    for k, figure in enumerate(drawn):
        assert [text.get_text() for text in figure.axes[0].texts] == ["There is nothing to draw."]
        figures.save_figure(figure, Run("smoke"), f"empty{k}")
    alone = figures.draw_matrix(pd.DataFrame([[0.0]], ["x"], ["x"]), "t")
    assert not alone.axes[0].texts


def test_figures_are_written_twice_and_the_same_each_time():
    run = Run("smoke")
    valid, scores = np.array([True, False, True, True]), np.array([0.9, 0.6, 0.7, 0.2])
    written = []
    for _ in range(2):
        figure = figures.draw_precision_recall({"dev": (valid, scores)}, 0.65, "dev")
        figures.save_figure(figure, run, "figure8")
        written.append([(run.figures / f"figure8{end}").read_bytes() for end in (".png", ".pdf")])
    assert written[0] == written[1] and written[0][0].startswith(b"\x89PNG") and written[0][1].startswith(b"%PDF")


def test_the_chosen_threshold_is_marked_where_it_lies():
    valid, scores = np.array([True, False, True, True]), np.array([0.9, 0.6, 0.7, 0.2])
    axes = figures.draw_precision_recall({"dev": (valid, scores)}, 0.5, "dev").axes[0]
    marker = next(line for line in axes.lines if line.get_marker() == "o")
    assert marker.get_xydata().tolist() == [[pytest.approx(2 / 3), pytest.approx(2 / 3)]]
    axes = figures.draw_precision_recall({"dev": (valid, scores)}, 0.2, "dev").axes[0]  # of the lowest score
    marker = next(line for line in axes.lines if line.get_marker() == "o")
    assert marker.get_xydata().tolist() == [[1, 0.75]]


def test_rounds_show_ours_the_other_critic_and_the_papers():
    index = pd.Index(["a", "b", "c"], name="action_id")
    table = pd.DataFrame({m: [0.2, 0.5, 0.8] for m in evaluation.METRICS}, index=index)
    rows = evaluation.summarize({"distill_base": table, "distill_final": table}, 50, 0)
    rows = rows.merge(TABLE2, on="model")
    figure = figures.draw_rounds(rows, ["distill_base", "distill_final"], {"auto_": "same critic"})
    assert len(figure.axes) == 4 and figure.axes[0].lines[-1].get_ydata().tolist() == [0.68, 0.86]
    axes = figures.draw_rounds(
        rows.assign(**dict.fromkeys(["auto_n_vld", "auto_n_vld_low", "auto_n_vld_high"], 14)),
        ["distill_base"],
        {"auto_": "same critic"},
        20,
    ).axes[2]
    assert axes.get_title() == "#Vld of 20" and axes.get_ylim() == (-0.8, 20.8)
    assert axes.lines[-1].get_label() == "the paper, by its critic (of 10)"


def test_the_votes_line_and_the_teachers_where_there_are_votes():
    models = ["teacher", "distill_base", "distill_final"]
    rows = TABLE2.merge(pd.DataFrame({"model": models}), how="right")
    rows = rows.assign(
        human_vld=[0.9, 0.4, 0.6], human_vld_low=[0.8, 0.3, 0.5], human_vld_high=[1.0, 0.5, 0.7], human_n_unq_vld=3.0
    )
    rows["auto_vld"] = 0.5
    figure = figures.draw_rounds(rows, models[1:], {"human_": "annotators", "auto_": "critic"})
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"annotators", "critic", "the teacher, by annotators"} <= set(legend)
    levels = [line.get_ydata() for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert [list(level) for level in levels] == [[0.9, 0.9]]
    silent = figures.draw_rounds(rows.drop(columns="human_vld"), models[1:], {"human_": "annotators"})
    assert not any(line.get_linestyle() == ":" for line in silent.axes[0].lines)


def test_who_judges_has_one_colour_and_mark_in_all_figures():
    rows = pd.DataFrame({"model": ["base"], "paper_auto_vld": 0.5}).assign(**{
        f"{prefix}{metric}": 0.5 for prefix in ("human_", "auto_", "independent_", "paper_auto_") for metric in figures.METRICS
    })  # fmt: skip
    names = {"human_": "votes", "auto_": "one", "independent_": "two"}
    without = {prefix: name for prefix, name in names.items() if prefix != "human_"}

    def looks(figure):
        bars = figure.axes[0].containers
        return {bar.get_label(): (bar[0].get_color(), bar[0].get_marker()) for bar in bars}

    every = looks(figures.draw_rounds(rows, ["base"], names))
    critics = looks(figures.draw_rounds(rows, ["base"], without))
    assert critics == looks(figures.draw_differences(DIFFERENCES)) == {name: every[name] for name in ("one", "two")}
    assert len(set(every.values())) == 3


def test_a_share_of_few_votes_is_no_point():
    table = pd.DataFrame({
        "writer": ["teacher", "distill_base"], "prompts": 10, "voted": [figures.ENOUGH - 1, figures.ENOUGH], "voted_valid": [1.0, 0.3],
        "voted_score": [0.4, 0.8], **dict.fromkeys(figures.COLLAPSE, 0.5),
    })  # fmt: skip
    lines = figures.draw_collapse(table).axes[-1].lines
    valid = lines[-1].get_ydata()
    assert np.isnan(valid[0]) and valid[1] == 0.3
    looks = [(line.get_color(), line.get_marker()) for line in lines]
    assert looks == [figures.MARKS[by] for by in ("auto_", "auto_", "human_")]


def test_every_kind_draws_on_small_and_odd_input():
    few = np.array([0.2, np.nan, 0.8])
    topics = pd.DataFrame({"topic": ["pet"], "count": [3]})
    drawn = [
        figures.draw_calibration(np.array([True, False]), np.array([0.9, 0.1])),
        figures.draw_fit(pd.DataFrame({"step": [1], "train_loss": [1.0], "dev_loss": [1.0]}), 1, "t"),
        figures.draw_losses({"distill_base": [1.0]}),
        figures.draw_confusion(pd.DataFrame([[1, 2], [0, 3]], ["a", "b"], ["a", "b"]), "t"),
        figures.draw_flow({"d0": {"kept": 1, "nli": 0}, "d1": {"kept": 2, "critic": 1}}, "t"),
        figures.draw_scores({"x": few}, None, "t"),
        figures.draw_lengths({"x": pd.Series(["a b", None])}, "t"),
        figures.draw_topics({"contexts": topics, "rationales": topics.iloc[:0]}, 5),
        figures.draw_against(AGAINST, "c", "t"),
        figures.draw_differences(DIFFERENCES),
        figures.draw_grouped(pd.DataFrame({"more": [0.1, 0.2], "less": np.nan}, ["own", "time"]), "share", "t"),
        figures.draw_matrix(pd.DataFrame([[0, 1], [1, 0]], ["x", "y"], ["x", "y"]), "t"),
        figures.draw_collapse(pd.DataFrame({
            "writer": ["teacher", "distill_base"], "prompts": 10, "voted": [0, 3], "voted_valid": [np.nan, 0.3], "voted_score": [np.nan, 0.8],
            **dict.fromkeys(figures.COLLAPSE, 0.5),
        })),
    ]  # fmt: skip
    for figure in drawn:
        assert figure.get_label().endswith(".") and len(figure.get_label()) > 10  # what is read to who cannot see it
        figure.draw_without_rendering()


def test_nothing_to_draw_is_said_in_every_kind_of_figure():
    none, no_flags = np.array([]), np.array([], dtype=bool)
    topics = pd.DataFrame({"topic": ["pet"], "count": [3]}).iloc[:0]
    drawn = [
        figures.draw_precision_recall({"dev": (no_flags, none)}, 0.5, "dev"),
        figures.draw_precision_recall({"dev": (np.array([False]), np.array([0.9]))}, 0.5, "dev"),
        figures.draw_calibration(no_flags, none),
        figures.draw_losses({"distill_base": []}),
        figures.draw_flow({}, "t"),
        figures.draw_scores({"all": np.array([np.nan]), "kept": none}, 0.5, "t"),
        figures.draw_lengths({"x": pd.Series([None], dtype="str")}, "t"),
        figures.draw_topics({"contexts": topics, "rationales": topics}, 5),
    ]
    for figure in drawn:
        texts = [text.get_text() for axes in figure.axes for text in axes.texts]
        assert set(texts) == {"There is nothing to draw."}
        figure.draw_without_rendering()
