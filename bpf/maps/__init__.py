# SPDX-License-Identifier: Apache-2.0
"""BPF maps: raw access, one codec a topic, fakes.

``map.py`` is one map in the kernel with bytes as keys and values; ``fake.py`` has the same methods
over a dict. Codecs (``lb.py`` …) turn named fields into these bytes and back and import neither of
them.
"""

from bpf.maps.raw import ANY, EXIST, NOEXIST, RawMap

__all__ = ["ANY", "EXIST", "NOEXIST", "RawMap"]
