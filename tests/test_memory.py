import weakref

from drot_utils.memory import release_memory


class Knot:
    """Holds itself."""

    def __init__(self):
        self.me = self


def test_what_hangs_in_cycles_is_given_back():
    knot = weakref.ref(Knot())
    release_memory()
    assert knot() is None
