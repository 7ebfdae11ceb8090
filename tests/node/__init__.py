# SPDX-License-Identifier: Apache-2.0
"""A whole cluster on one machine: two real nodes, a control plane, and the tests that need them.

A node is a set of namespaces (network, mount, UTS, PID) in which kubelet, containerd, the bridge
plugin and our agent run as on a machine of their own; a bridge without a way out connects them.
Not here: tests of the API alone (`tests/kube`), which start in seconds and share the API server's
harness. Run by `make test-node`; `make node-up` leaves such a cluster running. Start reading at
`cluster.py`.
"""
