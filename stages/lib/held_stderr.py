"""Keeps what a library's C++ side writes to stderr: Ray's says things at its start that mean nothing to a user."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_stderr() -> Iterator[None]:
    """What is written to file descriptor 2 in the block is dropped; where the block fails, it is a note of the error."""
    sys.stderr.flush()
    true_stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException as err:
            held.seek(0)
            err.add_note(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(true_stderr, 2)
            os.close(true_stderr)
