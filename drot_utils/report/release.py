"""The released data set: its tables, its card, what programs read about it, and checksums."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData

from drot_utils import __version__
from drot_utils.data.corpora import is_all_builtin, is_builtin, read_actions
from drot_utils.data.table import CANDIDATES, read_table, visible
from drot_utils.method.cards import say_labels
from drot_utils.method.distill import load_scorer
from drot_utils.study.outputs import read_params
from drot_utils.study.params import Params, read_yaml
from drot_utils.study.paths import ROOT, Run, replace_folder, require, resolve, sha256
from drot_utils.study.record import Study

STAYS = " (the teacher's rows have a threshold of their own)"
TEMPLATE, METADATA, WORDS = "data/cards/dataset.md", "data/cards/croissant.json", "data/cards/columns.yaml"
COLUMNS = ["action", "moral_variance", "context", "rationale", "critic_score", "source"]
#: How Croissant calls Arrow's types.
TYPES = {
    "string": "Text", "bool": "Boolean", "int8": "Integer", "int32": "Integer", "int64": "Integer", "double": "Float",
}  # fmt: skip
CHUNK = 100_000  # rows converted at once, and of a row group: the memory an export takes beside its rows
#: What the hub calls a number of rows, by its digits.
STEPS = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B"]


def release_run(name: str) -> Path:
    """Put the data set of a finished run and its manifest together in ``runs/<name>/release``, which is returned."""
    run = Run(name)
    params = read_params(run)
    rows = read_table(require(run.data("candidates_drot"), "06_final_dataset"))
    threshold = load_scorer(Study(params, run, "release")).thresholds["dataset"]
    actions = read_actions(params.corpus.actions)
    return export_drot(rows, actions, params, threshold, run.root / "release", run.manifest)


def export_drot(
    rows: pd.DataFrame, actions: pd.DataFrame, params: Params, threshold: float, folder: Path,
    manifest: Path | None = None,
) -> Path:  # fmt: skip
    """Write the data set into a folder, whole or not at all, and return it.

    The tables ``d-rot`` (the kept rows) and ``candidates`` (all) are Parquet, each a configuration of its own: the published
    repository holds two of different columns under one, which is why ``load_dataset`` fails on it. ``d-rot.tsv`` is the
    published form. Card, Croissant metadata, licence, citation and checksums lie beside.

    Parameters
    ----------
    rows : DataFrame
        All candidates with their flags, columns as in `table.CANDIDATES`.
    actions : DataFrame
        As `corpora.read_actions` returns it; the corpus's own columns are joined in by action.
    threshold : float
        Of the critic.
    manifest : Path, optional
        The run's, to lie beside the data.
    """
    rows = rows.sort_values(["action", "moral_variance"], ascending=[True, False], kind="stable", ignore_index=True)
    kept = rows[rows["kept"].astype(bool)]

    def fill(place: Path) -> None:
        first = pa.Schema.from_pandas(_join(kept.head(0), actions), preserve_index=False)
        own = [
            CANDIDATES.field(name) if name in CANDIDATES.names else pa.field(name, pa.string()) for name in first.names
        ]
        _write_parquet(place / "d-rot.parquet", pa.schema(own), (_join(part, actions) for part in _cut(kept)))
        _write_parquet(place / "candidates.parquet", CANDIDATES, _cut(rows))
        with (place / "d-rot.tsv").open("w", encoding="utf-8", newline="") as handle:
            for number, part in enumerate(_cut(kept)):
                table = _join(part, actions).rename(columns=lambda name: name.replace("_", "-"))
                texts = table.select_dtypes("str").columns
                table[texts] = table[texts].apply(
                    lambda column: column.str.replace(r"\s+", " ", regex=True).str.strip()
                )
                options = {"sep": "\t", "index": False, "quoting": 3, "quotechar": None, "escapechar": None}
                table.to_csv(handle, header=number == 0, **options)
        for source in (ROOT / "CITATION.cff", *filter(None, [manifest])):
            shutil.copyfile(source, place / source.name)
        (place / "README.md").write_text(data_card(place, kept, params, threshold), encoding="utf-8")
        described = json.dumps(describe(place, params), indent=2, ensure_ascii=False)
        (place / "croissant.json").write_text(f"{described}\n", encoding="utf-8")
        licence = f"This data set is licensed under {_licence(params)[1]}\n"
        (place / "LICENSE").write_text(licence, encoding="utf-8")
        sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(place.iterdir()))
        (place / "SHA256SUMS").write_text(sums, encoding="utf-8")

    return replace_folder(folder, fill)


def data_card(place: Path, kept: pd.DataFrame, params: Params, threshold: float) -> str:
    """Return the card of the tables in a folder, with six of the kept rows."""
    about, meaning = read_yaml(resolve(WORDS)).values()
    files = {path.stem: pq.ParquetFile(path) for path in sorted(place.glob("*.parquet"), reverse=True)}
    sizes = {name: file.metadata.num_rows for name, file in files.items()}
    header = DatasetCardData(
        license=_licence(params)[0], language=["en"], pretty_name=f"delta-Rules-of-Thumb ({params.profile} run)",
        size_categories=[size_category(sum(sizes.values()))], task_categories=["text-generation"],
        annotations_creators=["machine-generated"], language_creators=["machine-generated"],
        source_datasets=["original" if is_builtin(params.corpus.actions) else "extended|other-social-chem-101"],
        tags=["synthetic", "defeasible-reasoning", "moral-reasoning", "commonsense"],
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": f"{name}.parquet"}], "default": name == "d-rot"}
            for name in files
        ],
    )  # fmt: skip
    infos = DatasetInfosDict({name: _measure(file, place / f"{name}.parquet") for name, file in files.items()})
    infos.to_dataset_card_data(header)
    tables = {
        name: {
            "about": about[name], "rows": f"{sizes[name]:,}",
            "columns": [
                (_as_text(field.name), field.type, meaning.get(field.name) or _as_text(_of_action(field.name)))
                for field in file.schema_arrow
            ],
        }
        for name, file in files.items()
    }  # fmt: skip
    drawn = kept.sample(min(6, len(kept)), random_state=params.seed)[COLUMNS[:5]]
    drawn["critic_score"] = drawn["critic_score"].map("{:.2f}".format)
    texts = {
        "profile": params.profile, "rows": f"{len(kept):,}", "actions": f"{kept['action'].nunique():,}",
        "writers": _as_text(", ".join(sorted(kept["source"].unique())) or "nobody"), "critic": _describe_filter(params),
        "builtin": is_all_builtin(params), "labels": say_labels(params), "threshold": f"{threshold:.2f}", "seed": params.seed,
        "stays": STAYS if params.distill.teacher_stays else "", "caps": _say_caps(params),
        "sample": drawn.astype(str).map(_as_text).to_numpy().tolist(), "tables": tables,
        "manifest": (place / "manifest.json").exists(),
    }  # fmt: skip
    return str(DatasetCard.from_template(header, template_path=str(resolve(TEMPLATE)), **texts))


def size_category(rows: int) -> str:
    """Return what the hub calls a number of rows."""
    return STEPS[max(0, len(str(rows)) - 3)]


def describe(place: Path, params: Params) -> dict[str, Any]:
    """Return what Croissant 1.1 says of the tables in a folder: files, columns, and how far to trust them (RAI)."""
    about, meaning = read_yaml(resolve(WORDS)).values()
    paths, manifest = sorted(place.glob("*.parquet")), place / "manifest.json"
    stages = json.loads(manifest.read_text(encoding="utf-8"))["stages"] if manifest.exists() else {}
    written = stages.get("06_final_dataset", {}).get("written")
    files = [
        {
            "@type": "cr:FileObject", "@id": path.name, "name": path.name, "contentUrl": path.name, "sha256": sha256(path),
            "contentSize": f"{path.stat().st_size} B", "encodingFormat": "application/x-parquet",
        }
        for path in paths
    ]  # fmt: skip
    records = [
        {
            "@type": "cr:RecordSet", "@id": path.stem, "name": path.stem, "description": about[path.stem],
            "field": [
                {
                    "@type": "cr:Field", "@id": f"{path.stem}/{field.name}", "name": field.name,
                    "description": meaning.get(field.name, _of_action(field.name)), "dataType": f"sc:{TYPES[str(field.type)]}",
                    "source": {"fileObject": {"@id": path.name}, "extract": {"column": field.name}},
                }
                for field in pq.read_schema(path)
            ],
        }
        for path in paths
    ]  # fmt: skip
    return {
        **json.loads(resolve(METADATA).read_text(encoding="utf-8")),
        "name": f"delta-Rules-of-Thumb-{params.profile}", "version": __version__, "license": _licence(params)[2],
        "description": "Contexts that make everyday actions more or less acceptable, with rationales: machine-written, "
        "descriptive, never advice.",
        "rai:dataPreprocessingProtocol": "Texts that do not parse, contexts that say the same as an earlier one for their action "
        f"and direction, and contexts below the critic's threshold{STAYS if params.distill.teacher_stays else ''} are dropped from "
        f"d-rot and flagged in candidates.{_say_caps(params)}",
        "rai:dataAnnotationProtocol": f"A critic scored each row. {say_labels(params)}",
        **({"datePublished": written[:10]} if written else {}),
        "distribution": files, "recordSet": records,
    }  # fmt: skip


def _cut(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    return (rows.iloc[start : start + CHUNK] for start in range(0, len(rows) or 1, CHUNK))


def _join(rows: pd.DataFrame, actions: pd.DataFrame) -> pd.DataFrame:
    others = actions.drop(columns=[c for c in ("action", "source") if c in actions])
    joined = rows[["action_id", *COLUMNS]].merge(others, on="action_id", how="left", validate="many_to_one")
    return joined.drop(columns="action_id")


def _write_parquet(path: Path, schema: pa.Schema, parts: Iterable[pd.DataFrame]) -> None:
    order = [("action", "ascending"), ("moral_variance", "descending")]
    with pq.ParquetWriter(
        path, schema, compression="zstd", compression_level=3, write_page_checksum=True, write_page_index=True,
        use_content_defined_chunking=True, sorting_columns=pq.SortingColumn.from_ordering(schema, order),
    ) as writer:  # fmt: skip
        for part in parts:
            table = pa.Table.from_pandas(part[schema.names], schema, preserve_index=False)
            writer.write_table(table.replace_schema_metadata(None))


def _measure(file: pq.ParquetFile, path: Path) -> DatasetInfo:
    size = sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))
    return DatasetInfo(
        features=Features.from_arrow_schema(file.schema_arrow), download_size=path.stat().st_size, dataset_size=size,
        splits=SplitDict(train=SplitInfo("train", size, file.metadata.num_rows)),
    )  # fmt: skip


def _as_text(text: str) -> str:
    # What could mean something to Markdown or HTML, by its number: shown as it is, whoever shows it.
    return re.sub(
        r"[^\w ,.'-]|(?<![^\W_])_|_(?![^\W_])|\.(?=[^\W\d])", lambda found: f"&#{ord(found[0])};", visible(text)
    )


def _say_caps(params: Params) -> str:
    """Say what was kept, at most, of what students wrote."""
    limits = {"of one prompt": params.distill.max_per_prompt, "with the same text": params.distill.max_repeats}
    said = [f"at most {most} contexts {of}" for of, most in limits.items() if most]
    return f" Of what one student wrote, {' and '.join(said)} were then kept." if said else ""


def _of_action(column: str) -> str:
    return f"of the action, as in its corpus ({column.replace('_', '-')})"


def _licence(params: Params) -> tuple[str, str, str]:
    kind, long = ("by", "Attribution") if is_builtin(params.corpus.actions) else ("by-sa", "Attribution-ShareAlike")
    link = f"https://creativecommons.org/licenses/{kind}/4.0/"
    return f"cc-{kind}-4.0", f"Creative Commons {long} 4.0 International: {link}legalcode", link


def _describe_filter(params: Params) -> str:
    if params.judges.filter == "critic":
        return f"{params.critic.base.name}, {params.critic.head} head"
    names = ", ".join(judge.name for judge in params.judges.panel)
    return f"a panel of LLM judges, merged by {params.judges.aggregate}: {names}"
