"""Tests of `errors`."""

import copy
import errno

import pytest

from drot_utils.llm.faults import Refusal
from drot_utils.study.errors import DataError, DrotError, wrap_os_error


def test_says_where_what_and_what_to_do():
    error = DataError("found 3 columns, expected 5", where="a.tsv, line 7", todo="mend the line")
    assert str(error) == "a.tsv, line 7: found 3 columns, expected 5\n  what to do: mend the line"
    assert isinstance(error, DrotError)


def test_parts_are_fields_for_callers():
    error = DrotError("x", where="y")
    assert (error.found, error.where, error.todo) == ("x", "y", "")


def test_an_error_reaches_another_process_whole():
    for error in (DataError("x", where="y", todo="z"), Refusal("x", status=400, setting="s", where="y")):
        again = copy.copy(error)  # as pickling does it
        assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "may be written")])
def test_full_disk_and_refused_write_differ(number, word):
    assert word in str(wrap_os_error(OSError(number, "no"), "f"))
