# SPDX-License-Identifier: Apache-2.0
"""The eBPF datapath and the Python that loads it.

Here belong the C programs (``*.bpf.c``, one file a hook; ``lib/*.h``, one file a topic), the
binding of libbpf, objects, programs, links, maps and their codecs. Not here: what the maps should
contain (``reconcilers``) and why (``cilia.controllers``).

Start with ``object.py`` (a program from file to kernel), ``maps/map.py`` (one map) and ``sock.py``
(a whole object with its pins and links). ``libbpf.py`` alone imports the compiled ``bpf._libbpf``;
importing this package or ``bpf.errors``, ``bpf.compile``, ``bpf.maps.fake`` and the codecs does
not, so all of these work on a machine without libbpf.
"""

from bpf.errors import BPFError, KernelError, LoadError, MapFull, NotFound, RequirementMissing

__all__ = ["BPFError", "KernelError", "LoadError", "MapFull", "NotFound", "RequirementMissing"]
