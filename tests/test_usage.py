from drot_utils.usage import Usage


def test_usages_add_up_and_what_is_not_known_stays_so():
    one = Usage(
        requests=2,
        choices=4,
        calls=3,
        faults={"timeout": 1},
        prompt_tokens=10,
        cost_usd=0.5,
        ignored={"n": 3},
    )
    two = Usage(
        requests=1,
        choices=1,
        faults={"timeout": 1, "HTTP 500": 2},
        prompt_tokens=None,
        cost_usd=0.25,
        ignored={"n": 5},
    )
    both = one + two
    assert (both.requests, both.choices, both.calls) == (3, 5, 3)
    assert both.faults == {"HTTP 500": 2, "timeout": 2}
    assert both.prompt_tokens is None and both.cost_usd == 0.75
    assert both.ignored == {"n": 5}  # counted over the cache's life: the later count holds the earlier
    assert Usage() + one == one
