"""XML into a small tree, safely and leniently: expat alone, no DTD, so no entity can be declared, expanded or fetched.

Names lose their namespace prefix: both namespaces of TTML are in use, and files bind prefixes that a strict reader refuses
(`xmlns:id="http://www.w3.org/XML/1998/namespace"`). What was read before a fault is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

from stages.lib.subtitles.model import SubtitleError

MAX_DEPTH = 60


@dataclass
class Node:
    """An element: local name, attributes by local name, and its texts and elements in order."""

    name: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def elements(self) -> list[Node]:
        return [child for child in self.children if isinstance(child, Node)]

    def find(self, name: str) -> list[Node]:
        """All elements of that name below this one, in document order."""
        out: list[Node] = []
        for child in self.elements():
            out += [child] if child.name == name else []
            out += child.find(name)
        return out


def read_xml(text: str) -> tuple[Node, bool]:
    """The root, and whether the document broke off. Raises SubtitleError: `refused` for a DTD or depth, `malformed` without a root."""
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    top = Node("", {})
    stack = [top]

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(stack) > MAX_DEPTH:
            raise SubtitleError("refused", f"XML nested deeper than {MAX_DEPTH}")
        node = Node(_local(name), {_local(key): value for key, value in attributes.items()})
        stack[-1].children.append(node)
        stack.append(node)

    def text_of(data: str) -> None:
        stack[-1].children.append(data)

    def refuse(*_: object) -> None:
        raise SubtitleError("refused", "XML with a DTD")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: stack.pop()
    parser.CharacterDataHandler = text_of
    parser.StartDoctypeDeclHandler = refuse
    broken = ""
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except expat.ExpatError as err:
        broken = str(err)
    if not top.elements():
        raise SubtitleError("malformed", f"XML: {broken or 'no element'}")
    return top.elements()[0], bool(broken)


def _local(name: str) -> str:
    return name.rpartition(":")[2]
