"""The pages of a run: what Sphinx is given, the table of its data, and the map of it (all static, nothing is fetched)."""

import html
import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt

from drot_utils import __version__
from drot_utils.data.table import WAYS, read_table, visible, write_frame
from drot_utils.study.errors import MissingInputError
from drot_utils.study.outputs import read_params
from drot_utils.study.paths import NOTEBOOKS, ROOT, Run, output_root, replace_folder, require, to_json, write_text

LIMIT = 50_000  # rows of the data page: 10 MB, which a phone still opens
#: A link that leads to a file beside, and the head of a data card.
LINK, FRONT = re.compile(r"\]\(([^)\s:#]+)[^)\s:]*\)"), re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
NOTICE = "data/cards/atlas.txt"
WARNING = (
    "Written by language models and scored by one: descriptive, never advice; many texts are wrong, some are cruel."
)
#: What Sphinx is told. HTML in Markdown is text: no row of the data may become a part of a page.
SETTINGS: dict[str, Any] = {
    "root_doc": "README", "project": "drot-utils", "release": __version__, "html_title": "What makes it OK to set a fire?", "html_theme": "furo",
    "html_copy_source": False, "html_show_sourcelink": False, "html_show_copyright": False,
    "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"],
    "myst_heading_anchors": 4, "myst_disable_syntax": ["html_block", "html_inline"],
    "nb_execution_mode": "off", "nb_ipywidgets_js": {}, "nb_merge_streams": True,
    "napoleon_google_docstring": False, "autodoc_member_order": "bysource",
    "html_static_path": ["_static"], "html_css_files": ["wide.css"], "html_theme_options": {"footer_icons": []},
}  # fmt: skip
#: What the pages of an explorer may reach: their own server.
POLICY = "default-src 'self' blob: data:; script-src 'self' blob: 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline' blob: data:"
#: Of the explorer's files, what serves browsers without exceptions in WebAssembly, and embedding in the browser.
UNUSED = ("*-mvp*", "*.mvp*", "wasm_mvp", "ort-wasm*")
WIDE = ".cell_output { overflow-x: auto }\n"  # a wide table scrolls, the page does not
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline' blob: data:; style-src 'unsafe-inline' data:; img-src data:; font-src data:">
<link rel="icon" href="data:,"><title>{title}</title>
<style>body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1rem }} .dt-container {{ overflow-x: auto }}
@media (min-width: 50rem) {{ td:first-child {{ white-space: nowrap }} }}
td {{ min-width: 5rem; text-align: start; unicode-bidi: plaintext; overflow-wrap: break-word }}
tr.dtrg-group th {{ text-align: start }} .dtsp-panesContainer {{ width: 100% }}</style></head>
<body><h1>{title}</h1><p>{about}</p>{table}</body></html>
"""


def make_site(name: str) -> Path:
    """Write the pages of a finished run into ``site/``, whole or not at all, and return the first one.

    Raises
    ------
    MissingInputError
        When the run has no data set, or the packages for pages are not installed.
    """
    run, rows = _open_run(name)
    folder = output_root() / "site"
    if not all(map(importlib.util.find_spec, ("sphinx", "myst_nb", "furo", "itables"))):
        raise MissingInputError("what makes pages is not installed", where="requirements/site.txt", todo="make site")
    from sphinx.application import Sphinx

    def fill(place: Path) -> None:
        with TemporaryDirectory() as scratch:
            sources = Path(scratch, "sources")
            gather_sources(run, sources)
            trees = Path(scratch, "trees")
            sphinx = Sphinx(sources, None, place, trees, "html", SETTINGS, status=None, warning=sys.stderr)
            sphinx.connect("autodoc-skip-member", _is_constant)
            sphinx.build()
        shutil.copyfile(place / "README.html", place / "index.html")
        (place / "table.html").write_text(data_page(rows, name), encoding="utf-8")
        if (folder / "atlas").exists():
            shutil.move(folder / "atlas", place / "atlas")

    return replace_folder(folder, fill) / "index.html"


def gather_sources(run: Run, place: Path) -> None:
    """Lay out what Sphinx reads: README and docs, what they link to, the run's notebooks and tables, and its data's card."""
    docs = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    card = run.root / "data" / "export" / "README.md"
    waiting = [(path, path.relative_to(ROOT)) for path in docs] + [(card, Path("data", "card", "README.md"))]
    notebooks, reached = _gather_notebooks(run, place / "notebooks"), {path for _, path in waiting}
    listed = set(reached)
    for source, path in waiting:  # which grows: a page's links are pages or files, too
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".md":
            shutil.copyfile(source, place / path)
            continue
        text = FRONT.sub("", source.read_text(encoding="utf-8"))
        if source.parent.parent.name == "figures":
            text = f"# {source.stem}\n\n{_as_html(source)}"
        for link in LINK.findall(text):
            linked, goal = source.parent / link, Path(os.path.normpath(path.parent / link))
            if linked.is_dir():  # a folder is no page
                text = _unlink(text, re.escape(link))
            elif goal not in reached and not (place / goal).exists():
                reached.add(goal)
                waiting.append((linked, goal))
        write_text(place / path, text if path in listed else f"---\norphan: true\n---\n{text}")
    write_text(place / "_static" / "wide.css", WIDE)
    tables = [f"## {path.stem}\n\n{_as_html(path)}" for path in sorted(run.figures.glob("*.md"), key=_table_number)]
    write_text(
        place / "tables.md", "\n\n".join([f"# Tables of the run {run.profile}, with the paper's numbers", *tables])
    )
    modules = [path.stem for path in sorted((ROOT / "drot_utils" / "method").glob("[a-z]*.py"))]
    write_text(place / "api.md", "\n\n".join(["# The package: the method", *map(_document, modules)]))
    table = _raw('<p><a href="table.html">All rows in one table</a>, to search and to filter.</p>')
    write_text(place / "data.md", f"# The data\n\n{table}\n\n{_list_pages('', ['data/card/README'])}")
    pages = [f"docs/{path.stem}" for path in docs[1:]]
    trees = [
        ("Results", ["data", "tables"]),
        (f"Notebooks of the run {run.profile}", notebooks),
        ("Pages", [*pages, "api"]),
    ]
    with (place / "README.md").open("a", encoding="utf-8") as handle:
        handle.writelines(f"\n\n{_list_pages(caption, names, 'hidden')}" for caption, names in trees)


def data_page(rows: pd.DataFrame, name: str) -> str:
    """Return one page of HTML that holds rows of the data set (all texts as text) and what it needs to search and filter them.

    Parameters
    ----------
    rows : DataFrame
        The released table ``d-rot``. Of more than `LIMIT` rows, whole actions are drawn at random.
    name : str
        Of the run.
    """
    from itables import to_html_datatable
    from itables.javascript import generate_init_offline_itables_html
    from itables.utils import find_package_file

    sizes = rows.groupby("action").size().sample(frac=1, random_state=0).cumsum()
    shown = rows[rows["action"].isin(sizes[sizes <= LIMIT].index)]
    about = f"{len(shown):,} rows of the data set of the run {name}"
    about += f" (a sample of whole actions, of {len(rows):,} rows)" if len(shown) < len(rows) else ""
    table = {
        "action": shown["action"], "direction": shown["moral_variance"].map(WAYS), "context": shown["context"],
        "rationale": shown["rationale"], "score": shown["critic_score"].map("{:.2f}".format), "source": shown["source"],
    }  # fmt: skip
    table |= {"area": shown["area"].fillna("")} if "area" in shown else {}
    panes = [place for place, column in enumerate(table) if column in ("direction", "source", "area")]
    grid = to_html_datatable(
        pd.DataFrame(table).map(visible).reset_index(drop=True), connected=False, allow_html=False, maxBytes=0, showIndex=False, classes="display compact",
        layout={"top1": "searchPanes"}, searchPanes={"columns": panes, "threshold": 1, "initCollapsed": True},
        rowGroup={"dataSrc": 0}, columnDefs=[{"visible": False, "targets": 0}], order=[[0, "asc"]], pageLength=25,
        display_logo_when_loading=False,
    )  # fmt: skip
    script = generate_init_offline_itables_html(find_package_file("html/dt_bundle.js"))
    return PAGE.format(title="The rows", about=html.escape(f"{about}. {WARNING}"), table=script + grid)


def make_atlas(name: str) -> Path:
    """Write an explorer of all rows of a run into ``site/atlas``, whole or not at all, and return its first page.

    Its places on the map are those of notebook 8. It is a copy of embedding-atlas's own pages and needs a web server.

    Raises
    ------
    MissingInputError
        When the run has no data set or no map, or embedding-atlas is not installed.
    """
    run, rows = _open_run(name)
    places = read_table(require(run.data("map"), "08_topics"))
    package = importlib.util.find_spec("embedding_atlas")
    if package is None:
        raise MissingInputError("the explorer is not installed", where="requirements/atlas.txt", todo="make atlas")
    pages = Path(package.origin).parent / "static"
    table = rows.merge(places.rename(columns={"text": "context"}), on="context", how="left", validate="many_to_one")
    labels = (
        places[places["topic"] != ""].groupby("topic").agg(x=("x", "median"), y=("y", "median"), priority=("x", "size"))
    )
    table = table.assign(direction=table["moral_variance"].map(WAYS), __row=range(len(table)))
    table["topic"] = table["topic"].replace("", "(none)")
    columns = ["action", "direction", "context", "rationale", "critic_score", "source", "topic", "area"]
    metadata = {
        "props": {
            "data": {"id": "__row", "text": "context", "projection": {"x": "x", "y": "y"}},
            "embeddingViewLabels": labels.assign(level=0).reset_index(names="content").to_dict("records"),
            "defaultChartsConfig": {"include": ["direction", "topic", "source", "area", "critic_score"]},
        },
        "isStatic": True, "database": {"type": "wasm", "load": True},
    }  # fmt: skip
    table = table[["__row", *(name for name in columns if name in table), "x", "y"]]

    def fill(place: Path) -> None:
        shutil.copytree(pages, place, ignore=shutil.ignore_patterns(*UNUSED), dirs_exist_ok=True)
        first = place / "index.html"
        head = f'<head><meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        first.write_text(first.read_text(encoding="utf-8").replace("<head>", head, 1), encoding="utf-8")
        (place / "data").mkdir()
        write_frame(table, place / "data" / "dataset.parquet")
        write_text(place / "data" / "metadata.json", to_json(metadata))
        shutil.copyfile(ROOT / NOTICE, place / "NOTICE.txt")

    return replace_folder(output_root() / "site" / "atlas", fill) / "index.html"


def _open_run(name: str) -> tuple[Run, pd.DataFrame]:
    run = Run(name)
    read_params(run)  # says which runs there are
    return run, read_table(require(run.root / "data" / "export" / "d-rot.parquet", "06_final_dataset"))


def _gather_notebooks(run: Run, place: Path) -> list[str]:
    """Copy the executed notebooks, each picture with its section's heading for a text, and return the pages to list."""
    place.mkdir(parents=True)
    pages = []
    executed = {
        path.stem: path for path in sorted((run.root / "notebooks").glob("*.ipynb"), key=lambda path: path.stem)
    }
    for path in executed.values():
        book, heading = json.loads(path.read_text(encoding="utf-8")), ""
        for cell in book["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                cell["metadata"]["mystnb"] = {"image": {"alt": heading}}
                for output in cell["outputs"]:
                    if text := output.get("data", {}).get("text/markdown"):  # which links to files elsewhere
                        output["data"]["text/markdown"] = _unlink("".join(text), r"(?![a-z]+:)[^)]+")
            elif found := re.search(r"^#+ (.+)", source, re.MULTILINE):
                heading = found[1]
        write_text(place / path.name, json.dumps(book))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        runs = [stem for stem in executed if stem.partition("-")[0] == path.stem]
        if not runs:
            shutil.copyfile(path, place / path.name)
        elif path.stem not in runs:  # one run a round
            text = f"# {path.stem}\n\nThis notebook ran {len(runs)} times.\n\n{_list_pages('', runs)}"
            cell = {"cell_type": "markdown", "metadata": {}, "source": text}
            write_text(
                place / path.name, json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 4})
            )
        pages += [f"{stem} <notebooks/{stem}>" for stem in (runs if path.stem in runs else [path.stem])]
    return pages


