"""Tests of the comparison in `chaos`; test_runner kills a round."""

from chaos import differences, files_of


def test_the_comparison_can_fail(tmp_path):
    for name, text in (("one", "a"), ("other", "b")):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "x.csv").write_text(text)
        (tmp_path / name / "manifest.json").write_text(name)
    one, other = files_of(tmp_path / "one"), files_of(tmp_path / "other")
    assert differences(one, other) == ["data/x.csv"] and differences(one, one) == []
    assert differences(one, {}) == ["data/x.csv"]
