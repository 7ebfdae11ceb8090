# SPDX-License-Identifier: Apache-2.0
"""One module a table: the object, its indexes, the constructor and the columns as printed.

Belongs here: immutable row objects and how they are keyed and shown. Does not belong here: who
writes them (a feature below ``cilia``) and who carries them out (``reconcilers``). A folder a
feature, value types beside them. Start with ``addressing`` (the value types that are keys), then
``loadbalancer/services.py``, ``frontends.py``, ``backends.py``.

To add a table: a module named as the table, with the object (``msgspec.Struct``, frozen; a comment
says which fields who writes), its indexes (each with ``parse``, or people cannot ask by it), the
columns, and ``new_NAME_table(db)``. Rows that a reconciler carries out have a ``status``, which
whoever writes them sets to ``pending()``, and show it by ``STATUS_COLUMNS``. Whoever fills the
table registers an initializer, so that nothing is concluded from what is not there yet. The
feature's ``wiring.py`` makes the table and hands it on: ``Table`` to those who read, ``RWTable`` to
its one writer and its reconciler. It is then in ``cilia db``, the dumps, the metrics and the script
commands; cells and keys are tested in ``tests/tables``. ``node/node_addresses.py`` is a small
example. A further index or column is a line in its module.
"""

__all__: list[str] = []
