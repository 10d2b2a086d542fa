"""The NLI filter: ours against all ordered pairs scored in batches of 32 as they come, then the formula."""

import dataclasses
import random

import torch
from scipy.special import softmax

from benchmarks.harness import compare, read_options
from drot_utils.data import corpora
from drot_utils.data.table import PROMPT, read_table
from drot_utils.engine.classifier import Classifier, PairClassifier
from drot_utils.engine.load import load_model
from drot_utils.method.nli import ENTAILMENT, HEAD, Nli, filter_unique, load_nli
from drot_utils.study.params import load_params
from drot_utils.study.paths import Run
from drot_utils.study.record import Study

THRESHOLD = 0.5


def main() -> None:
    """Run the benchmark."""
    options = read_options(__doc__)
    params, run = load_params("params/demo.yaml"), Run("demo")
    nli = _model(Study(params, run, "benchmark"))
    # Decisions are compared in float32: bfloat16 rounds by batch, and a score at the threshold may differ.
    exact = Nli(dataclasses.replace(nli.classifier, dtype=torch.float32), nli.entailment)
    count = 60 if options.quick else 200
    sets = {"nli_filter": _groups(count, 0), "nli_filter_paraphrases": _groups(count, 6)}
    if run.data("candidates_d2").exists():  # after `make demo`: as a student writes them
        sets["nli_filter_student"] = _written(run, count)
    for name, groups in sets.items():
        found, expected = filter_unique(groups, exact, THRESHOLD), _plain(groups, exact)
        assert found.kept == expected, "the decisions differ"
        fewest = _fewest(groups, found.kept)
        kept = sum(map(sum, found.kept))
        print(
            f"{name}: {kept} of {sum(map(len, groups))} kept, {found.pairs_asked} forwards, {fewest} are needed at least"
        )
        compare(
            name,
            {
                "ours": (lambda g=groups: filter_unique(g, nli, THRESHOLD), len(groups)),
                "all pairs": (lambda g=groups: _plain(g, nli), len(groups)),
            },
            "groups/s",
            rounds=options.rounds,
            quick=options.quick,
            notes={
                "forwards": found.pairs_asked,
                "fewest_forwards": fewest,
                "all_pairs": found.pairs_possible,
                "trained": (run.model("nli") / "model.safetensors").exists(),
            },
        )


def _model(study: Study) -> Nli:
    run, settings = study.run, study.params.nli
    if (run.model("nli") / "model.safetensors").exists():
        return load_nli(study)
    base, tokenizer = load_model(settings.base, "encoder", run)
    torch.manual_seed(0)
    model = PairClassifier(base, **HEAD).to(study.device).eval()
    return Nli(Classifier(model, tokenizer, settings.max_length, study.device, study.dtype), ENTAILMENT)


def _groups(count: int, paraphrases: int) -> list[list[str]]:
    """Groups of ten: contexts of the teacher, of which some are paraphrased by the entailment groups' texts."""
    rng = random.Random(0)
    pairs = corpora.read_groups("data/demo/entailment_groups.jsonl")
    same = [g["hypothesis"].tolist() for _, g in pairs[pairs["label"] == 2].groupby("group")]
    contexts = corpora.read_recorded("data/demo/teacher_plain.tsv", corpora.read_actions("data/demo/actions.tsv"))[
        "context"
    ].tolist()
    groups = []
    for _ in range(count):
        repeated = [text for group in rng.sample(same, 2) for text in group][:paraphrases]
        group = [*repeated, *rng.sample(contexts, 10 - len(repeated))]
        rng.shuffle(group)
        groups.append(group)
    return groups


def _written(run: Run, count: int) -> list[list[str]]:
    """What a student wrote in round 2, ten contexts a group."""
    rows = read_table(run.data("candidates_d2")).dropna(subset="context")
    return [group["context"].tolist() for _, group in rows.groupby(PROMPT, sort=False)][:count]


def _plain(groups: list[list[str]], nli: Nli) -> list[list[bool]]:
    asked = [(k, i, j) for k, g in enumerate(groups) for i in range(len(g)) for j in range(len(g)) if i != j]
    scores = {}
    ours = nli.classifier
    model = ours.model if ours.dtype == torch.float32 else ours.model.to(ours.dtype)
    with torch.inference_mode():
        for start in range(0, len(asked), 32):
            part = asked[start : start + 32]
            texts = [groups[k][i] for k, i, _ in part], [groups[k][j] for k, _, j in part]
            batch = ours.tokenizer(
                *texts, truncation=True, max_length=ours.max_length, padding=True, return_tensors="pt"
            )
            probabilities = softmax(model(**batch).double().numpy(), axis=1)[:, nli.entailment]
            scores |= dict(zip(part, probabilities, strict=True))
    model.float()
    kept = []
    for k, group in enumerate(groups):
        accepted: list[int] = []
        for i in range(len(group)):
            if all(group[i] != group[j] and min(scores[k, i, j], scores[k, j, i]) < THRESHOLD for j in accepted):
                accepted.append(i)
        kept.append([i in accepted for i in range(len(group))])
    return kept


def _fewest(groups: list[list[str]], kept: list[list[bool]]) -> int:
    """Forwards that any exact method in candidate order needs.

    An accepted candidate must be cleared against every accepted one before it: at least one forward each. A blocked one needs
    both directions of one pair; a repetition needs none.
    """
    fewest = 0
    for group, flags in zip(groups, kept, strict=True):
        for i, flag in enumerate(flags):
            earlier = [j for j in range(i) if flags[j]]
            if flag:
                fewest += len(earlier)
            elif group[i] not in {group[j] for j in earlier}:
                fewest += 2
    return fewest


if __name__ == "__main__":
    main()
