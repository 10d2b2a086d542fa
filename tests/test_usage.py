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


def test_who_is_asked_twice_is_recorded_with_both():
    record = {}
    Usage(requests=2, faults={"timeout": 1}, cost_usd=None).add_to(record, "usage of far")
    Usage(requests=1, faults={"timeout": 2}).add_to(record, "usage of far")
    assert record["usage of far"]["requests"] == 3 and record["usage of far"]["faults"] == {"timeout": 3}
    assert record["usage of far"]["cost_usd"] is None
