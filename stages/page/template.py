"""The templates of the pages, which escape all text that they are given."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def open_template(name: str, filters: Mapping[str, Callable[[Any], str]]) -> jinja2.Template:
    """Read a template; what it asks for and is not given is an error.

    Args:
        name: of a file in TEMPLATES.
        filters: how it writes values, by the names it calls them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
