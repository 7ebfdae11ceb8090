# SPDX-License-Identifier: Apache-2.0
"""Choice of a backend in Python, as the programs do it: hash, Maglev tables, model.

Belongs here: what must give the same answer as `bpf/lib/lb_*.h`. Start with `choice.py`.
"""

__all__: list[str] = []
