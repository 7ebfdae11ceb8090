# SPDX-License-Identifier: Apache-2.0
"""What the datapath counts is exported under the field's names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from bpf.events import Metric
from cilia.datapath.conntrack import SweepResult
from cilia.datapath.metrics import DatapathMetrics


def exported(metrics: DatapathMetrics) -> list[str]:
    registry = CollectorRegistry()
    registry.register(metrics)
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_drops_are_added_up_over_places_and_forwards_kept_apart() -> None:
    counters = [
        Metric(-2, 1, 1, 10, packets=3, bytes=180),
        Metric(-2, 1, 2, 99, packets=4, bytes=240),
        Metric(-2, 2, 1, 10, packets=1, bytes=60),
        Metric(0, 2, 1, 11, packets=9, bytes=900),
    ]
    lines = exported(DatapathMetrics(lambda: counters))
    assert 'cilia_drop_count_total{direction="ingress",reason="no backend"} 7.0' in lines
    assert 'cilia_drop_count_total{direction="egress",reason="no backend"} 1.0' in lines
    assert 'cilia_drop_bytes_total{direction="ingress",reason="no backend"} 420.0' in lines
    assert 'cilia_forward_count_total{direction="egress"} 9.0' in lines
    assert 'cilia_forward_bytes_total{direction="egress"} 900.0' in lines


def test_sweeps_are_added_up() -> None:
    metrics = DatapathMetrics(list)
    metrics.swept(SweepResult({"cilia_ct4_tcp": 5}, {"cilia_ct4_tcp": 2}, 0.25))
    metrics.swept(SweepResult({"cilia_ct4_tcp": 4}, {"cilia_ct4_tcp": 1}, 0.5))
    lines = exported(metrics)
    assert 'cilia_datapath_conntrack_entries{map="cilia_ct4_tcp"} 4.0' in lines
    assert 'cilia_datapath_conntrack_gc_deleted_total{map="cilia_ct4_tcp"} 3.0' in lines
    assert "cilia_datapath_conntrack_gc_duration_seconds 0.5" in lines
