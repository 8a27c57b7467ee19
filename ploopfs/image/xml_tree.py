"""A small XML tree that keeps what the standard ones lose: lines, comments, and where one run of text ends.

Knows nothing of descriptors. Invariant: within the bounds below any bytes give a tree or a `BadDescriptor`, and
entities are never looked at.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from ploopfs.bounds import MAX_DESCRIPTOR_BYTES, MAX_DESCRIPTOR_DEPTH
from ploopfs.errors import BadDescriptor
from ploopfs.image.descriptor_values import shown


@dataclass(frozen=True, slots=True)
class Markup:
    """A comment, a processing instruction or a CDATA section, as it is written."""

    xml: str


@dataclass(slots=True, eq=False)
class Element:
    """An element; the document itself is one too, without a name, holding the root."""

    name: str
    line: int = 0
    attributes: dict[str, str] = field(default_factory=dict)
    children: list["Node"] = field(default_factory=list)

    def elements(self) -> Iterator["Element"]:
        return (child for child in self.children if isinstance(child, Element))

    def find(self, name: str) -> "Element | None":
        """The first child of that name; an empty name finds the first of any, since nothing depends on the root's."""
        return next((child for child in self.elements() if name in ("", child.name)), None)

    def get(self, *names: str) -> "Element":
        """The element at the end of a way that is known to exist."""
        element = self
        for name in names:
            found = element.find(name)
            assert found is not None, name
            element = found
        return element

    def from_first(self, name: str) -> list["Element"]:
        """The first child of that name with every element after it, of whatever name.

        That is how the original finds the Images and the Shots, so a stray element behind the first is not skipped.
        """
        elements = list(self.elements())
        return next((elements[index:] for index, child in enumerate(elements) if child.name == name), [])

    @property
    def text(self) -> str | None:
        """The first run of text: a comment ends it, a CDATA section is none (6.3: nothing is trimmed)."""
        return next((child for child in self.children if isinstance(child, str)), None)


Node = Element | Markup | str


class TreeBuilder:
    """Turns bytes into elements, within bounds and without entities."""

    # What expat decodes by itself; any other name would be looked up among Python's codecs, which raise what they like.
    _ENCODINGS = ("UTF-8", "UTF-16", "UTF-16LE", "UTF-16BE", "ISO-8859-1", "US-ASCII")

    def __init__(self, path: str) -> None:
        self._path = path
        self._open = [Element("")]
        self._cdata: list[str] | None = None
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.CommentHandler = lambda data: self._add(Markup(f"<!--{data}-->"))
        parser.ProcessingInstructionHandler = lambda target, data: self._add(Markup(f"<?{target} {data}?>"))
        parser.StartCdataSectionHandler = self._start_cdata
        parser.EndCdataSectionHandler = self._end_cdata

    def build(self, data: bytes) -> Element:
        if len(data) > MAX_DESCRIPTOR_BYTES:
            raise BadDescriptor(self._path, f"it has {len(data)} bytes, expected at most {MAX_DESCRIPTOR_BYTES}")
        try:
            self._parser.Parse(data, True)
        except expat.ExpatError as error:
            reason = f"not well-formed XML: {expat.ErrorString(error.code)}"
            raise BadDescriptor(self._path, reason, line=error.lineno) from None
        return self._open[0]

    def _refuse(self, reason: str) -> NoReturn:
        raise BadDescriptor(self._path, reason, line=self._parser.CurrentLineNumber)

    def _declaration(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.upper() not in self._ENCODINGS:
            expected = ", ".join(self._ENCODINGS)
            self._refuse(f"encoding of the XML declaration is {shown(encoding)}, expected one of {expected}")

    def _doctype(self, name: str, _system_id: str | None, _public_id: str | None, _has_internal_subset: bool) -> None:
        self._refuse(f"DOCTYPE {name} is refused: a descriptor has no use for entities")

    def _add(self, node: Node) -> None:
        self._open[-1].children.append(node)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) > MAX_DESCRIPTOR_DEPTH:
            self._refuse(f"{name} is nested deeper than {MAX_DESCRIPTOR_DEPTH} elements")
        element = Element(name, self._parser.CurrentLineNumber, attributes)
        self._add(element)
        self._open.append(element)

    def _end(self, _name: str) -> None:
        self._open.pop()

    def _characters(self, data: str) -> None:
        children = self._open[-1].children
        if self._cdata is not None:
            self._cdata.append(data)
        elif children and isinstance(last := children[-1], str):
            children[-1] = last + data
        else:
            children.append(data)

    def _start_cdata(self) -> None:
        self._cdata = []

    def _end_cdata(self) -> None:
        self._add(Markup(f"<![CDATA[{''.join(self._cdata or ())}]]>"))
        self._cdata = None


def leaf(name: str, value: object) -> Element:
    text = str(value)
    return Element(name, children=[text] if text else [])


def branch(depth: int, name: str, *children: Element) -> Element:
    """Each child stands on a line of its own, as `append` puts them, which looks for the last one each time."""
    element = Element(name)
    for child in children:
        element.children += [line_break(depth + 1), child]
    if children:
        element.children.append(line_break(depth))
    return element


def append(parent: Element, child: Element, *, depth: int) -> None:
    """Put `child`, itself `depth` levels deep, behind the last element of `parent`, on a line of its own."""
    elements = [index for index, node in enumerate(parent.children) if isinstance(node, Element)]
    if elements:
        parent.children[elements[-1] + 1 : elements[-1] + 1] = [line_break(depth), child]
    else:
        parent.children = [line_break(depth), child, line_break(depth - 1)]


def line_break(depth: int) -> str:
    return "\n" + "  " * depth


def document_bytes(document: Element) -> bytes:
    lines = ['<?xml version="1.0"?>', *map(_xml, document.children), ""]
    return "\n".join(lines).encode()


_TEXT_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})
_ATTRIBUTE_ESCAPES = _TEXT_ESCAPES | str.maketrans({'"': "&quot;", "\n": "&#10;", "\t": "&#9;"})


def _xml(node: Node) -> str:
    if isinstance(node, Markup):
        return node.xml
    if isinstance(node, str):
        return _ascii(node.translate(_TEXT_ESCAPES))
    attributes = [f' {name}="{_ascii(value.translate(_ATTRIBUTE_ESCAPES))}"' for name, value in node.attributes.items()]
    tag = node.name + "".join(attributes)
    return f"<{tag}>{''.join(map(_xml, node.children))}</{node.name}>" if node.children else f"<{tag}/>"


def _ascii(text: str) -> str:
    """Other characters as references, which is what a document that declares no encoding gets from libxml2."""
    return re.sub("[^\x00-\x7f]", lambda match: f"&#x{ord(match[0]):X};", text)
