"""A pickle's plain data without running it: dicts, lists, tuples, texts and numbers, by an allow-list of opcodes.

Python's own unpickler is not used, not even with `find_class` closed: it allocates what an opcode claims before it has read it.
Here `pickletools.genops` only splits the bytes into opcodes; anything that names code (GLOBAL, REDUCE, NEWOBJ, BUILD, persistent
ids, …) is refused.
"""

from __future__ import annotations

import pickletools
from typing import Any

from stages.lib.subtitles.model import SubtitleError

_MARK = object()
_IGNORED = {"PROTO", "FRAME"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SCALARS = {
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "STRING"),
}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}


def read_pickle(body: bytes) -> Any:
    """The object. Raises SubtitleError: `refused` for an opcode that could run code, `malformed` for bytes that are no pickle."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(body):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except SubtitleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as err:
        raise SubtitleError("malformed", f"pickle: {type(err).__name__}: {err}"[:200]) from None
    raise SubtitleError("malformed", "pickle: no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _SCALARS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _PUT:
            self.memo[int(argument)] = stack[-1]
        elif name in _GET:
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name not in _IGNORED:
            self._build(name)

    def _build(self, name: str) -> None:
        """Opcodes that make or fill containers."""
        stack = self.stack
        if name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({} if name == "EMPTY_DICT" else [] if name == "EMPTY_LIST" else ())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("DICT", "LIST", "TUPLE"):
            items = self._marked()
            stack.append(
                dict(zip(items[::2], items[1::2], strict=True)) if name == "DICT" else list(items) if name == "LIST" else tuple(items)
            )
        elif name in ("APPEND", "APPENDS"):
            items = self._marked() if name == "APPENDS" else [stack.pop()]
            _typed(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._marked() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _typed(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        else:
            raise SubtitleError("refused", f"the pickle wants to run {name}; only plain dicts, lists, tuples, texts and numbers are read")

    def _marked(self) -> list[Any]:
        """Takes what lies above the last mark off the stack."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected")
    return value
