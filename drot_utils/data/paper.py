"""The paper's own numbers, to stand beside ours (Rao et al., 2023, tables 1 to 5 and figure 3)."""

import pandas as pd

_AUTO = ["train_rows", "auto_vld", "auto_avg", "auto_n_vld", "auto_n_unq_vld"]
_HUMAN = ["human_vld", "human_defease", "human_lan", "human_rationale", "human_n_vld", "human_n_unq_vld"]
_TABLE2 = {
    "teacher": (None, 0.53, 0.69, None, None, 0.56, 0.37, 0.98, 0.93, None, None),
    "distill_base": (85_000, 0.68, 0.75, 6.40, 5.63, 0.54, 0.42, 0.98, 0.91, 5.36, 4.78),
    "distill_base-no_critic": (143_000, 0.60, 0.68, 5.63, 5.00, 0.51, 0.39, 0.98, 0.94, 4.66, 4.23),
    "self_distill_1": (434_000, 0.75, 0.80, 7.08, 5.83, 0.60, 0.48, 0.97, 0.93, 6.04, 5.05),
    "self_distill_1-top_1_only": (53_000, 0.71, 0.77, 7.06, 3.16, 0.59, 0.48, 0.98, 0.93, 5.74, 2.54),
    "self_distill_1-no_nli": (492_000, 0.75, 0.80, 7.12, 5.89, 0.64, 0.50, 0.98, 0.92, 5.93, 4.97),
    "self_distill_2": (466_000, 0.79, 0.83, 7.60, 6.15, 0.62, 0.50, 0.98, 0.93, 6.26, 5.21),
    "self_distill_2-top_1_only": (57_000, 0.73, 0.78, 7.28, 2.60, 0.62, 0.49, 0.97, 0.93, 6.13, 2.16),
    "self_distill_2-no_nli": (567_000, 0.80, 0.83, 7.65, 5.92, 0.63, 0.51, 0.98, 0.91, 5.93, 4.73),
    "self_distill_2-no_self_distill": (869_000, 0.75, 0.80, 7.19, 5.95, 0.62, 0.50, 0.98, 0.94, 6.01, 5.08),
    "distill_final": (578_000, 0.86, 0.88, 8.40, 6.45, 0.71, 0.56, 0.99, 0.92, 7.26, 5.69),
}  # fmt: skip

TABLE1 = pd.DataFrame(
    [
        ("Action", "all", 115_000, 110_000, None, None),
        ("Context", "all", 578_000, 182_000, 85.9, 99.8),
        ("Context", "strengthening", 266_000, 108_000, 84.2, 100.0),
        ("Context", "weakening", 312_000, 130_000, 87.6, 99.7),
        ("Rationale", "all", 578_000, 275_000, 98.5, 99.7),
        ("Rationale", "strengthening", 266_000, 170_000, 98.6, 99.6),
        ("Rationale", "weakening", 312_000, 182_000, 98.4, 99.8),
    ],
    columns=["type", "polarity", "paper_entries", "paper_trigrams", "paper_valid_pct", "paper_language_pct"],
)
TABLE2 = pd.DataFrame(
    [(model, *values) for model, values in _TABLE2.items()],
    columns=["model", *(f"paper_{name}" for name in [*_AUTO, *_HUMAN])],
)
#: Zero-shot baselines on 1,000 test actions; `ours` names the model or baseline of a run that takes the same place.
TABLE3 = pd.DataFrame(
    [
        ("teacher (the paper's: GPT-3)", "teacher", 0.53, 0.69),
        ("Falcon-7B-Instruct", "falcon-7b-instruct", 0.39, 0.54),
        ("GPT-3.5 (ChatGPT)", "gpt-3.5", 0.71, 0.77),
        ("GPT-4", "gpt-4", 0.77, 0.82),
        ("Distill_final", "distill_final", 0.86, 0.88),
    ],
    columns=["baseline", "ours", "paper_auto_vld", "paper_auto_avg"],
)
#: Per cent of the valid ones, contexts then rationales.
TABLE4 = pd.DataFrame(
    [
        ("Context", "all", 85.9, 79.5, 20.5),
        ("Context", "strengthening", 84.2, 79.0, 21.0),
        ("Context", "weakening", 87.6, 80.0, 20.0),
        ("Rationale", "all", 98.5, 93.4, 6.6),
        ("Rationale", "strengthening", 98.6, 92.9, 7.1),
        ("Rationale", "weakening", 98.4, 93.9, 6.1),
    ],
    columns=["type", "polarity", "paper_valid_pct", "paper_significant_pct", "paper_slight_pct"],
)
TABLE5 = pd.DataFrame(
    [("dev", 0.88, 0.93, 0.98), ("test", 0.86, 0.92, 0.98)],
    columns=["part", "paper_accuracy", "paper_f1", "paper_pr_auc"],
)
#: Figure 3's ten most frequent topics among 10,000 contexts and 10,000 rationales, with their counts (tables 7 and 8).
TOPICS = {
    "context": [
        ("pet", 191), ("project", 162), ("vulnerable", 162), ("public", 143), ("supervisor", 124), ("safety", 123),
        ("gift", 121), ("elderly", 117), ("committed", 116), ("doctor", 111),
    ],
    "rationale": [
        ("friends", 328), ("students", 258), ("children", 213), ("taking advantage", 199), ("mental health", 157),
        ("commitment", 144), ("protect", 134), ("partner", 124), ("family", 121), ("care", 121),
    ],
}  # fmt: skip
