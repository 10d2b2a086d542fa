from drot_utils import cards
from drot_utils.profiles import load_params


def test_a_student_says_what_it_is_not_for(smoke):
    card = cards.model_card("distill_final", "self_distill_2", 1234, 50, False, smoke)
    for words in (
        "never advice",
        "from self_distill_2 on 1,234",
        "much of what it writes is nonsense",
        "text-generation",
    ):
        assert words in " ".join(card.split())


def test_cards_of_other_corpora_do_not_claim_the_demos_licence(candidates):
    params = load_params("params/paper.yaml")
    rows = candidates[candidates["context"].notna()]
    card = cards.data_card(rows, ["rot"], params, 0.96)
    assert "cc-by-sa-4.0" in card and "written by language models for this project" not in " ".join(
        card.split()
    )
    assert "| `rot` | as in the actions' corpus |" in card and "text2text" in cards.model_card(
        "x", None, 1, 1, True, params
    )
