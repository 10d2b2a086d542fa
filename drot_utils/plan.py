"""What a run will take before it is started: ``python -m drot_utils.plan params/paper.yaml`` (`make plan PROFILE=paper`).

First the work of the machine, then the requests to endpoints with their cost (see `quotes`). Counts follow from the parameters and
from what the paper says of its filters; hours follow from the work in floating-point operations and one rate, which is either
given or read off the paper: a student's fine-tuning took 28 hours on 8 GPUs.
"""

import argparse
import sys
from dataclasses import dataclass

import pandas as pd

from drot_utils.errors import DrotError, escape_output
from drot_utils.params import Params
from drot_utils.paths import settle_output
from drot_utils.profiles import load_params
from drot_utils.quotes import TEST_ACTIONS, say_requests
from drot_utils.settings import ModelRef

#: Parameters of the models that profiles name (from their model cards); embeddings are not counted for encoders.
SIZES = {
    "google/flan-t5-xl": 2.85e9,
    "smollm2-135m-instruct": 1.35e8,
    "models/deberta-v3-large": 3.04e8,
    "models/roberta-large-wanli": 3.03e8,
    "all-minilm-l6-v2": 1.06e7,
    "unitary/toxic-bert": 8.6e7,
}
#: What the paper reports, and what it leaves to be assumed.
KEPT = {"seed": 85 / 240, "round_1": 434 / 800, "round_2": 466 / 800, "dataset": 578 / 2865}
TOKENS = {"prompt": 20, "target": 40, "pair": 60}
TRAIN_HOURS, TRAIN_GPUS, TRAIN_ROWS, TRAIN_EPOCHS = 28.0, 8, 434_000, 3


@dataclass(frozen=True)
class Row:
    """One stage's work: what is counted, how much of it, tokens through the model, and operations."""

    stage: str
    unit: str
    count: float
    tokens: float
    operations: float


def plan_run(params: Params, train_actions: int = 234_000) -> list[Row]:
    """Return the work of each stage.

    Parameters
    ----------
    params : Params
    train_actions : int
        Actions of the corpus's training split, where ``final_actions`` is null.

    Raises
    ------
    DrotError
        For a model whose size is not known.
    """
    corpus, n = params.corpus, params.generation.candidates
    student, critic, nli = _size(params.student.base), _size(params.critic.base), _size(params.nli.base)
    rounds = corpus.round_actions
    rest = corpus.final_actions or max(0, train_actions - corpus.seed_actions - sum(rounds))
    test = corpus.test_actions or TEST_ACTIONS
    seeds = corpus.seed_actions * 2 * params.teacher.contexts_per_variance
    written = {"round 1": rounds[0] * 2 * n, "round 2": rounds[1] * 2 * n, "data set": rest * 2 * n}
    kept = {"Distill_base": seeds * KEPT["seed"]}
    kept["SelfDistill_1"], kept["SelfDistill_2"] = (
        written["round 1"] * KEPT["round_1"],
        written["round 2"] * KEPT["round_2"],
    )
    scored = seeds + sum(written.values())
    kept["Distill_final"] = (sum(kept.values()) + written["data set"]) * KEPT["dataset"]
    read, write, pair = TOKENS["prompt"], TOKENS["target"], TOKENS["pair"]
    rows = [Row("teacher", "requests", corpus.seed_actions * 2, seeds * (read + write), 0)]
    epochs = [
        params.student.epochs,
        params.student.round_epochs,
        params.student.round_epochs,
        params.student.final_epochs,
    ]
    for (name, count), times in zip(kept.items(), epochs, strict=True):
        tokens = count * times * (read + write)
        rows.append(Row(f"train {name}", "rows", count, tokens, 6 * student * tokens))
    for name, count in written.items():
        tokens = count * (write + read / n)  # a prompt is read once for its candidates
        rows.append(Row(f"write: {name}", "candidates", count, tokens, 2 * student * tokens))
    tokens = test * 2 * (1 + params.evaluation.candidates) * 5 * write
    rows.append(
        Row("write: evaluation, 5 models", "candidates", tokens / write, tokens, 2 * student * tokens)
    )
    pairs = sum(written.values()) * (n - 1) / 2
    rows.append(Row("NLI filter", "pairs (at most)", pairs, pairs * pair, 2 * nli * pairs * pair))
    rows.append(Row("critic", "contexts", scored, scored * pair, 2 * critic * scored * pair))
    return rows


def paper_rate() -> float:
    """Return operations a second and GPU that the paper's fine-tuning implies: 28 hours on 8 A6000 for SelfDistill_1."""
    tokens = TRAIN_ROWS * TRAIN_EPOCHS * (TOKENS["prompt"] + TOKENS["target"])
    return 6 * SIZES["google/flan-t5-xl"] * tokens / (TRAIN_HOURS * 3600 * TRAIN_GPUS)


def to_table(rows: list[Row], rate: float) -> pd.DataFrame:
    """Return the plan as a table with GPU hours at `rate` operations a second, and their sum."""
    table = pd.DataFrame([vars(row) for row in rows])
    table["gpu_hours"] = table.pop("operations") / rate / 3600
    total = {
        "stage": "all",
        "unit": "",
        "count": float("nan"),
        "tokens": table["tokens"].sum(),
        "gpu_hours": table["gpu_hours"].sum(),
    }
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)


def _size(ref: ModelRef) -> float:
    if ref.source == "random":
        return 1e5
    if ref.name not in SIZES:
        raise DrotError(
            f"the size of {ref.name} is not known", where="drot_utils/plan.py", todo="add it to SIZES there"
        )
    return SIZES[ref.name]


def main() -> int:
    """Print the plan of the parameter file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("params_file")
    parser.add_argument(
        "--tflops",
        type=float,
        help="effective TFLOP/s of one device; by default what the paper's hours imply",
    )
    arguments = parser.parse_args()
    escape_output()
    try:
        settle_output()
        params = load_params(arguments.params_file)
        rows, requests = plan_run(params), say_requests(params)
    except DrotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rate = arguments.tflops * 1e12 if arguments.tflops else paper_rate()
    table = to_table(rows, rate)
    for column, form in (("count", "{:,.0f}"), ("tokens", "{:,.0f}"), ("gpu_hours", "{:,.1f}")):
        table[column] = ["" if pd.isna(value) else form.format(value) for value in table[column]]
    print(
        table.to_markdown(
            index=False, disable_numparse=True, colalign=["left", "left", "right", "right", "right"]
        )
    )
    source = (
        "as given"
        if arguments.tflops
        else "as the paper's 28 hours on 8 A6000 for 434K rows and 3 epochs imply"
    )
    print(
        f"\nAssumed: {TOKENS} tokens; shares kept as in the paper { ({k: round(v, 2) for k, v in KEPT.items()}) };"
    )
    print(
        f"2 operations a parameter and token forward, 6 in training; {rate / 1e12:.2f} TFLOP/s a GPU, {source}."
    )
    print(
        "Writing one token at a time reaches that rate only in large batches, and ablations are not counted.\n"
    )
    print(requests)
    return 0


if __name__ == "__main__":
    sys.exit(main())
