"""Table 1's counts over 1.2 million rows: ours against pandas as one would write it plainly."""

import resource
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.corpus import make_apart
from benchmarks.harness import compare, read_options
from drot_utils.analysis.statistics import table1

WORD = r"[^\w'’]+|_"


def main() -> None:
    """Run the benchmark."""
    options = read_options(__doc__)
    count = 100_000 if options.quick else 1_200_000
    with tempfile.TemporaryDirectory() as folder:
        made = make_apart(f"make_drot({count}).to_parquet({{path}})", Path(folder) / "rows.parquet")
        rows = pd.read_parquet(made)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = table1(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Counts are the same to the last one; means are floats.
    pd.testing.assert_frame_equal(found, _plain(rows), check_exact=False, rtol=1e-12, atol=0)
    compare(
        "statistics",
        {"ours": (lambda: table1(rows), count), "pandas": (lambda: _plain(rows), count)},
        "rows/s",
        rounds=options.rounds,
        quick=options.quick,
        notes={"rows": count, "peak_mib": round(peak / 1024), "peak_mib_before": round(before / 1024)},
    )


def _plain(rows: pd.DataFrame) -> pd.DataFrame:
    actions = rows["action"].drop_duplicates()
    out = [("Action", "all", len(actions), _trigrams(actions), actions.str.split().str.len().mean())]
    for kind in ("context", "rationale"):
        for name, variances in (("all", [1, -1]), ("strengthening", [1]), ("weakening", [-1])):
            texts = rows.loc[rows["moral_variance"].isin(variances), kind]
            out.append((kind.capitalize(), name, len(texts), _trigrams(texts), texts.str.split().str.len().mean()))
    return pd.DataFrame(out, columns=["type", "polarity", "entries", "trigrams", "mean_words"])


def _trigrams(texts: pd.Series) -> int:
    words = texts.str.lower().str.replace(WORD, " ", regex=True).str.split()
    grams = words.map(lambda w: [" ".join(w[i : i + 3]) for i in range(len(w) - 2)])
    return grams.explode().nunique()


if __name__ == "__main__":
    main()