def _is_constant(app: object, kind: str, name: str, value: object, skip: bool, options: object) -> bool:
    return skip or not callable(value)


def _unlink(text: str, goal: str) -> str:
    return re.sub(rf"\[([^\]]*)\]\({goal}\)", r"\1", text)


def _list_pages(caption: str, names: list[str], *options: str) -> str:
    lines = [f":{option}:" for option in options] + ([f":caption: {caption}"] if caption else [])
    return "\n".join(["```{toctree}", *lines, "", *names, "```"])


def _raw(text: str) -> str:
    return f"```{{raw}} html\n{text}\n```"


def _as_html(path: Path) -> str:
    # Of a table's Markdown nothing but the table is Markdown: its cells are words of models.
    text = MarkdownIt("zero").enable(["table", "escape"]).render(path.read_text(encoding="utf-8"))
    boxed = text.replace("<table>", '<div class="table-wrapper docutils container"><table class="docutils">').replace(
        "</table>", "</table></div>"
    )
    return _raw(boxed)


def _document(module: str) -> str:
    return f"## {module}\n\n```{{eval-rst}}\n.. automodule:: drot_utils.method.{module}\n   :members:\n```"


def _table_number(path: Path) -> tuple[bool, int, str]:
    number = re.match(r"table(\d+)", path.stem)
    return not number, int(number[1]) if number else 0, path.stem
