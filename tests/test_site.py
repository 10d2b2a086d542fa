"""Tests of `site`: the pages of a run, the table of its rows, and the map of them."""

import functools
import html.parser
import json
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import browser
import pandas as pd
import pyarrow.parquet as pq
import pytest

from drot_utils.__main__ import main
from drot_utils.data.table import for_reading, write_frame
from drot_utils.report import release, site, tables
from drot_utils.study.outputs import finish
from drot_utils.study.paths import ROOT, Run

HOSTILE = [
    "<script>alert(1)</script><img src=https://evil.example/x.png onerror=alert(2)>",
    "</script></td></table><b>bold</b> &amp; &lt;i&gt;",
    "[x](javascript:alert(3)) ![y](https://evil.example/y.png) **z** `w` $\\alpha$ {{ 7 }} {raw}`html`",
    "quotes \" ' ` \\ | ``` ::: <!-- --> ${alert(4)} {% raw %}",
    "שלום עולם \u202egnol\u202c مرحبا 🔥👩\u200d🚒 \x00 end",
    "```{raw} html\n<script>alert(5)</script>\n```",
]
FIRE = "Setting a fire at a campsite"
#: A figure.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
#: Addresses that are no other machine's.
OWN = ("data:", "blob:", "about:", "file:")


@pytest.fixture
def run(candidates, actions, smoke):
    """A finished run whose rows are hostile to browsers, with one notebook of a round and a table of their texts."""
    run = Run("smoke")
    texts = [FIRE, *HOSTILE, *(f"context {i}" for i in range(53))]
    rows = pd.concat([candidates.iloc[[0]]] * 60, ignore_index=True)
    ids = actions["action_id"].iloc[[i // 4 for i in range(60)]].to_numpy()
    rows = rows.assign(
        action_id=ids, action=texts, context=texts, rationale=texts[::-1], candidate=range(60), critic_score=0.9,
        kept=True, nli_kept=True, moral_variance=[1 if i % 3 else -1 for i in range(60)], source=["teacher", "distill_base"] * 30,
    )  # fmt: skip
    release.export_drot(rows, actions, smoke, 0.5, run.root / "data" / "export")
    places = pd.DataFrame({"text": texts, "topic": ["fire", "<b>x</b>", ""] * 20, "x": range(60), "y": range(60)})
    write_frame(places.astype({"x": "float32", "y": "float32"}), run.data("map"))
    tables.save_table(pd.DataFrame({"<u>name</u>": texts[:8]}), run, "table7", f"Table 7: {HOSTILE[0]}")
    book = json.loads((ROOT / "notebooks" / "05_self_distill.ipynb").read_text(encoding="utf-8"))
    # What real notebooks show: words, a table for reading, a figure with its words, and a data card (notebook 6).
    card = (run.root / "data" / "export" / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    shown = [
        {"text/html": for_reading(rows[["context", "rationale"]]).to_html()},
        {"image/png": PIXEL, "text/plain": "<Figure size 1x1 with 1 Axes>"},
        {"text/markdown": card.replace("# ", "### ", 1)},
    ]
    outputs = [{"output_type": "display_data", "metadata": {}, "data": data} for data in shown]
    outputs.append({"output_type": "stream", "name": "stdout", "text": "\n".join(HOSTILE)})
    next(cell for cell in book["cells"] if cell["cell_type"] == "code")["outputs"] = outputs
    for number in (1, 2):
        path = run.root / "notebooks" / f"05_self_distill-{number}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(book), encoding="utf-8")
    record = {"files": {}, "inputs": {"parameters": {}}}
    finish(run, "06_final_dataset", "x", record)
    return run


@pytest.fixture
def explorer(tmp_path, monkeypatch):
    """A package that holds an explorer's pages, as embedding-atlas does."""
    pages = tmp_path / "packages" / "embedding_atlas" / "static"
    for name in ("assets/a.js", "assets/duckdb-mvp-x.wasm", "assets/ort-wasm-x.wasm", "duckdb-wasm/wasm_mvp/a.wasm"):
        (pages / name).parent.mkdir(parents=True, exist_ok=True)
        (pages / name).write_text("")
    (pages / "index.html").write_text("<!doctype html><html><head></head><body></body></html>")
    (pages.parent / "__init__.py").write_text("raise SystemExit('is never imported')")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return pages


class Page(html.parser.HTMLParser):
    """What a page loads, what it links to, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.links, self.anchors, self.scripts = [], [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a":
            self.links.append(values.get("href") or "")
        else:
            self.loads += [values[name] for name in ("src", "srcset", "data") if values.get(name)]
            self.loads += [values["href"]] if tag == "link" and values.get("rel") not in ("canonical",) else []
        self.scripts += [f"{tag} {name}" for name in values if name.startswith("on")]


def list_problems(folder: Path) -> list[str]:
    """Return what pages below a folder load from elsewhere, and links that lead nowhere."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html") if "atlas" not in path.parts}
    problems = []
    for path, page in pages.items():
        problems += [f"{path.name} loads {what}" for what in page.loads if re.match(r"(?!data:)([a-z]+:|//)", what)]
        problems += [f"{path.name} runs {what}" for what in page.scripts]
        for link in [*page.loads, *page.links]:
            if re.match(r"(https?|data|mailto):", link):
                continue
            place, _, anchor = link.partition("#")
            goal = (path.parent / unquote(place.partition("?")[0])).resolve() if place else path
            if not goal.is_file() or (anchor and goal in pages and anchor not in pages[goal].anchors):
                problems.append(f"{path.name} leads to {link}")
    return problems


def check_images(folder: Path) -> None:
    """Fail where an image on a page has no words."""
    for page in folder.rglob("*.html"):
        assert all(image for image in re.findall(r'<img[^>]* alt="([^"]*)"', page.read_text(encoding="utf-8"))), page


def test_sources_are_readme_docs_what_they_link_to_and_the_run(run, tmp_path):
    site.gather_sources(run, tmp_path / "s")
    names = {path.relative_to(tmp_path / "s").as_posix() for path in (tmp_path / "s").rglob("*") if path.is_file()}
    assert {"README.md", "docs/glossary.md", "data/card/README.md", "tables.md", "api.md", "data.md"} <= names
    assert {"drot_utils/method/critic.py", "data/demo/README.md", "figures/reference/seeds.md"} <= names
    assert {
        "notebooks/05_self_distill-1.ipynb",
        "notebooks/05_self_distill.ipynb",
        "notebooks/01_seed_generation.ipynb",
    } <= names
    front = (tmp_path / "s" / "README.md").read_text()
    assert front.startswith((ROOT / "README.md").read_text()) and "05_self_distill <notebooks/05_self_distill>" in front
    assert "self_distill-2" in (tmp_path / "s" / "notebooks" / "05_self_distill.ipynb").read_text()
    assert "orphan" in (tmp_path / "s" / "data" / "demo" / "README.md").read_text()
    table = (tmp_path / "s" / "tables.md").read_text()
    assert "&lt;script&gt;" in table and "<script>" not in table and "<img" not in table and "<u>" not in table


def test_the_map_holds_all_rows_and_asks_nobody(run, explorer):
    first = site.make_atlas("smoke")
    names = {path.relative_to(first.parent).as_posix() for path in first.parent.rglob("*") if path.is_file()}
    assert names == {"index.html", "assets/a.js", "data/dataset.parquet", "data/metadata.json", "NOTICE.txt"}
    assert "default-src 'self'" in first.read_text() and "Apple" in (first.parent / "NOTICE.txt").read_text()
    table = pq.read_table(first.parent / "data" / "dataset.parquet").to_pandas()
    assert (
        len(table) == 60
        and table["x"].notna().all()
        and table["__row"].is_unique
        and table["action"].is_monotonic_increasing
    )
    assert set(table["direction"]) == {"more acceptable", "less acceptable"} and "(none)" in set(table["topic"])
    props = json.loads((first.parent / "data" / "metadata.json").read_text())["props"]
    assert [label["content"] for label in props["embeddingViewLabels"]] == ["<b>x</b>", "fire"]


def test_a_larger_data_set_is_a_sample_of_whole_actions(run, monkeypatch):
    pytest.importorskip("itables", reason="extra: make site")
    rows = (
        pd.read_parquet(run.root / "data" / "export" / "d-rot.parquet")
        .assign(action=lambda t: t.index % 20)
        .astype({"action": "str"})
    )
    assert "60 rows of the data set of the run smoke. Written" in site.data_page(rows, "smoke")
    monkeypatch.setattr(site, "LIMIT", 10)
    assert "9 rows of the data set of the run smoke (a sample of whole actions, of 60 rows)" in site.data_page(
        rows, "smoke"
    )


@pytest.mark.parametrize("command", ["site", "atlas"])
def test_what_is_missing_is_said(command, run, capsys, monkeypatch):
    assert main([command, "--run", "nowhere"]) == 1 and "choose among: smoke" in capsys.readouterr().err
    monkeypatch.setattr(site.importlib.util, "find_spec", lambda name: None)
    assert main([command, "--run", "smoke"]) == 1 and f"make {command}" in capsys.readouterr().err
    shutil.rmtree(run.root / "data" / "export")
    assert main([command, "--run", "smoke"]) == 1 and "06_final_dataset" in capsys.readouterr().err


def test_the_pages_of_a_run_are_whole_and_ask_nobody(run, capfd, explorer):
    pytest.importorskip("myst_nb", reason="extra: make site")
    pytest.importorskip("itables", reason="extra: make site")
    site.make_atlas("smoke")
    first = site.make_site("smoke")
    assert capfd.readouterr().err == ""
    assert list_problems(first.parent) == []
    assert (first.parent / "atlas" / "index.html").exists() and "<title>" in first.read_text()
    for page in ("tables", "notebooks/05_self_distill-1", "data/card/README"):
        text = (first.parent / f"{page}.html").read_text(encoding="utf-8")
        assert "<script>alert" not in text and "<img src=https" not in text and "<b>bold" not in text
    assert 'class="rubric" id="delta-rules-of-thumb-made' in (
        book := (first.parent / "notebooks/05_self_distill-1.html").read_text()
    )
    assert "&lt;script&gt;alert(1)" in book and "col_heading" in book  # the card, and the table, whose texts are text
    check_images(first.parent)
    assert (
        "Writes contexts" in (first.parent / "api.html").read_text()
        or "critic" in (first.parent / "api.html").read_text()
    )


@pytest.mark.slow
def test_the_smoke_run_as_pages(smoke_run, monkeypatch, capfd):
    pytest.importorskip("myst_nb", reason="extra: make site")
    monkeypatch.setenv("DROT_OUTPUT", str(smoke_run))
    first = site.make_site("smoke")
    assert capfd.readouterr().err == "" and list_problems(first.parent) == []
    check_images(first.parent)


def test_a_page_that_loads_from_elsewhere_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="//x.org/a.css"><script src="https://x.org/a.js"></script><a href="b.html">b</a>'
        '<a href="#no">c</a><p id="yes" onclick="x()"><a href="#yes">d</a>'
    )
    assert len(list_problems(tmp_path)) == 6


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *values):
        """Say nothing."""


