"""Cluster files: a `ClusterSpec` as YAML, in and out without loss."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from topologies.errors import BadInput
from topologies.files import read_text, write_text
from topologies.spec import ClusterSpec

FORMAT = "epplan.cluster"
VERSION = 1
MAX_BYTES = 16 * 2**20
MAX_DEPTH = 32
MAX_EVENTS = 500_000

Model = TypeVar("Model", bound=BaseModel)


def load_spec(path: str | Path) -> ClusterSpec:
    """Read a cluster file; BadInput names the field that is wrong."""
    return parse_spec(read_text(path, limit_bytes=MAX_BYTES), str(path))


def parse_spec(text: str, where: str) -> ClusterSpec:
    """Read the text of a cluster file; `where` names it in errors."""
    document = parse_yaml(text, where)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadInput(f"{where}: not a cluster file: it must start with `format: {FORMAT}`")
    if document.get("version") != VERSION:
        raise BadInput(
            f"{where}: version {document.get('version')!r} of {FORMAT} is unknown; this epplan reads {VERSION}"
        )
    fields = {key: value for key, value in document.items() if key not in ("format", "version")}
    return validate(ClusterSpec, fields, where)


def dump_spec(spec: ClusterSpec) -> str:
    """Return the text of a cluster file; equal specs give equal text."""
    given = spec.model_dump(mode="json", exclude_defaults=True)  # parts leave out what does not apply to them
    fabric = spec.fabric.model_dump(mode="json")
    document = {"format": FORMAT, "version": VERSION, **given, "domain_hosts": spec.domain_hosts, "fabric": fabric}
    return yaml.safe_dump(document, sort_keys=False, width=160, default_flow_style=None, allow_unicode=True)


def save_spec(spec: ClusterSpec, path: str | Path) -> None:
    """Write a cluster file, whole or not at all."""
    write_text(path, dump_spec(spec))


def parse_document(model: type[Model], text: str, where: str) -> Model:
    """Read one model from YAML text."""
    return validate(model, parse_yaml(text, where), where)


def validate(model: type[Model], document: object, where: str) -> Model:
    """Validate a document; BadInput with the field, what is wrong and the value given."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        message = first["msg"].removeprefix("Value error, ")
        given = first["input"]
        shown = f", not {given!r}" if isinstance(given, str | int | float | bool) or given is None else ""
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BadInput(f"{where}: {field}: {message}{shown}{more}") from error


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]  # chosen at run time
    """The safe loader, which also refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping whose keys differ."""
        keys = [key.value for key, _ in node.value]
        if len(keys) != len(set(map(str, keys))):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def parse_yaml(text: str, where: str) -> object:
    """Read one YAML document within limits: no aliases (they can grow without bound), no tags, no deep nesting."""
    try:
        _check_events(text, where)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not valid YAML: {' '.join(str(error).split())[:300]}") from error


def _check_events(text: str, where: str) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.AliasEvent):
            raise BadInput(f"{where}: YAML aliases are not accepted in this file (*{event.anchor})")
        if tag := getattr(event, "tag", None):
            raise BadInput(f"{where}: YAML tags are not accepted in this file ({str(tag)[:80]})")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or count > MAX_EVENTS:
            raise BadInput(f"{where}: nested deeper than {MAX_DEPTH} levels or longer than {MAX_EVENTS} items")
