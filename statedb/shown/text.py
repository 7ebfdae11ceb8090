# SPDX-License-Identifier: Apache-2.0
"""Text that others wrote, before it goes to a terminal or a log: escaped, and not too long.

A name may hold an escape sequence that moves the cursor or retitles the window, a line break that
forges a line of a table, a mark that turns the direction of writing, or (file names) bytes that are
no UTF-8. All doors to a terminal or a log show them escaped by `visible`; JSON and YAML have their
own escapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["all_visible", "shortened", "visible"]

# Longer messages say nothing more, but cost memory in each table, log and status page.
MOST: Final = 300

# Control characters (C0, DEL, C1), line and paragraph separators, marks that change the direction
# or have no width, undecodable bytes (surrogates).
_HIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)


def visible(text: str, *, keep: str = "") -> str:
    r"""Return the text with escapes for what a terminal would obey or not show.

    Args:
        keep: characters that stay, for a text of several lines of our own.

    >>> print(visible("web\x1b[31m\n"), visible("café"), visible("a\nb", keep="\n"))
    web\x1b[31m\n café a
    b
    """
    if text.isascii() and text.isprintable():
        return text
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def all_visible(value: Any, *, keep: str = "") -> Any:
    r"""Return a value of dictionaries, lists and texts with all texts made visible; others stay.

    >>> all_visible({"name": ["a\nb", 5]})
    {'name': ['a\\nb', 5]}
    """
    if isinstance(value, str):
        return visible(value, keep=keep)
    if isinstance(value, Mapping):
        return {all_visible(key): all_visible(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [all_visible(item, keep=keep) for item in value]
    return value


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name, see `os.fsdecode`
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def shortened(text: str, most: int = MOST) -> str:
    """Return the text, or its beginning and how long it is.

    >>> shortened("a" * 20, 8)
    'aaaaaaaa... (20 characters)'
    """
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
