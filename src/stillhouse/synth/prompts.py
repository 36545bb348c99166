"""Prompts as templates that a user may change: Jinja in its sandbox, where a name that nobody gave is an error."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..core.run import RunError


@lru_cache(maxsize=64)
def _template(text: str) -> Any:
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Prompts are words for a model and no web page: nothing is escaped.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(text)
    except TemplateSyntaxError as error:
        raise RunError(f"the prompt's line {error.lineno}: {error.message}") from error


def fill(prompt: str, /, **facts: Any) -> str:
    """The prompt with its facts in place; RunError that names what is missing."""
    from jinja2 import TemplateError

    template = _template(prompt)
    try:
        return template.render(**facts).strip()
    except TemplateError as error:
        raise RunError(f"the prompt cannot be filled in: {error}; it may use {', '.join(sorted(facts))}") from error
