"""Reading untrusted XML into plain nodes: no entities, no DTD, and limits on depth and size."""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from topologies.errors import BadInput

MAX_DEPTH = 64
MAX_ELEMENTS = 50_000
MAX_ATTRIBUTES = 64


@dataclass
class Element:
    """An XML element: its tag, attributes and child elements; text is dropped."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        """Return the children with a tag."""
        return [child for child in self.children if child.tag == tag]

    def get(self, name: str) -> str | None:
        """Return an attribute without surrounding space, or None where it is absent or empty."""
        return self.attributes.get(name, "").strip() or None


class _Target:
    """Receives the events of the parser and refuses what is too deep or too long."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.root: Element | None = None
        self._open: list[Element] = []
        self._count = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Open an element."""
        self._count += 1
        if len(self._open) >= MAX_DEPTH:
            raise BadInput(f"{self.where}: elements nest deeper than {MAX_DEPTH} levels")
        if self._count > MAX_ELEMENTS or len(attributes) > MAX_ATTRIBUTES:
            raise BadInput(f"{self.where}: more than {MAX_ELEMENTS} elements, or {MAX_ATTRIBUTES} attributes on one")
        element = Element(tag, dict(attributes))
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, _tag: str) -> None:
        """Close the innermost element."""
        self._open.pop()

    def data(self, _text: str) -> None:
        """Drop text."""

    def close(self) -> None:
        """Do nothing: the root is an attribute."""


def parse_xml(content: bytes, where: str) -> Element:
    """Return the root of an XML document; BadInput that names `where` for anything malformed or hostile."""
    target = _Target(where)
    parser = DefusedXMLParser(target=target, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    try:
        parser.feed(content)
        parser.close()
    except DefusedXmlException as error:
        raise BadInput(
            f"{where}: declares a document type or entities, which a topology file has no use for"
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise BadInput(f"{where}: not well-formed XML: {error}") from error
    if target.root is None:
        raise BadInput(f"{where}: holds no XML element")
    return target.root
