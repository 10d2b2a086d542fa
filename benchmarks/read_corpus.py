"""Reading Social-Chem-101's 292,000 rows of 25 columns: ours, with all checks, against ``pandas.read_csv``."""

import resource
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.corpus import make_apart
from benchmarks.harness import compare, read_options
from drot_utils.data.corpora import read_actions, read_tsv

REQUIRED = ["action", "split", "rot", "rot-judgment"]


def main() -> None:
    """Run the benchmark."""
    options = read_options(__doc__)
    count = 60_000 if options.quick else 292_000
    with tempfile.TemporaryDirectory() as folder:
        path = make_apart(f"write_social_chem({{path}}, {count})", Path(folder) / "social-chem.tsv")
        actions = read_actions(path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ours, peer = read_tsv(path, REQUIRED), _pandas(path)
        assert all((a == b).all() for (_, a), (_, b) in zip(ours.items(), peer.items(), strict=True)), "different cells"
        del ours, peer
        compare(
            "read_corpus",
            {"ours": (lambda: read_tsv(path, REQUIRED), count), "pandas.read_csv": (lambda: _pandas(path), count)},
            "rows/s",
            rounds=options.rounds,
            quick=options.quick,
            notes={"rows": count, "actions": len(actions), "peak_mib": round(peak / 1024)},
        )


def _pandas(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", quoting=3, dtype=str, keep_default_na=False)


if __name__ == "__main__":
    main()
