"""Tests of `release`."""

import pandas as pd
from datasets import load_dataset
from huggingface_hub import DatasetCard

from drot_utils.data import corpora
from drot_utils.data.table import empty_columns
from drot_utils.method import student
from drot_utils.report import release
from drot_utils.study.params import load_params


def test_what_is_exported_is_what_users_read(candidates, actions, smoke, tmp_path):
    rows = candidates[candidates["context"].notna()].assign(critic_score=0.9)
    rows["action_id"] = actions["action_id"].iloc[[0, 0, 0, 1, 1]].to_numpy()
    rows.loc[0, "context"] = "a\ttab and\na line break"
    folder = release.export_drot(rows, actions, smoke, 0.75, tmp_path / "export")
    table = pd.read_parquet(folder / "d-rot.parquet")
    assert list(table)[:6] == ["action", "moral-variance", "context", "rationale", "critic-score", "source"]
    assert "rot-judgment" in table and "action-id" not in table and len(table) == 5
    text = corpora.read_tsv(folder / "d-rot.tsv", ["action", "moral-variance", "context", "rationale"])
    assert text["context"][0] == "a tab and a line break" and len(text) == 5
    loaded = load_dataset(str(folder), "d-rot", cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.column_names == list(table) and loaded["moral-variance"][:5] == table["moral-variance"].tolist()


def test_an_export_in_pieces_is_the_export(candidates, actions, smoke, tmp_path, monkeypatch):
    rows = candidates[candidates["context"].notna()].assign(critic_score=0.9, action_id=actions["action_id"][0])
    whole = release.export_drot(rows, actions, smoke, 0.75, tmp_path / "whole")
    monkeypatch.setattr(release, "CHUNK", 2)
    pieces = release.export_drot(rows, actions, smoke, 0.75, tmp_path / "pieces")
    assert (whole / "d-rot.tsv").read_bytes() == (pieces / "d-rot.tsv").read_bytes()
    pd.testing.assert_frame_equal(*(pd.read_parquet(place / "d-rot.parquet") for place in (whole, pieces)))


def test_card_is_honest_about_machine_written_data(candidates, actions, smoke, tmp_path):
    rows = candidates[candidates["context"].notna()].assign(critic_score=0.9, action_id=actions["action_id"][0])
    card = (release.export_drot(rows, actions, smoke, 0.75, tmp_path) / "README.md").read_text()
    for words in (
        "Machine-written, descriptive, never advice",
        "written by language models",
        "cc-by-4.0",
        "config_name: d-rot",
    ):
        assert words in card
    header = DatasetCard(card).data.to_dict()
    assert header.pop("pretty_name") == "delta-Rules-of-Thumb (smoke run)"
    assert header == {
        "license": "cc-by-4.0", "language": ["en"], "size_categories": ["n<1K"],
        "configs": [{"config_name": "d-rot", "data_files": "d-rot.parquet"}],
    }  # fmt: skip


def test_a_student_says_what_it_is_not_for(smoke):
    card = student.model_card("distill_final", "self_distill_2", 1234, 50, False, smoke)
    for words in (
        "never advice",
        "from self_distill_2 on 1,234",
        "much of what it writes is nonsense",
        "text-generation",
    ):
        assert words in " ".join(card.split())


def test_cards_of_other_corpora_do_not_claim_the_demos_licence(candidates):
    params = load_params("params/paper.yaml")
    rows = candidates[candidates["context"].notna()]
    card = release.data_card(rows, ["rot"], params, 0.96)
    assert "cc-by-sa-4.0" in card and "written by language models for this project" not in " ".join(card.split())
    assert "| `rot` | as in the actions' corpus |" in card and "text2text" in student.model_card(
        "x", None, 1, 1, True, params
    )


def test_rows_of_a_student_none_of_whose_texts_parses_do_not_spoil_the_export(candidates, actions, smoke, tmp_path):
    ids = actions["action_id"].head(2).repeat(3).to_numpy()
    rows = empty_columns(candidates.assign(action_id=ids))
    nothing = empty_columns(candidates.assign(action_id=ids, context=None, rationale=None))
    together = pd.concat([rows, nothing], ignore_index=True)
    kept = together[together["context"].notna()].reset_index(drop=True)
    release.export_drot(kept, actions, smoke, 0.5, tmp_path)
    assert pd.read_parquet(tmp_path / "d-rot.parquet")["context"].tolist() == kept["context"].tolist()
