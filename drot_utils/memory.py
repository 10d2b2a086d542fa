"""Memory between models."""

import contextlib
import ctypes
import gc


def release_memory() -> None:
    """Give back the memory of models that are done with: before the next one is loaded.

    They hang in reference cycles, half a gigabyte each, and glibc keeps freed blocks of some megabytes, of which caches of
    keys and values are made, for itself.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
