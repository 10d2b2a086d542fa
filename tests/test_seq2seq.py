"""The smoke study as the paper's profile has it: a seq2seq student, beams, and the binary critic on gold in the published form."""

import pandas as pd
from conftest import run_study, write_params, write_published_gold

from drot_utils.data.table import read_table
from drot_utils.engine.load import load_folder


def test_a_seq2seq_student_beams_and_the_binary_critic_go_the_same_way(tmp_path):
    params_file = write_params(
        tmp_path / "seq2seq.yaml", "smoke", profile="seq2seq", ablations=False, generation__method="beam",
        student__base={"source": "random", "name": "tiny-t5"}, critic__head="binary", critic__frozen_layers=0, critic__teacher_rows=None,
        critic__gold=[str(write_published_gold(tmp_path / "gold.tsv"))],
        critic__threshold_rows=None, distill__max_per_prompt=None, distill__max_repeats=None, distill__teacher_stays=False,
        critic__independent_share=0.0, student__epochs=60, student__learning_rate=5e-3, corpus__round_actions=[12], corpus__seed_actions=24,
    )  # fmt: skip
    done = run_study(params_file, tmp_path, "--cores", "2", "--until", "11_human_evaluation")
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    run, figures = tmp_path / "runs/seq2seq", tmp_path / "figures/seq2seq"
    model, _ = load_folder(run / "models/distill_final", "student")
    assert model.config.is_encoder_decoder
    rows = read_table(run / "data/candidates_d1.parquet")
    assert rows.groupby(["action_id", "moral_variance"]).size().eq(10).all()
    table = pd.read_csv(figures / "table2.csv")
    assert "independent_vld" not in table and len(table) == 5
    assert pd.read_csv(figures / "agreement.csv").empty  # the published gold holds no votes
