# SPDX-License-Identifier: Apache-2.0
"""Tests against a real API server, and what starts it.

Here: `apiserver.ApiServer` (etcd and kube-apiserver), `assets` (where their programs are),
`programs` (a child process with a log), and the tests that need no more of a cluster than its API.
Not here: whole nodes with kubelet and containers (`tests/node`). Run by `make test-kube`; the
ordinary test run leaves this folder out, as it needs `make kube-assets`. Start reading at
`apiserver.py`.
"""