def serve(folder):
    """Serve a folder on this machine, in a thread; return the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def tab(tmp_path):
    """A tab of a browser."""
    if browser.PROGRAM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with browser.open_browser(tmp_path / "profile") as opened:
        yield opened


def count_shown(tab):
    """Return how many rows the data page says that it shows."""
    return int(re.search(r"of ([\d,]+) entries", tab.wait("document.querySelector('.dt-info')?.innerText"))[1])


@pytest.mark.slow
def test_the_data_page_in_a_browser(run, tab, tmp_path):
    pytest.importorskip("itables", reason="extra: make site")
    rows = pd.read_parquet(run.root / "data" / "export" / "d-rot.parquet")
    page = tmp_path / "table.html"
    page.write_text(site.data_page(rows, "smoke"), encoding="utf-8")
    for width in (390, 1280):
        tab.open(page.as_uri(), width)
        assert count_shown(tab) == 60
        tab.picture(tmp_path / f"table-{width}.png")
        assert tab.run("document.documentElement.scrollWidth") <= width
    tab.run(
        "document.querySelector('.dt-length select').value = '100', document.querySelector('.dt-length select').dispatchEvent(new Event('change'))"
    )
    text = tab.run("document.body.innerText")
    for hostile in (*HOSTILE[:4], "שלום עולם \\u202egnol\\u202c مرحبا 🔥👩\u200d🚒 \\x00 end"):
        assert hostile in text
    assert tab.run("document.querySelectorAll('table img, table b, td script, td a').length") == 0
    tab.run("document.querySelector('.dt-search input').focus()")
    tab.write("fire")
    tab.wait("/ of [1-4] entries/.test(document.querySelector('.dt-info').innerText)")
    assert FIRE in tab.run("document.querySelector('table:has(.dtrg-group)').innerText")
    tab.run("const i = document.querySelector('.dt-search input'); i.value = ''; i.dispatchEvent(new Event('input'))")
    tab.run("document.querySelectorAll('.dtsp-searchPane tbody td')[0].click()")
    tab.wait("/of (?!60 )\\d+ entries/.test(document.querySelector('.dt-info').innerText)")
    assert count_shown(tab) in (20, 40)
    assert tab.problems == [] and all(address.startswith(OWN) for address in tab.asked)


@pytest.mark.slow
def test_the_map_in_a_browser(run, tab, tmp_path):
    if site.importlib.util.find_spec("embedding_atlas") is None:
        pytest.skip("extra: make atlas")
    server = serve(site.make_atlas("smoke").parent)
    address = f"http://127.0.0.1:{server.server_port}/"
    for width in (390, 1280):
        tab.open(address, width)
        tab.wait("document.body?.innerText.includes('60 points')")
        tab.picture(tmp_path / f"atlas-{width}.png")
    text = tab.wait("document.body.innerText.includes('<script>alert(1)') && document.body.innerText")
    assert "![y](https://evil.example/y.png)" in text
    click = "(b => b && (b.click(), true))([...document.querySelectorAll('button')].find(b => b.{} == '{}'))"
    tab.wait(click.format("innerText", "Search"))
    tab.wait("(i => i && (i.focus(), true))(document.querySelector('input[type=search]'))")
    tab.write("fire")
    tab.wait(f"/1 results?[^]*{FIRE}/.test(document.body.innerText)")
    tab.picture(tmp_path / "atlas-search.png")
    tab.wait(click.format("title", "less acceptable"))
    tab.wait("document.body.innerText.includes('20 / 60 points')")
    tab.picture(tmp_path / "atlas-filter.png")
    server.shutdown()
    assert [problem for problem in tab.problems if "WebGPU" not in problem] == []
    assert all(asked.startswith((address, *OWN)) for asked in tab.asked)
