"""The README and the pages in docs/: links lead somewhere, files and commands exist, numbers are those of the tables."""

import ast
import csv
import json
import re
import shlex

import pandas as pd
import pytest

from drot_utils.__main__ import main
from drot_utils.report import tables
from drot_utils.report.plan import plan_run
from drot_utils.study import forecast, graph, paths
from drot_utils.study.params import load_params, read_overrides
from drot_utils.study.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = 1300  # of the README, with its tables
PLACES = ("drot_utils/", "notebooks/", "params/", "data/demo/")


def list_anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def list_broken(page, text: str) -> list[str]:
    """Return the relative links of a page that lead nowhere, and the paths in backticks that do not exist."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        file = page.parent / place if place else page
        if re.match(r"[a-z]+:", target):
            continue
        if not file.exists() or (anchor and anchor not in list_anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    for path in re.findall(r"`([^`\s]+)`", text):
        if path.startswith(PLACES) and not re.search(r"[<>*{]", path) and not (ROOT / path).exists():
            broken.append(path)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_paths_lead_somewhere(page):
    assert list_broken(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One, two\n")
    text = (
        "[a](page.md) [b](#one-two) [c](https://x.org) [d](no.md) [e](page.md#no) `params/demo.yaml` `params/no.yaml`"
    )
    assert list_broken(page, text) == ["no.md", "page.md#no", "params/no.yaml"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= WORDS


def test_every_page_can_be_reached_from_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in text] == []


def test_every_notebook_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [
        path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb")) if f"](notebooks/{path.name})" not in text
    ] == []


def test_every_module_is_in_the_layout():
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    files = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "drot_utils").glob("*/*.py"))]
    assert [file for file in files if not file.endswith("__init__.py") and f"](../{file})" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    code = "\n".join([*re.findall(r"```console\n(.*?)```", text, re.DOTALL), *re.findall(r"`([^`\n]+)`", text)])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for made in re.findall(r"(?:^|\$ |&& )make ((?:[a-z][a-z-]*(?= |$) ?)+)", code, re.MULTILINE):
        assert set(made.split()) <= set(targets), made
    for command in re.findall(r"python -m drot_utils (\w+)", code):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0, command


def test_the_rows_shown_are_in_the_data_and_not_picked():
    def read(name):
        return pd.read_csv(ROOT / f"data/demo/{name}.tsv", sep="\t", quoting=csv.QUOTE_NONE)

    actions, words = read("actions")[["action-id", "action"]], {1: "more acceptable", -1: "less acceptable"}
    votes = read("reference_votes").query("form == 'evaluation_form' and set == 'greedy' and source == 'distill_final'")
    votes = votes.assign(yes=votes["q2"].isin(["Y", "S"]))
    votes = (
        votes.groupby(["action-id", "moral-variance", "context", "rationale"], sort=False)["yes"].mean().reset_index()
    )
    votes = votes.assign(by=votes["yes"].gt(0.5).map({True: "student: yes", False: "student: no"}))
    votes = votes.groupby(["by", "moral-variance"], sort=False).head(1)
    teacher = read("teacher_plain").assign(by="teacher")
    known = {}
    for name, rows in (("student", votes), ("teacher", teacher)):
        rows = rows.merge(actions, on="action-id").assign(direction=rows["moral-variance"].map(words).to_numpy())
        known[name] = set(
            rows[["action", "direction", "context", "rationale", "by"]].itertuples(index=False, name=None)
        )
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "acceptable |" in line]
    shown = {tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in lines}
    by_student = {row for row in shown if row[-1].startswith("student")}
    assert len(shown) == 6 and by_student == known["student"] and shown - by_student <= known["teacher"]


def test_every_image_has_words_for_who_cannot_see_it():
    texts = [page.read_text(encoding="utf-8") for page in [*PAGES, *(ROOT / "notebooks").glob("*.ipynb")]]
    images = [alt for text in texts for alt in re.findall(r"!\[([^\]]*)\]\(", text)]
    assert images and all(len(alt.split()) > 5 for alt in images)


def test_the_results_are_means_over_the_recorded_seeds(monkeypatch):
    monkeypatch.setattr(paths, "output_root", lambda: ROOT)
    monkeypatch.setattr(tables, "_has_own", lambda name, table: True)  # their stages' records are not here
    runs = ["reference", "reference/seed1", "reference/seed2"]
    found = "\n\n".join(tables.average_runs(runs))
    recorded = (ROOT / "figures/reference/seeds.md").read_text(encoding="utf-8")
    named = found.replace(", ".join(runs), "demo, seed1, seed2").replace("in reference/", "in ")
    named = named.replace("in reference", "in demo").splitlines()
    assert [*map(split, named)] == [*map(split, recorded.splitlines()[-len(named) :])]
    votes, part = {}, ""
    for cells in map(split, recorded.split("`vld_by_votes`")[1].splitlines()):
        if len(cells) == 5:
            part = cells[0] or part
            votes[part, cells[1]] = cells[2].partition(" (")[0]
    together = [
        pd.concat([pd.read_csv(ROOT / f"figures/{run}/{name}.csv") for run in runs])
        for name in ("table2", "vld_by_votes")
    ]
    means = together[0].groupby("model")[["auto_vld", "independent_vld"]].mean()
    greedy = together[1][together[1]["set"] == "greedy"]
    people = pd.read_csv(ROOT / "figures/reference/table2_human.csv").set_index("model")["paper_human_vld"]
    means = means.assign(different=greedy.groupby("model")["different_valid"].mean().round(), people=people)
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("| model |")[2].split("\n\n")[0]
    for line, model in zip(readme.splitlines()[2:], graph.in_order(means.index), strict=True):
        _, *levels, different, auto, independent, paper = split(line)
        assert levels == [votes.get((part, graph.label(model)), "") for part in ("greedy", "sampled")]
        expected = means.loc[model, ["different", "auto_vld", "independent_vld", "people"]].tolist()
        shown = [float(number or "nan") for number in (different, auto, independent, paper)]
        assert shown == pytest.approx(expected, abs=0.0051, nan_ok=True), line


def test_what_runs_will_take_is_what_the_forecast_says():
    plan = plan_run(load_params("params/paper.yaml")).set_index("stage")
    kinds = [plan.filter(like=of, axis=0).sum() for of in ("train ", "write: ")] + [
        plan.loc[of] for of in ("NLI filter", "critic", "fit critic")
    ]
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    assert re.findall(r"\| (\d+) \|$", page, re.MULTILINE) == [f"{kind['gpu_hours']:.0f}" for kind in kinds]
    assert f"{plan.loc['critic', 'count'] / 1e6:.1f} million contexts" in page
    page = (ROOT / "docs/running.md").read_text(encoding="utf-8")
    shown, rate = re.search(r"^(AMD EPYC, 2 cores, float32 .*, (\d+) GFLOP/s.*)$", page, re.MULTILINE).groups()
    machine = forecast.Machine("AMD EPYC", 2, False, "float32", "no native bfloat16", float(rate) * 1e9)
    demo = load_params("params/demo.yaml")
    assert shown == forecast.say(forecast.expect(graph.list_stages(demo, ablations=False), demo, machine), machine)


def split(line):
    """Return the cells of a Markdown table's line, however wide they are."""
    line = re.sub("--+", "--", line)
    return [cell.strip().replace("\u00a0", " ") for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def test_what_notebooks_tell_to_try_can_be_tried():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        (by_hand,) = re.findall(r"overrides\s=\s(\{.*?\})", text, re.DOTALL)
        (file, sets) = re.search(r"(params/\w+\.yaml)((?:\s+--set\s+(?:'[^']+'|\S+))+)", text).groups()
        given = [*shlex.split(sets)[1::2]]
        assert (
            load_params(file, ast.literal_eval(by_hand))
            != load_params(file)
            != load_params(file, read_overrides(given))
        )
