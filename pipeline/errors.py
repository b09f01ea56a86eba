"""The exception tree. Which class is raised decides what happens next; no one reads message texts.

ShardmillError
├── UserError       theirs: a config, a path, an argument. One line, exit code 2, nothing was begun.
├── TransientError  the world's: a network, a full disk. Retried with a bound; then exit code 3, the same command resumes.
└── ContractError   ours, or a user's own stage: a stage broke its contract. Exit code 1 with a trace.
"""

from __future__ import annotations

import errno

MACHINE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EROFS}
)  # no row is to blame for these


class ShardmillError(Exception):
    """Base of every error that shardmill raises on purpose."""


class UserError(ShardmillError):
    """Something that the user can mend: says what, where, and what to do."""


class TransientError(ShardmillError):
    """Something that may pass: what is committed stays, the same command goes on."""


class ContractError(ShardmillError):
    """A stage lost, added or moved rows, or returned other columns than it declares."""
