"""A section of params.yaml as a checked, frozen dataclass: nothing unknown, nothing missing."""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from stages.harness.paths import DEFAULT_PARAMS

P = TypeVar("P", bound="Params")


class Params:
    """Base of every section's dataclass: keys that the class does not know are refused."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)


def load_params(section: str, kind: type[P], path: Path = DEFAULT_PARAMS) -> P:
    """Read one section of a params file and check it, key by key.

    Args:
        section: name of a top-level key; dots lead deeper, as in `train.64`.
        kind: the frozen dataclass that names the keys and their types.
        path: a YAML file.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: naming the file and every bad key, with what was wanted and the nearest key.
    """
    section_value = _find_section(_read_yaml(path), section, path)
    try:
        return TypeAdapter(kind).validate_json(json.dumps(section_value, default=str))
    except ValidationError as error:
        problems = [_explain(problem, kind, section) for problem in error.errors()]
        raise ValueError(f"{path}: " + "; ".join(problems)) from None


def load_named_params(section: str, kind: type[P], path: Path = DEFAULT_PARAMS) -> dict[str, P]:
    """Read a section that maps names to sections of one kind; see `load_params`."""
    names = _find_section(_read_yaml(path), section, path)
    if not isinstance(names, Mapping):
        raise ValueError(f"{path}: {section} maps names to sections, got {names!r}")
    return {str(name): load_params(f"{section}.{name}", kind, path) for name in names}


class ParamsLoader(yaml.SafeLoader):
    """YAML in which no key may stand twice: the second would win without a word.

    A float needs no dot, as in 5e-05: DVC reads and writes them so, by YAML 1.2.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read a mapping and look at its keys, before `<<` is put in its place."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"key {key.value!r} stands twice, again in line {line}")
            seen.add(key.value)
        return node


ParamsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), ParamsLoader)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such params file. Run in the repository's root, or name one with --params"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {error}") from None


def _find_section(value: Any, section: str, path: Path) -> Any:
    reached: list[str] = []
    for key in section.split("."):
        # 64: and "64": are the same key to DVC
        keys = {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}
        if key not in keys:
            inside = f" in {'.'.join(reached)!r}" if reached else ""
            raise ValueError(f"{path}: missing section {key!r}{inside}{_nearest(key, keys)}")
        reached.append(key)
        value = keys[key]
    return value


def _explain(problem: ErrorDetails, kind: type[Params], section: str) -> str:
    """Say one thing that is wrong: the dotted key, what was wanted, what stands there."""
    *parents, key = (str(part) for part in problem["loc"]) if problem["loc"] else ("",)
    name = ".".join([section, *parents, key]).rstrip(".")
    match problem["type"]:
        case "unexpected_keyword_argument":
            return f"unknown key {name!r}{_nearest(key, _known_keys(kind, parents))}"
        case "missing":
            given = problem["input"]
            written = given.keys() if isinstance(given, Mapping) else ()
            unknown = set(written) - set(_known_keys(kind, parents))
            close = difflib.get_close_matches(key, sorted(unknown), n=1)
            return f"missing key {name!r}" + (f" (it has {close[0]!r})" if close else "")
        case _:
            message = problem["msg"].removeprefix("Value error, ")
            return f"{name}: {message}" + (f", got {problem['input']!r}" if key else "")


def _nearest(key: str, known: Iterable[str]) -> str:
    """Suggest the known key that looks most like `key`; all of them if none does."""
    keys = sorted(known)
    if close := difflib.get_close_matches(key, keys, n=1, cutoff=0.5):
        return f"; did you mean {close[0]!r}?"
    return f"; known keys: {', '.join(keys)}" if keys else ""


def _known_keys(kind: Any, parents: Iterable[str]) -> list[str]:
    """List the keys of the dataclass that lies under `parents`, through dicts and unions."""
    for parent in parents:
        options = [_inner(option, parent) for option in _options(kind)]
        kind = next((option for option in options if option is not None), None)
    dataclass = next(filter(dataclasses.is_dataclass, _options(kind)), None)
    return [field.name for field in dataclasses.fields(dataclass)] if dataclass else []


def _options(kind: Any) -> tuple[Any, ...]:
    """Split a union, and a dict or list, into the types that it may hold."""
    if kind is None or dataclasses.is_dataclass(kind):
        return (kind,)
    return tuple(o for arg in typing.get_args(kind) for o in _options(arg)) or (kind,)


def _inner(kind: Any, name: str) -> Any:
    """Give the type of a dataclass's field; a container's own key leads to the same type."""
    if not dataclasses.is_dataclass(kind):
        return None
    return typing.get_type_hints(kind).get(name, kind)
