"""Tests of `release`."""

import csv
import html
import json
import re
import shutil
import subprocess

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import NASTY
from datasets import load_dataset
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from drot_utils.__main__ import main
from drot_utils.data import corpora
from drot_utils.data.table import CANDIDATES, empty_columns, visible, write_candidates
from drot_utils.report import release
from drot_utils.study.outputs import BY_HAND, finish
from drot_utils.study.params import load_params
from drot_utils.study.paths import Run

FILES = [
    "CITATION.cff",
    "LICENSE",
    "README.md",
    "SHA256SUMS",
    "candidates.parquet",
    "croissant.json",
    "d-rot.parquet",
    "d-rot.tsv",
]
HOSTILE = [
    f"{NASTY}{i} \u202egnol\u202c \u05d0\u05d1 [x](javascript:alert(1)) <img src=x onerror=alert(1)> `a` __b__ www.x.org"
    for i in range(5)
]


@pytest.fixture
def rows(candidates, actions):
    """Five kept rows and one that does not parse, of two of the built-in actions."""
    ids = actions["action_id"].iloc[[1, 0, 0, 1, 1, 0]].to_numpy()
    kept = candidates["context"].notna()
    score = kept.map({True: 0.9, False: None}).astype("float64")
    return candidates.assign(action_id=ids, critic_score=score, nli_kept=kept, kept=kept)


@pytest.fixture
def folder(rows, actions, smoke, tmp_path):
    """An exported data set."""
    return release.export_drot(rows, actions, smoke, 0.75, tmp_path / "export")


def run_snippets(card, folder, monkeypatch):
    """Run the Python of a card in its folder and return the names it leaves."""
    monkeypatch.chdir(folder)
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(snippet, names)
    return names


