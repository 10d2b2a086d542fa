import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drot_utils.errors import StorageError
from drot_utils.shards import derive_seed, fingerprint, map_shards


def work(part: pd.DataFrame, seed: int) -> pd.DataFrame:
    return pd.DataFrame({"x": part["x"].repeat(2) * 10, "seed": seed})


def run(rows, folder, size=3, do=work):
    return map_shards(rows, size, lambda: do, folder, seed=7, stage="test")


@given(st.integers(0, 30), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_rows_and_order_do_not_hang_on_anything_but_the_shard_size(tmp_path_factory, n, size):
    rows = pd.DataFrame({"x": range(n)})
    folder = tmp_path_factory.mktemp("s")
    out = run(rows, folder, size)
    assert out["x"].tolist() == [x * 10 for x in range(n) for _ in range(2)]
    again = run(rows, folder, size, do=lambda part, seed: pytest.fail("done work was done again"))
    pd.testing.assert_frame_equal(out, again)


def test_after_a_kill_only_what_is_missing_is_done(tmp_path):
    rows = pd.DataFrame({"x": range(10)})
    whole = run(rows, tmp_path / "whole")
    calls = []

    def dies_in_the_third(part, seed):
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return work(part, seed)

    with pytest.raises(KeyboardInterrupt):
        run(rows, tmp_path / "killed", do=dies_in_the_third)
    calls.clear()

    def counts(part, seed):
        calls.append(seed)
        return work(part, seed)

    again = run(rows, tmp_path / "killed", do=counts)
    assert calls == [derive_seed(7, "test", k) for k in (2, 3)]
    pd.testing.assert_frame_equal(again, whole)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


@pytest.mark.parametrize("harm", [b"", b"PAR1 not parquet", None])
def test_a_shard_that_is_not_whole_is_done_again(tmp_path, harm):
    rows = pd.DataFrame({"x": range(9)})
    whole = run(rows, tmp_path)
    (shard,) = tmp_path.glob("000001-*.parquet")
    data = shard.read_bytes()
    shard.write_bytes(harm if harm is not None else data[: len(data) // 2])
    pd.testing.assert_frame_equal(run(rows, tmp_path), whole)
    assert shard.read_bytes() == data


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_no_changed_byte_of_a_shard_goes_unseen(tmp_path_factory, where, change):
    folder = tmp_path_factory.mktemp("s")
    rows = pd.DataFrame({"x": range(3)})
    whole = run(rows, folder)
    (shard,) = folder.iterdir()
    data = bytearray(shard.read_bytes())
    data[int(where * len(data))] ^= change
    shard.write_bytes(data)
    calls = []
    again = run(rows, folder, do=lambda part, seed: calls.append(seed) or work(part, seed))
    pd.testing.assert_frame_equal(again, whole)
    assert len(calls) == 1 and len(list(folder.iterdir())) == 1


def test_a_full_disk_loses_no_finished_shard(tmp_path, full_disk):
    rows = pd.DataFrame({"x": range(9)})

    def grows(part, seed):  # the third shard is too large
        return pd.DataFrame(
            {"x": [f"{i * (part['x'].min() + seed)}" for i in range(100 ** (part["x"].min() // 3))]}
        )

    whole = run(rows, tmp_path / "whole", do=grows)
    with full_disk(10_000), pytest.raises(StorageError, match="free some space"):
        run(rows, tmp_path / "full", do=grows)
    assert [p.name[:6] for p in sorted((tmp_path / "full").iterdir())] == ["000000", "000001"]
    pd.testing.assert_frame_equal(run(rows, tmp_path / "full", do=grows), whole)


def test_a_shard_needs_a_row(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        run(pd.DataFrame({"x": [1]}), tmp_path, size=0)


def test_seeds_differ_by_each_part():
    seeds = {derive_seed(*key) for key in [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1)]}
    assert len(seeds) == 4 and all(0 <= s < 2**32 for s in seeds)


def test_fingerprint_changes_with_any_part():
    frame = pd.DataFrame({"x": [1]})
    assert fingerprint(frame, 1) != fingerprint(frame, 2) != fingerprint(frame.assign(x=2), 2)
    assert fingerprint(frame, {"a": 1}) == fingerprint(frame.copy(), {"a": 1})
