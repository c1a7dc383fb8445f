"""The page of every code: what a mistake means, with an example and the whole message that it gives.

A page is `explanations/EXXXX.md`: a title, some sentences, then a failing example (a `crate` block) with its output (a
`text` block), or a `console` block where a text alone cannot show the mistake.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_BLOCK = re.compile(r"^```(crate|text|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Explanation:
    """A page. `example` is None where `output` is a session on a terminal."""

    code: str
    title: str
    text: str
    example: str | None
    output: str


def codes() -> list[str]:
    """Every code that has a page, in order."""
    return sorted(page.name.removesuffix(".md") for page in _folder().iterdir() if page.name.endswith(".md"))


def explanation(code: str) -> Explanation:
    """The page of a code.

    Raises:
        KeyError: there is no such code.

    >>> explanation("E0104").title
    'Text in quotes does not end'
    """
    if code not in codes():
        raise KeyError(code)
    page = (_folder() / f"{code}.md").read_text(encoding="utf-8")
    heading, _, rest = page.partition("\n")
    blocks: dict[str, str] = dict(_BLOCK.findall(rest))
    return Explanation(
        code=code,
        title=heading.removeprefix("# "),
        text=_BLOCK.sub("", rest).strip(),
        example=blocks.get("crate"),
        output=blocks.get("text", blocks.get("console", "")).rstrip("\n"),
    )


def _folder() -> Traversable:
    return resources.files("crate_dsl.language") / "explanations"
