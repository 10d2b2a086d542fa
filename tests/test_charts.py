import matplotlib.pyplot as plt
import pandas as pd
import pytest

from drot_utils import charts, figures
from drot_utils.paths import Run


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_stacked_bars_add_up():
    table = pd.DataFrame({"kept": [3, 1], "dropped": [2, 5]}, index=["d0", "d1"])
    axes = charts.draw_stacked(table, "rows", "t").axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axes.containers[1]]
    assert ends == [5, 6] and [t.get_text() for t in axes.get_yticklabels()] == ["d0", "d1"]


def test_a_confusion_matrix_shows_every_count():
    axes = charts.draw_confusion(pd.DataFrame([[7, 2], [0, 30]], ["a", "b"], ["a", "b"]), "t").axes[0]
    assert [text.get_text() for text in axes.texts] == ["7", "2", "0", "30"]


def test_what_was_found_stands_against_chance():
    table = pd.DataFrame({"c": ["x", "y"], "found": [0.2, 0.1], "chance": [0.15, 0.05]})
    axes = charts.draw_against(table, "c", "found", "chance", "t").axes[0]
    assert [bar.get_width() for bar in axes.containers[0]] == [0.2, 0.1]
    assert axes.lines[0].get_xdata().tolist() == [0.15, 0.05]


def test_intervals_are_drawn_where_they_are():
    table = pd.DataFrame({"text": ["x"], "percent": [2.0], "low": [1.0], "high": [5.0]})
    axes = charts.draw_bars(table, "text", "percent", "t", "low", "high").axes[0]
    (interval,) = [c for c in axes.collections if hasattr(c, "get_segments")]
    assert interval.get_segments()[0][:, 0].tolist() == [1.0, 5.0]


def test_an_interval_may_end_at_its_value_but_for_rounding():
    table = pd.DataFrame({"text": ["x"], "percent": [0.0], "low": [1e-17], "high": [5.0]})
    assert charts.draw_bars(table, "text", "percent", "t", "low", "high").axes


def test_nothing_to_draw_is_said_in_the_figure():
    columns = pd.DataFrame(columns=["name", "found", "low", "high"])
    drawn = [
        charts.draw_confusion(pd.DataFrame(), "t"),
        charts.draw_stacked(columns.set_index("name"), "rows", "t"),
        charts.draw_bars(columns, "name", "found", "t", "low", "high"),
        charts.draw_against(columns, "name", "found", "low", "t"),
        charts.draw_matrix(pd.DataFrame(), "t"),
    ]
    for k, figure in enumerate(drawn):
        assert [text.get_text() for text in figure.axes[0].texts] == ["There is nothing to draw."]
        figures.save_figure(figure, Run("smoke"), f"empty{k}")
    alone = charts.draw_matrix(pd.DataFrame([[0.0]], ["x"], ["x"]), "t")
    assert not alone.axes[0].texts
