# SPDX-License-Identifier: Apache-2.0
"""From objects to `services`, `frontends` and `backends`: conversion, ownership, selection.

`conversion` and `endpoints` turn Kubernetes objects into rows, `selection` chooses the backends of
a frontend; these are pure. `writer` alone writes the tables. `reflector` feeds it from objects:
`known_objects` makes a `batch` of events, `batch_writer` writes it, `complaints` has the problems.
These modules are compiled, and stand apart from the commands, which need nothing of them.
Start with `writer`.
"""

__all__: list[str] = []
