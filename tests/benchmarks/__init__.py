# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: each module `bench_<what>.py` prints a table; read, never a test.

A module has `run(report, *, peers)`; `report` is `tests.benchmarks.report.Report`.
"""
