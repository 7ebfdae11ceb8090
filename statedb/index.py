# SPDX-License-Identifier: Apache-2.0
"""What a table is looked up by.

An `Index` is a declaration without state: a module says it once and any number of tables use it.
Its keys are native values (int, str, bytes, tuples of them), because encoding each key costs half
of the write rate; they must be hashable, and their order is the order in which rows are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from statedb.errors import BadKey, NoParser, NotSupported, RegistrationError


class Index:
    """A named way to find objects.

    `key` gives the one key of an object, `keys` any number of them. With `unique`, no two objects
    may have the same key. `parse` turns the text of a script command or remote query into a key, or
    into the prefix of one.

    >>> by_tag = Index("tag", keys=lambda service: service.tags, unique=False, parse=str)
    >>> by_tag
    <Index tag>
    """

    def __init__(
        self,
        name: str,
        key: Callable[[Any], Any] | None = None,
        *,
        keys: Callable[[Any], Iterable[Any]] | None = None,
        unique: bool = True,
        parse: Callable[[str], Any] | None = None,
    ) -> None:
        if (key is None) == (keys is None):
            raise RegistrationError(f"index {name!r}: give either key or keys")
        self.name = name
        self.key = key
        self.keys = keys
        self.unique = unique
        self.parse = parse

    @property
    def is_lpm(self) -> bool:
        """Whether `get` finds the longest prefix that covers the key."""
        return False

    def keys_of(self, obj: Any) -> list[Any]:
        """Return the distinct keys of the object."""
        if self.key is not None:
            return [self.key(obj)]
        assert self.keys is not None
        keys = self.keys(obj)
        return list(dict.fromkeys(keys)) if keys else []

    def encode(self, key: Any) -> Any:
        """Return the key of a query as the index stores it."""
        return key

    def parse_key(self, text: str) -> Any:
        """Return the key which the text stands for.

        Raises:
            NoParser: the index has none.
            BadKey: the parser refused the text.
        """
        if self.parse is None:
            raise NoParser(f"index {self.name!r} has no text parser")
        try:
            return self.parse(text)
        except BadKey:
            raise
        except (ValueError, TypeError, LookupError) as err:
            raise BadKey(f"index {self.name!r}: {text!r} is no key: {err}") from err

    def cut(self, prefix: Any) -> Callable[[Any], Any]:
        """Return what shortens a key to the form of `prefix`, keeping the order of keys.

        Raises:
            NotSupported: keys of this type have no prefixes.
        """
        if not isinstance(prefix, (str, bytes, tuple)):
            raise NotSupported(
                f"index {self.name!r}: {type(prefix).__name__} keys have no prefixes "
                "(str, bytes and tuple have)"
            )
        length = len(prefix)
        return lambda key: key[:length]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def parse_bool(text: str) -> bool:
    """Be the `parse` of an index over a flag. Raises ValueError."""
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is not true or false")
    return text == "true"