def test_what_is_exported_is_what_users_read(rows, actions, smoke, tmp_path):
    rows.loc[0, "context"] = "a\ttab and\na line break"
    folder = release.export_drot(rows, actions, smoke, 0.75, tmp_path / "export")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    table = pd.read_parquet(folder / "d-rot.parquet")
    assert (
        list(table)[:6] == release.COLUMNS and "rot_judgment" in table and "action_id" not in table and len(table) == 5
    )
    text = corpora.read_tsv(folder / "d-rot.tsv", ["action", "moral-variance", "context", "rationale", "rot-judgment"])
    assert text["context"][0] == "a tab and a line break" and len(text) == 5
    loaded = load_dataset(str(folder), "d-rot", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == list(table) and loaded["moral_variance"][:5] == table["moral_variance"].tolist()
    every = load_dataset(str(folder), "candidates", split="train", cache_dir=str(tmp_path / "cache"))
    assert every.column_names == CANDIDATES.names and len(every) == 6 and every["context"][:].count(None) == 1


def test_tables_are_sorted_and_say_so(folder):
    for name in ("d-rot", "candidates"):
        file = pq.ParquetFile(folder / f"{name}.parquet")
        group = file.metadata.row_group(0)
        named = [(file.schema.column(c.column_index).name, c.descending) for c in group.sorting_columns]
        assert named == [("action", False), ("moral_variance", True)]
        column = group.column(0)
        assert column.compression == "ZSTD" and column.has_column_index and column.has_offset_index
        table = file.read().to_pandas()
        assert table.equals(table.sort_values(["action", "moral_variance"], ascending=[True, False], kind="stable"))
        for field in file.schema_arrow:
            assert field.name not in CANDIDATES.names or field.type == CANDIDATES.field(field.name).type


def test_the_files_have_the_sums_that_are_said(folder):
    said = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert [name for _, name in said] == [name for name in FILES if name != "SHA256SUMS"]
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
    assert done.returncode == 0


def test_an_export_in_pieces_is_the_export(folder, rows, actions, smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "CHUNK", 2)
    pieces = release.export_drot(rows, actions, smoke, 0.75, tmp_path / "pieces")
    assert (folder / "d-rot.tsv").read_bytes() == (pieces / "d-rot.tsv").read_bytes()
    pd.testing.assert_frame_equal(*(pd.read_parquet(place / "d-rot.parquet") for place in (folder, pieces)))


def test_the_card_says_what_a_hub_reads(folder):
    card = (folder / "README.md").read_text()
    for words in (
        "Machine-written, descriptive, never advice",
        "written by language models",
        "not quoted",
        "advise people",
    ):
        assert words in " ".join(card.split())
    header = DatasetCard(card).data.to_dict()
    assert header["pretty_name"] == "delta-Rules-of-Thumb (smoke run)" and header["license"] == "cc-by-4.0"
    assert header["size_categories"] == ["n<1K"] and header["annotations_creators"] == ["machine-generated"]
    names = {config["config_name"]: config["data_files"] for config in header["configs"]}
    assert names == {name: [{"split": "train", "path": f"{name}.parquet"}] for name in ("d-rot", "candidates")}
    counts = {info["config_name"]: info["splits"][0]["num_examples"] for info in header["dataset_info"]}
    assert counts == {"d-rot": 5, "candidates": 6}
    for name in names:
        for column in pq.read_schema(folder / f"{name}.parquet").names:
            assert f"| {column} | " in card


def test_the_snippets_of_the_card_run(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    names = run_snippets((folder / "README.md").read_text(), folder, monkeypatch)
    assert len(names["rows"]) == 5 and "moral-variance" in names["rows"]


@pytest.mark.parametrize(("rows", "size"), [(999, 0), (1000, 1), (99_999, 2), (100_000, 3), (1_157_000, 4)])
def test_sizes_are_those_of_the_hubs_list(rows, size):
    assert release.size_category(rows) == release.STEPS[size]


def test_hostile_texts_show_as_text(rows, actions, smoke, tmp_path):
    hostile = rows.assign(context=rows["context"].mask(rows["kept"].astype(bool), [*HOSTILE[:4], None, HOSTILE[4]]))
    folder = release.export_drot(hostile.assign(source="<b>s</b>"), actions, smoke, 0.75, tmp_path / "export")
    card = (folder / "README.md").read_text()
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---\n", 2)[2])
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    assert set(re.findall(r"<(\w+)", table)) == {"tbody", "tr", "td"} and table.count("<td") == 5 * 5
    shown = html.unescape(table)
    for text in HOSTILE:
        assert visible(re.sub(r"\s+", " ", text.replace("\t", r"\t"))) in re.sub(r"\s+", " ", shown)
    assert "\u202e" not in card and "<b>s" not in card
    for name, options in {"csv": {"quoting": csv.QUOTE_NONE}, "study": {}}.items():
        path = folder / "d-rot.tsv"
        texts = (
            pd.read_csv(path, sep="\t", keep_default_na=False, **options)
            if name == "csv"
            else corpora.read_tsv(path, [])
        )
        assert sorted(texts["context"]) == sorted(re.sub(r"[ \t]+", " ", text) for text in HOSTILE)


def test_croissant_is_valid_and_reads(folder):
    mlcroissant = pytest.importorskip("mlcroissant", reason="make lock, then the development packages")
    described = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not described.metadata.ctx.issues.errors and described.metadata.ctx.is_v1_1()
    row = next(iter(described.records("d-rot")))
    assert row["d-rot/action"].decode() == "Setting a fire" and row["d-rot/critic_score"] == 0.9
    assert len(list(described.records("candidates"))) == 6
    text = json.loads((folder / "croissant.json").read_text())
    assert text["rai:hasSyntheticData"] is True and "http://mlcommons.org/croissant/RAI/1.0" in text["conformsTo"]


def test_cards_of_other_corpora_do_not_claim_the_demos_licence(rows, actions, tmp_path):
    params = load_params("params/paper.yaml")
    folder = release.export_drot(rows, actions.assign(m="1"), params, 0.96, tmp_path / "export")
    card = (folder / "README.md").read_text()
    assert "cc-by-sa-4.0" in card and "written by language models for this project" not in " ".join(card.split())
    assert "| rot | string | the rule of thumb" in card and "of the action, as in its corpus &#40;m&#41;" in card
    assert "ShareAlike" in (folder / "LICENSE").read_text()


def test_rows_of_a_student_none_of_whose_texts_parses_do_not_spoil_the_export(rows, actions, smoke, tmp_path):
    nothing = empty_columns(rows.assign(source="none", context=None, rationale=None, critic_score=None, kept=False))
    together = pd.concat([empty_columns(rows), nothing], ignore_index=True)
    release.export_drot(together, actions, smoke, 0.5, tmp_path / "export")
    found = pd.read_parquet(tmp_path / "export" / "d-rot.parquet")["context"]
    assert sorted(found) == sorted(rows["context"].dropna())


def test_a_run_is_released_with_its_manifest(rows, smoke, output, capsys):
    assert main(["release", "--run", "smoke"]) == 1 and "make demo" in capsys.readouterr().err
    run = Run("smoke")
    record = {"files": {}, "parameters": smoke.model_dump(mode="json"), "written": "2026-01-02T03:04:05"}
    finish(run, "06_final_dataset", BY_HAND, record)
    assert main(["release", "--run", "other"]) == 1 and "choose among: smoke" in capsys.readouterr().err
    assert main(["release", "--run", "smoke"]) == 1 and "06_final_dataset" in capsys.readouterr().err
    write_candidates(rows, run.data("candidates_drot"))
    run.model("critic").mkdir(parents=True)
    (run.model("critic") / "settings.json").write_text('{"thresholds": {"dataset": 0.5}}')
    for _ in range(2):
        assert main(["release", "--run", "smoke"]) == 0
    folder = run.root / "release"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "manifest.json"])
    assert json.loads((folder / "croissant.json").read_text())["datePublished"] == "2026-01-02"
    shutil.rmtree(folder)
