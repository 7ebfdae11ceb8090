# SPDX-License-Identifier: Apache-2.0
"""Tests of the cluster-wide program, on an API server in memory; tests/kube has a real one."""
