"""Made-up corpora of the published sizes and forms, with realistic lengths and a word distribution like language's."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from drot_utils.study.paths import ROOT

#: The columns of the published Social-Chem-101 (Forbes et al., 2020).
SOCIAL_CHEM = [
    "area", "m", "split", "rot-agree", "rot-categorization", "rot-moral-foundations", "rot-char-targeting",
    "rot-bad", "rot-judgment", "action", "action-agency", "action-moral-judgment", "action-agree",
    "action-legal", "action-pressure", "action-char-involved", "action-hypothetical", "situation",
    "situation-short-id", "rot", "rot-id", "rot-worker-id", "breakdown-worker-id", "n-characters",
    "characters",
]  # fmt: skip
SYLLABLES = [
    a + b
    for a in ["b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w"]
    for b in ["a", "e", "i", "o", "u", "an", "er", "in", "on", "us"]
]


def make_apart(call: str, path: Path) -> Path:
    """Have ``benchmarks.corpus.<call>`` write to `path` in a process of its own: making is not what is measured.

    Parameters
    ----------
    call : str
        An expression in which ``{path}`` stands for the path.
    """
    code = "from pathlib import Path; from benchmarks.corpus import *; " + call.format(path=f"Path({str(path)!r})")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return path


def make_texts(count: int, mean_words: float, rng: np.random.Generator) -> list[str]:
    """Return texts of Poisson length whose words follow Zipf's law over a vocabulary of 40,000."""
    vocabulary = np.array(["".join(rng.choice(SYLLABLES, rng.integers(1, 4))) for _ in range(40_000)])
    lengths = np.maximum(1, rng.poisson(mean_words, count))
    # Zipf by inversion: the rank of a word is the exponential of a uniform number.
    ranks = np.exp(rng.random(int(lengths.sum())) * np.log(len(vocabulary))).astype(int) - 1
    words = vocabulary[ranks].tolist()
    ends = lengths.cumsum().tolist()
    return [" ".join(words[end - n : end]) for n, end in zip(lengths.tolist(), ends, strict=True)]


def make_drot(count: int, seed: int = 0) -> pd.DataFrame:
    """Return a data set of `count` rows with about five contexts an action."""
    rng = np.random.default_rng(seed)
    actions = np.array(make_texts(max(1, count // 5), 5.4, rng), dtype=object)
    return pd.DataFrame(
        {
            "action": actions[rng.integers(0, len(actions), count)],
            "moral_variance": rng.choice([1, -1], count, p=[0.46, 0.54]).astype("int8"),
            "context": make_texts(count, 11.7, rng),
            "rationale": make_texts(count, 15, rng),
        }
    )


def write_social_chem(path: Path, count: int, seed: int = 0) -> Path:
    """Write a TSV in the form of Social-Chem-101: 25 columns, no quoting, empty cells, actions that repeat."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({name: [""] * count for name in SOCIAL_CHEM})
    actions = np.array(make_texts(int(count * 0.93), 6, rng), dtype=object)
    frame["action"] = actions[rng.integers(0, len(actions), count)]
    frame["situation"], frame["rot"] = make_texts(count, 14, rng), make_texts(count, 10, rng)
    frame["split"] = rng.choice(["train", "dev", "test"], count, p=[0.8, 0.1, 0.1])
    frame["area"], frame["rot-judgment"] = rng.choice(["amitheasshole", "confessions"], count), "it's wrong"
    for name in ("m", "rot-agree", "action-agree", "n-characters"):
        frame[name] = rng.integers(1, 50, count).astype(str)
    frame["rot-id"] = [f"rot/{i}" for i in range(count)]
    frame.to_csv(path, sep="\t", index=False, quoting=3)
    return path
