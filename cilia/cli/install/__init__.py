# SPDX-License-Identifier: Apache-2.0
"""Commands that act on a whole cluster through its API server: install, status, uninstall.

Belongs here: what a person with a kubeconfig does. Not: what runs in the cluster. `cilia.yaml` is
the chart, rendered (`make rendered`). Start at `install.py`.
"""

__all__: list[str] = []
