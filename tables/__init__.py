# SPDX-License-Identifier: Apache-2.0
"""One module a table: the object, its indexes, the constructor and the columns as printed.

Belongs here: immutable row objects and how they are keyed and shown. Does not belong here: who
writes them (``cilia.reflectors``, ``cilia.controllers``) and who carries them out
(``reconcilers``). Start with ``addressing`` (the value types that are keys), then ``services``,
``frontends``, ``backends``.
"""

__all__: list[str] = []
