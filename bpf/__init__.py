# SPDX-License-Identifier: Apache-2.0
"""The eBPF datapath and the Python that loads it.

Here belong the C programs (``*.bpf.c``, one file a hook; ``lib/*.h``, one file a topic), the
binding of libbpf, objects, programs, links, maps and their codecs. Not here: what the maps should
contain (``reconcilers``) and why (the features below ``cilia``).

Start with ``object.py`` (a program from file to kernel), ``loader.py`` (the same on pinned maps),
``maps/map.py`` (one map) and ``sock.py`` (a whole object with its pins and links). ``libbpf.py``
alone imports the compiled ``bpf._libbpf``; importing this package, ``bpf.errors``, ``bpf.compile``,
``bpf.maps.fake`` and the codecs does not, so all of these work on a machine without libbpf.

To add a program: ``NAME.bpf.c`` beside the others (``bpf.compile.sources`` finds it, wheels carry
it), loaded by a ``Loader(["NAME"], …)``; what a node knows only at start is a ``const volatile``
variable. Packet rows for it go to ``tests/bpf``; ``make bench`` shows its size beside that of the
commit before.

To add a map: its key and value in a ``lib/*_types.h`` with explicit pads, the definition in the
header that looks things up in it, and a codec in ``maps/`` that has numbers and layouts from
``layout.py``, with a row in ``tests/bpf/test_layouts.py``. A changed layout or size needs nothing:
the loader makes a successor.
"""

from bpf.errors import BPFError, KernelError, LoadError, MapFull, NotFound, RequirementMissing

__all__ = ["BPFError", "KernelError", "LoadError", "MapFull", "NotFound", "RequirementMissing"]
