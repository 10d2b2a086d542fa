"""Long work as a map over fixed shards: killed at any moment, a re-run does only what is missing and ends the same."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from drot_utils.errors import DataError
from drot_utils.progress import Progress
from drot_utils.schema import read_table, write_table

#: Turns the rows of one shard and its seed into the shard's result.
Work = Callable[[pd.DataFrame, int], pd.DataFrame]


def fingerprint(*parts: Any) -> str:
    """Return twelve hexadecimal digits that change with any of `parts` (tables, or what JSON can hold)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pd.DataFrame):
            digest.update(part.to_csv(index=False).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def source_hash(*modules: str) -> str:
    """Return a hash of the named modules' code, for fingerprints: work done by other code is not taken over."""
    return fingerprint(
        [(Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8") for name in modules]
    )


def derive_seed(seed: int, stage: str, number: int) -> int:
    """Return the seed of a shard: a function of the run's seed, the stage's name and the shard's number only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}/{number}".encode()).digest()[:4], "big")


def map_shards(
    rows: pd.DataFrame,
    size: int,
    work: Work,
    folder: Path,
    *,
    seed: int,
    stage: str,
    per_row: int = 1,
    unit: str = "rows",
) -> pd.DataFrame:
    """Apply `work` to fixed stretches of `rows`, keeping every finished one on disk.

    Parameters
    ----------
    rows : DataFrame
        What there is to do; cut into stretches of `size` rows.
    size : int
        Rows a shard; part of the result's definition, as the seeds hang on it.
    work : callable
        Gets a stretch and its seed, returns its result rows.
    folder : Path
        Where shards are kept. Its name must change with everything that the result hangs on (see `fingerprint`).
    seed : int
        The run's seed.
    stage : str
        Enters the shards' seeds and titles the progress.
    per_row : int
        Units of progress a row stands for.

    Returns
    -------
    DataFrame
        The shards' rows in order.

    Raises
    ------
    ValueError
        When `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"a shard needs at least one row, not {size}")
    starts = range(0, len(rows), size)
    done = {number: result for number in range(len(starts)) if (result := _read(folder, number)) is not None}
    finished = sum(min(size, len(rows) - starts[number]) for number in done)
    with Progress(stage, len(rows) * per_row, unit, done=finished * per_row) as progress:
        for number, start in enumerate(starts):
            if number in done:
                continue
            part = rows.iloc[start : start + size]
            result = work(part, derive_seed(seed, stage, number))
            write_table(pa.Table.from_pandas(result, preserve_index=False), _path(folder, number))
            done[number] = _read(folder, number)
            progress.update(len(part) * per_row)
    return (
        pd.concat([done[number] for number in range(len(starts))], ignore_index=True)
        if done
        else rows.iloc[:0]
    )


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.parquet"


def _read(folder: Path, number: int) -> pd.DataFrame | None:
    path = _path(folder, number)
    try:
        return read_table(path) if path.exists() else None
    except DataError:
        path.unlink()  # a shard that is not whole is done again
        return None
