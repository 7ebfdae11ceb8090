# SPDX-License-Identifier: Apache-2.0
"""The BPF tests on other kernels: ``python -m tests.kernels`` boots them in QEMU, one after the
other.

``kernels.py`` fetches distribution kernels, ``image.py`` packs Python, the sources and the tests
into an initial file system, ``guest.py`` is the first process inside it, and ``telling.py`` makes
pytest tell of each test, so that a run that was ended goes on with the others.
"""
