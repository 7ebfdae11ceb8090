# SPDX-License-Identifier: Apache-2.0
"""Services, from their objects to rows that reconcilers bring into the maps, and what goes with
them.

`services/` turns Kubernetes objects into `services`, `frontends` and `backends`; `redirects/` are
local redirect policies, `connections/` the sockets and flows of backends that go, `cli/` the
commands. Does not belong here: BPF maps (`reconcilers/loadbalancer`). Start with `wiring`.
"""

__all__: list[str] = []
