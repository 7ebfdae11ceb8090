# SPDX-License-Identifier: Apache-2.0
"""Frontends in the maps, as the dump shows them."""

from __future__ import annotations

import textwrap
from ipaddress import ip_network
from typing import Any

import pytest

from bpf.maps import lb
from bpf.maps.lb_numbers import FrontendType, ServiceFlag
from cilia.loadbalancer.options import LoadBalancerOptions
from reconcilers.loadbalancer.frontend_entries import service_keys
from reconcilers.loadbalancer.frontends import PruneError
from statedb import StatusKind
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.backends import BackendState
from tables.loadbalancer.services import (
    ForwardingMode,
    ProxyDelegation,
    ProxyRedirect,
    SourceRangesPolicy,
    TrafficPolicy,
)
from tests.reconcilers.loadbalancer.lb_view import check_reachable
from tests.reconcilers.loadbalancer.lb_world import PLAIN, LBWorld, backend, frontend, service
from tests.reconcilers.targets import running

VIP = "10.96.0.1:80/TCP"
LOCAL = TrafficPolicy.LOCAL


def lines(text: str) -> str:
    return textwrap.dedent(text).lstrip()


async def test_cluster_ip_with_two_backends() -> None:
    world = LBWorld()
    world.put(frontend(VIP, ["10.244.1.1:8080/TCP", "10.244.1.2:8080/TCP"]))
    async with running(world.reconciler):
        await world.settled()
    assert world.dump() == lines(
        """
        BE: ID=1 ADDR=10.244.1.1:8080/TCP STATE=active
        BE: ID=2 ADDR=10.244.1.2:8080/TCP STATE=active
        REV: ID=1 ADDR=10.96.0.1:80
        SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=0 LBALG=undef AFFTimeout=0 COUNT=2 QCOUNT=0 FLAGS=ClusterIP+non-routable
        SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=1 BEID=1 COUNT=0 QCOUNT=0 FLAGS=ClusterIP+non-routable
        SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=2 BEID=2 COUNT=0 QCOUNT=0 FLAGS=ClusterIP+non-routable
        """  # noqa: E501
    )
    assert world.frontend(VIP).id == 1
    assert world.frontend(VIP).status.kind is StatusKind.DONE


async def test_both_families_and_protocols_share_the_ids() -> None:
    world = LBWorld()
    world.put(
        frontend("[fd00::1]:53/UDP", ["[2001::1]:53/UDP"]),
        frontend(VIP, ["10.244.1.1:8080/TCP"]),
    )
    async with running(world.reconciler):
        await world.settled()
    assert world.dump() == lines(
        """
        BE: ID=1 ADDR=[2001::1]:53/UDP STATE=active
        BE: ID=2 ADDR=10.244.1.1:8080/TCP STATE=active
        REV: ID=1 ADDR=[fd00::1]:53
        REV: ID=2 ADDR=10.96.0.1:80
        SVC: ID=1 ADDR=[fd00::1]:53/UDP SLOT=0 LBALG=undef AFFTimeout=0 COUNT=1 QCOUNT=0 FLAGS=ClusterIP+non-routable
        SVC: ID=1 ADDR=[fd00::1]:53/UDP SLOT=1 BEID=1 COUNT=0 QCOUNT=0 FLAGS=ClusterIP+non-routable
        SVC: ID=2 ADDR=10.96.0.1:80/TCP SLOT=0 LBALG=undef AFFTimeout=0 COUNT=1 QCOUNT=0 FLAGS=ClusterIP+non-routable
        SVC: ID=2 ADDR=10.96.0.1:80/TCP SLOT=1 BEID=2 COUNT=0 QCOUNT=0 FLAGS=ClusterIP+non-routable
        """  # noqa: E501
    )


async def test_maps_are_empty_and_bytes_are_none_when_all_frontends_are_gone() -> None:
    world = LBWorld(LoadBalancerOptions())
    world.put(frontend(VIP, ["10.244.1.1:8080/TCP"]), frontend("10.96.0.2:80/TCP"))
    async with running(world.reconciler):
        await world.settled()
        assert world.dump() != ""
        world.remove(VIP, "10.96.0.2:80/TCP")
        await world.settled()
    assert world.dump() == ""
    assert set(world.ops.summary().values()) == {0}


async def test_frontend_without_backends_keeps_its_master_entry() -> None:
    world = LBWorld()
    world.put(frontend(VIP, ["10.244.1.1:8080/TCP"]))
    async with running(world.reconciler):
        await world.settled()
        world.put(frontend(VIP))
        await world.settled()
    assert world.dump() == lines(
        """
        REV: ID=1 ADDR=10.96.0.1:80
        SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=0 LBALG=undef AFFTimeout=0 COUNT=0 QCOUNT=0 FLAGS=ClusterIP+non-routable
        """  # noqa: E501
    )


async def test_states_decide_the_order_of_slots_and_the_counts() -> None:
    world = LBWorld()
    world.put(
        frontend(
            VIP,
            [
                backend("10.244.1.1:80/TCP", BackendState.TERMINATING),
                backend("10.244.1.2:80/TCP", BackendState.MAINTENANCE),
                backend("10.244.1.3:80/TCP", unhealthy=True, unhealthy_updated_at=1.0),
                backend("10.244.1.4:80/TCP", BackendState.TERMINATING_NOT_SERVING),
                backend("10.244.1.5:80/TCP", BackendState.QUARANTINED),
                backend("10.244.1.6:80/TCP"),
            ],
        )
    )
    async with running(world.reconciler):
        await world.settled()
    assert world.dump() == lines(
        """
        BE: ID=1 ADDR=10.244.1.6:80/TCP STATE=active
        BE: ID=2 ADDR=10.244.1.1:80/TCP STATE=terminating
        BE: ID=3 ADDR=10.244.1.4:80/TCP STATE=terminating
        BE: ID=4 ADDR=10.244.1.5:80/TCP STATE=quarantined
        BE: ID=5 ADDR=10.244.1.2:80/TCP STATE=maintenance
        BE: ID=6 ADDR=10.244.1.3:80/TCP STATE=active
        REV: ID=1 ADDR=10.96.0.1:80
        SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=0 LBALG=undef AFFTimeout=0 COUNT=1 QCOUNT=4 FLAGS=ClusterIP+non-routable
        SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=1 BEID=1 COUNT=0 QCOUNT=0 FLAGS=ClusterIP+non-routable
        SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=2 BEID=2 COUNT=0 QCOUNT=0 FLAGS=ClusterIP+non-routable
        SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=3 BEID=3 COUNT=0 QCOUNT=0 FLAGS=ClusterIP+non-routable
        SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=4 BEID=4 COUNT=0 QCOUNT=0 FLAGS=ClusterIP+non-routable
        SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=5 BEID=6 COUNT=0 QCOUNT=0 FLAGS=ClusterIP+non-routable+quarantined
        """  # noqa: E501
    )


async def test_terminating_backends_are_used_when_none_is_active() -> None:
    world = LBWorld()
    world.put(
        frontend(
            VIP,
            [
                backend("10.244.1.1:80/TCP", BackendState.TERMINATING_NOT_SERVING),
                backend("10.244.1.2:80/TCP", BackendState.TERMINATING),
                backend("10.244.1.3:80/TCP", BackendState.TERMINATING),
            ],
        )
    )
    async with running(world.reconciler):
        await world.settled()
    assert "SLOT=0 LBALG=undef AFFTimeout=0 COUNT=2 QCOUNT=1" in world.dump()


async def test_backend_is_shared_and_goes_with_its_last_frontend() -> None:
    world = LBWorld()
    world.put(
        frontend(VIP, ["10.244.1.1:80/TCP"]), frontend("10.96.0.2:80/TCP", ["10.244.1.1:80/TCP"])
    )
    async with running(world.reconciler):
        await world.settled()
        assert world.dump().count("BE: ") == 1
        world.remove(VIP)
        await world.settled()
        assert world.dump().count("BE: ") == 1
        world.remove("10.96.0.2:80/TCP")
        await world.settled()
    assert world.dump() == ""


async def test_shared_backend_has_the_best_state_that_any_of_its_frontends_sees() -> None:
    world = LBWorld()
    terminating = backend("10.244.1.1:80/TCP", BackendState.TERMINATING)
    world.put(frontend(VIP, ["10.244.1.1:80/TCP"]), frontend("10.96.0.2:80/TCP", [terminating]))
    async with running(world.reconciler):
        await world.settled()
        assert "BE: ID=1 ADDR=10.244.1.1:80/TCP STATE=active" in world.dump()
        world.remove(VIP)
        await world.settled()
        assert "BE: ID=1 ADDR=10.244.1.1:80/TCP STATE=terminating" in world.dump()
        world.put(frontend(VIP, ["10.244.1.1:80/TCP"]))
        await world.settled()
    assert "BE: ID=1 ADDR=10.244.1.1:80/TCP STATE=active" in world.dump()


async def test_backend_stays_while_a_frontend_whose_update_failed_leads_to_it() -> None:
    world = LBWorld()
    world.kernel.after_write = lambda: check_reachable(world.kernel.maps)
    shared = ["10.244.1.1:80/TCP"]
    world.put(frontend(VIP, shared), frontend("10.96.0.2:80/TCP", shared))
    async with running(world.reconciler):
        await world.settled()
        slot = service_keys(L3n4Addr.parse(VIP)).slot(1)
        world.kernel.refused = lambda what, name, key: key == slot
        world.put(
            frontend(VIP, ["10.244.1.2:80/TCP"]),
            frontend("10.96.0.2:80/TCP", ["10.244.1.2:80/TCP"]),
        )
        await world.reconciler.wait_until_reconciled(world.frontends.revision(world.db.read_txn()))
        assert "BE: ID=1 ADDR=10.244.1.1:80/TCP" in world.dump()
        failed = world.frontend("10.96.0.2:80/TCP").status
        assert failed.error == "backend 1 is in use by a frontend that failed"
        world.kernel.refused = lambda what, name, key: False
        await world.settled()
    assert "10.244.1.1" not in world.dump()


async def test_prune_spares_what_a_failed_frontend_leads_to_under_its_former_id() -> None:
    world = LBWorld()
    world.kernel.after_write = lambda: check_reachable(world.kernel.maps)
    master = service_keys(L3n4Addr.parse(VIP)).slot(0)
    world.put(frontend(VIP, ["10.244.1.1:80/TCP"]))
    async with running(world.reconciler):
        await world.settled()
        world.kernel.refused = lambda what, name, key: key == master
        world.remove(VIP)
        await world.attempted()
        world.put(frontend(VIP, ["10.244.1.2:80/TCP"]))
        await world.attempted()
        with pytest.raises(PruneError, match="in use by frontends whose update failed: 1"):
            world.ops.prune(world.db.read_txn(), ())
        assert "REV: ID=1 ADDR=10.96.0.1:80" in world.dump()
        world.kernel.refused = lambda what, name, key: False
        await world.settled()
        world.ops.prune(world.db.read_txn(), ())
    assert "ID=1 " not in world.dump().replace("BE: ID=", "")
    assert "REV: ID=2 ADDR=10.96.0.1:80" in world.dump()


async def test_address_gets_a_new_id_when_it_returns() -> None:
    world = LBWorld()
    world.put(frontend(VIP, ["10.244.1.1:80/TCP"]))
    async with running(world.reconciler):
        await world.settled()
        world.remove(VIP)
        await world.settled()
        world.put(frontend(VIP, ["10.244.1.1:80/TCP"]))
        await world.settled()
    assert "BE: ID=2 ADDR=10.244.1.1:80/TCP" in world.dump()
    assert "REV: ID=2 ADDR=10.96.0.1:80" in world.dump()


async def test_swapped_backends_get_new_ids_in_the_order_of_addresses() -> None:
    world = LBWorld()
    world.put(frontend(VIP, ["10.244.1.1:80/TCP", "10.244.1.2:80/TCP"]))
    async with running(world.reconciler):
        await world.settled()
        world.put(frontend(VIP, ["10.244.1.3:80/TCP"]))
        await world.settled()
        world.put(frontend(VIP, ["10.244.1.1:80/TCP", "10.244.1.3:80/TCP"]))
        await world.settled()
    assert [line for line in world.dump().splitlines() if "BEID" in line or "BE:" in line] == [
        "BE: ID=3 ADDR=10.244.1.3:80/TCP STATE=active",
        "BE: ID=4 ADDR=10.244.1.1:80/TCP STATE=active",
        "SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=1 BEID=4 COUNT=0 QCOUNT=0 "
        "FLAGS=ClusterIP+non-routable",
        "SVC: ID=1 ADDR=10.96.0.1:80/TCP SLOT=2 BEID=3 COUNT=0 QCOUNT=0 "
        "FLAGS=ClusterIP+non-routable",
    ]


async def test_entries_are_written_before_what_leads_to_them_and_deleted_after() -> None:
    world = LBWorld()
    world.put(frontend(VIP, ["10.244.1.1:80/TCP", "10.244.1.2:80/TCP"]))
    async with running(world.reconciler):
        await world.settled()
        assert [step(*entry) for entry in world.log] == [
            ("update", "be"),
            ("update", "be"),
            ("update", "rev"),
            ("update", "slot"),
            ("update", "slot"),
            ("update", "master"),
        ]
        world.log.clear()
        world.put(frontend(VIP, ["10.244.1.3:80/TCP"]))
        await world.settled()
        assert [step(*entry) for entry in world.log] == [
            ("update", "be"),
            ("update", "slot"),
            ("update", "master"),
            ("delete", "slot"),
            ("delete", "be"),
            ("delete", "be"),
        ]
        world.log.clear()
        world.remove(VIP)
        await world.settled()
    assert [step(*entry) for entry in world.log] == [
        ("delete", "master"),
        ("delete", "slot"),
        ("delete", "rev"),
        ("delete", "be"),
    ]


def step(what: str, name: str, key: bytes) -> tuple[str, str]:
    if not name.endswith("svc"):
        return what, name.rsplit("_", 1)[1]
    return what, "slot" if any(key[-6:-4]) else "master"


async def test_round_of_many_frontends_is_one_batch_a_kind() -> None:
    world = LBWorld()
    calls: list[tuple[str, int]] = []
    for target in world.ops._maps.all():
        original = target.raw.update_batch

        def counted(
            keys: Any, values: Any, original: Any = original, raw: Any = target.raw
        ) -> None:
            calls.append((raw.name, len(keys)))
            original(keys, values)

        target.raw = _Patched(target.raw, counted)
    world.put(*(frontend(f"10.96.0.{n}:80/TCP", [f"10.244.1.{n}:80/TCP"]) for n in range(1, 101)))
    async with running(world.reconciler):
        await world.settled()
    assert calls == [
        ("cilia_lb4_be", 100),
        ("cilia_lb4_rev", 100),
        ("cilia_lb4_svc", 100),
        ("cilia_lb4_svc", 100),
    ]


class _Patched:
    def __init__(self, raw: Any, update_batch: Any) -> None:
        self._raw = raw
        self.update_batch = update_batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


async def test_nothing_is_written_when_nothing_changed() -> None:
    world = LBWorld()
    world.put(frontend(VIP, ["10.244.1.1:80/TCP", "10.244.1.2:80/TCP"]))
    async with running(world.reconciler):
        await world.settled()
        world.log.clear()
        world.put(frontend(VIP, ["10.244.1.1:80/TCP", "10.244.1.2:80/TCP"]))
        await world.settled()
        assert world.log == []
        world.put(frontend(VIP, ["10.244.1.1:80/TCP", "10.244.1.2:80/TCP", "10.244.1.3:80/TCP"]))
        await world.settled()
    assert [step(*entry) for entry in world.log] == [
        ("update", "be"),
        ("update", "slot"),
        ("update", "master"),
    ]


# -- flags ------------------------------------------------------------------------------------

NODE_PORT, LOAD_BALANCER = FrontendType.NODE_PORT, FrontendType.LOAD_BALANCER
CLUSTER_IP, EXTERNAL_IPS = FrontendType.CLUSTER_IP, FrontendType.EXTERNAL_IPS
HOST_PORT = FrontendType.HOST_PORT
RANGES: dict[str, Any] = {"source_ranges": (ip_network("10.0.0.0/8"),)}
DENY: dict[str, Any] = {**RANGES, "source_ranges_policy": SourceRangesPolicy.DENY}

BOTH_LOCAL: dict[str, Any] = {"ext_traffic_policy": LOCAL, "int_traffic_policy": LOCAL}
ALL_TYPES: dict[str, Any] = {"bpf_lb_internal_policy_all_types": True}
FLAGS: list[tuple[FrontendType, dict[str, Any], dict[str, Any], str]] = [
    (CLUSTER_IP, {}, {}, "ClusterIP+non-routable"),
    (CLUSTER_IP, {}, {"bpf_lb_external_clusterip": True}, "ClusterIP"),
    (CLUSTER_IP, {"int_traffic_policy": LOCAL}, {}, "ClusterIP+InternalLocal+non-routable"),
    (CLUSTER_IP, {"ext_traffic_policy": LOCAL}, {}, "ClusterIP+non-routable"),
    (LOAD_BALANCER, {}, {}, "LoadBalancer"),
    (LOAD_BALANCER, {"ext_traffic_policy": LOCAL}, {}, "LoadBalancer+Local+two-scopes"),
    (NODE_PORT, {"int_traffic_policy": LOCAL}, {}, "NodePort"),
    (NODE_PORT, {"int_traffic_policy": LOCAL}, ALL_TYPES, "NodePort+InternalLocal+two-scopes"),
    (EXTERNAL_IPS, BOTH_LOCAL, {}, "ExternalIPs+Local+two-scopes"),
    (EXTERNAL_IPS, BOTH_LOCAL, ALL_TYPES, "ExternalIPs+Local+InternalLocal"),
    (HOST_PORT, {"loopback_host_port": True, "ext_traffic_policy": LOCAL}, {}, "HostPort+loopback"),
    (LOAD_BALANCER, RANGES, {}, "LoadBalancer+check source-range"),
    (EXTERNAL_IPS, DENY, {}, "ExternalIPs+check source-range+deny"),
    (NODE_PORT, RANGES, {}, "NodePort"),
    (NODE_PORT, RANGES, {"bpf_lb_source_range_all_types": True}, "NodePort+check source-range"),
    (
        LOAD_BALANCER,
        {"proxy_delegation": ProxyDelegation.DELEGATE_IF_LOCAL},
        {},
        "LoadBalancer+delegate-if-local",
    ),
    (LOAD_BALANCER, {}, {"bpf_lb_mode": "dsr"}, "LoadBalancer+dsr"),
    (LOAD_BALANCER, {}, {"bpf_lb_mode": "hybrid"}, "LoadBalancer+dsr"),
    (LOAD_BALANCER, {"forwarding_mode": ForwardingMode.DSR}, {}, "LoadBalancer"),
    (
        LOAD_BALANCER,
        {"forwarding_mode": ForwardingMode.DSR},
        {"bpf_lb_mode_annotation": True},
        "LoadBalancer+dsr",
    ),
    (
        LOAD_BALANCER,
        {"forwarding_mode": ForwardingMode.SNAT},
        {"bpf_lb_mode_annotation": True, "bpf_lb_mode": "dsr"},
        "LoadBalancer",
    ),
]


@pytest.mark.parametrize(("kind", "svc", "config", "flags"), FLAGS)
async def test_flags(
    kind: FrontendType, svc: dict[str, Any], config: dict[str, Any], flags: str
) -> None:
    world = LBWorld(PLAIN.model_copy(update=config))
    world.put(frontend(VIP, ["10.244.1.1:80/TCP"], kind, service(**svc)))
    async with running(world.reconciler):
        await world.settled()
    master, slot = (line for line in world.dump().splitlines() if line.startswith("SVC"))
    assert master.split("FLAGS=")[1] == flags
    assert slot.split("FLAGS=")[1] == flags.replace("+check source-range", "").replace("+deny", "")


INSIDE = ServiceFlag.SOURCE_RANGE | ServiceFlag.SOURCE_INSIDE
INSIDE_ONLY_OTHERS = INSIDE | ServiceFlag.SOURCE_NOT_NODE


@pytest.mark.parametrize("policy", list(SourceRangesPolicy))
@pytest.mark.parametrize(
    ("address", "ranges", "named"),
    [
        ("172.16.0.1:80/TCP", ("10.0.0.0/8",), False),
        ("172.16.0.1:80/TCP", ("10.0.0.0/8", "192.0.2.1/32"), True),
        ("172.16.0.1:80/TCP", ("2001:db8::/32",), False),
        ("[2001:db8:7::1]:80/TCP", ("2001:db8::/32",), True),
        ("[2001:db8:7::1]:80/TCP", ("192.0.2.1/32",), False),
    ],
)
async def test_node_is_let_in_by_its_addresses(
    policy: SourceRangesPolicy, address: str, ranges: tuple[str, ...], named: bool
) -> None:
    """Of the family of the frontend: a connection has no address of the other one."""
    world = LBWorld()
    world.set_nodes("192.0.2.1", "2001:db8::1")
    svc = service(source_ranges=tuple(map(ip_network, ranges)), source_ranges_policy=policy)
    world.put(frontend(address, (), LOAD_BALANCER, svc))
    async with running(world.reconciler):
        await world.settled()
    let_in = named is (policy is SourceRangesPolicy.ALLOW)
    flags = master_flags(world, address) & ~ServiceFlag.SOURCE_DENY
    assert flags == (INSIDE if let_in else INSIDE_ONLY_OTHERS)


async def test_source_ranges_are_for_clients_outside_alone_by_option() -> None:
    world = LBWorld(PLAIN.model_copy(update={"bpf_lb_source_range_inside": False}))
    world.put(frontend(VIP, (), LOAD_BALANCER, service(**RANGES)))
    async with running(world.reconciler):
        await world.settled()
    assert master_flags(world, VIP) == ServiceFlag.SOURCE_RANGE


def master_flags(world: LBWorld, address: str) -> int:
    addr = L3n4Addr.parse(address)
    value = world.kernel.maps.of(addr.ip.packed).service.lookup(service_keys(addr).slot(0))
    assert value is not None
    return lb.decode_service(value).flags


async def test_hybrid_mode_is_for_tcp_only() -> None:
    world = LBWorld(PLAIN.model_copy(update={"bpf_lb_mode": "hybrid"}))
    world.put(frontend("10.96.0.1:53/UDP", (), LOAD_BALANCER))
    async with running(world.reconciler):
        await world.settled()
    assert "dsr" not in world.dump()


@pytest.mark.parametrize("annotation", ["node", "node-selector"])
async def test_services_that_only_some_nodes_serve_are_translated(annotation: str) -> None:
    world = LBWorld(PLAIN.model_copy(update={"bpf_lb_mode": "dsr"}))
    here = {f"service.cilium.io/{annotation}": "edge"}
    world.put(
        frontend(
            "10.96.0.8:80/TCP",
            (),
            LOAD_BALANCER,
            service(ServiceName("test/here"), annotations=here),
        ),
        frontend("10.96.0.9:80/TCP", (), LOAD_BALANCER),
    )
    async with running(world.reconciler):
        await world.settled()
    dsr = {line.split()[2]: "dsr" in line for line in world.dump().splitlines()}
    assert dsr["ADDR=10.96.0.8:80/TCP"] is False
    assert dsr["ADDR=10.96.0.9:80/TCP"] is True


async def test_affinity_proxy_and_algorithm_stand_in_the_master_entry() -> None:
    world = LBWorld(
        PLAIN.model_copy(update={"bpf_lb_algorithm_annotation": True, "bpf_lb_algorithm": "maglev"})
    )
    world.put(
        frontend(VIP, (), LOAD_BALANCER, service(affinity_timeout_s=42)),
        frontend(
            "10.96.0.2:80/TCP", (), LOAD_BALANCER, service(proxy_redirect=ProxyRedirect(1000))
        ),
        frontend(
            "10.96.0.3:80/TCP",
            (),
            LOAD_BALANCER,
            service(proxy_redirect=ProxyRedirect(1000, (81,))),
        ),
    )
    async with running(world.reconciler):
        await world.settled()
    assert [line.split("SLOT=0 ")[1] for line in world.dump().splitlines() if "SVC" in line] == [
        "LBALG=maglev AFFTimeout=42 COUNT=0 QCOUNT=0 FLAGS=LoadBalancer+sessionAffinity",
        "L7Proxy=1000 COUNT=0 QCOUNT=0 FLAGS=LoadBalancer+l7-load-balancer",
        "LBALG=maglev AFFTimeout=0 COUNT=0 QCOUNT=0 FLAGS=LoadBalancer",
    ]


async def test_redirected_frontend_is_of_type_local_redirect_and_routable() -> None:
    world = LBWorld()
    world.put(frontend(VIP, redirect_to=ServiceName("test/lrp:local-redirect")))
    async with running(world.reconciler):
        await world.settled()
    assert world.dump().splitlines()[1].endswith("FLAGS=LocalRedirect")


class WithoutTunnel(LoadBalancerOptions):
    @property
    def tunnel(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("kind", "tunnel", "programmed"),
    [
        (CLUSTER_IP, True, True),
        (EXTERNAL_IPS, True, True),
        (LOAD_BALANCER, True, True),
        (LOAD_BALANCER, False, False),
        (NODE_PORT, True, False),
        (HOST_PORT, True, False),
    ],
)
async def test_what_is_programmed_beside_kube_proxy(
    kind: FrontendType, tunnel: bool, programmed: bool
) -> None:
    options = LoadBalancerOptions if tunnel else WithoutTunnel
    world = LBWorld(options(kube_proxy_replacement=False, bpf_lb_enable_wildcard_entries=False))
    world.put(frontend(VIP, ["10.244.1.1:80/TCP"], kind))
    async with running(world.reconciler):
        await world.settled()
    assert (world.dump() != "") is programmed
    assert world.frontend(VIP).id == programmed
    assert world.frontend(VIP).status.kind is StatusKind.DONE


# -- wildcard entries ---------------------------------------------------------------------------


async def test_wildcard_entry_is_one_an_address_and_goes_with_the_last_frontend() -> None:
    world = LBWorld(LoadBalancerOptions())
    world.put(frontend(VIP), frontend("10.96.0.1:443/TCP"), frontend("10.96.0.1:80/TCP/i"))
    wildcard = (
        "SVC: ID=0 ADDR=10.96.0.1:0/ANY SLOT=0 LBALG=undef AFFTimeout=0 COUNT=0 QCOUNT=0 "
        "FLAGS=ClusterIP+non-routable\n"
    )
    async with running(world.reconciler):
        await world.settled()
        assert world.dump().count(":0/ANY") == 1
        assert wildcard in world.dump()
        world.remove(VIP)
        await world.settled()
        assert wildcard in world.dump()
        world.remove("10.96.0.1:443/TCP")
        await world.settled()
    assert "ANY" not in world.dump()
    assert "REV: ID=0" not in world.dump()


@pytest.mark.parametrize(
    ("kind", "load_balancer_class", "wanted"),
    [
        (LOAD_BALANCER, None, True),
        (LOAD_BALANCER, "io.cilium/bgp-control-plane", True),
        (LOAD_BALANCER, "io.cilium/l2-announcer", True),
        (LOAD_BALANCER, "example.com/other", False),
        (EXTERNAL_IPS, None, False),
        (HOST_PORT, None, False),
    ],
)
async def test_which_frontends_have_a_wildcard_entry(
    kind: FrontendType, load_balancer_class: str | None, wanted: bool
) -> None:
    world = LBWorld(LoadBalancerOptions())
    world.put(frontend(VIP, (), kind, service(load_balancer_class=load_balancer_class)))
    async with running(world.reconciler):
        await world.settled()
    assert ("ANY" in world.dump()) is wanted


async def test_node_address_has_no_wildcard_entry() -> None:
    world = LBWorld(LoadBalancerOptions())
    world.set_nodes("10.96.0.1")
    world.put(frontend(VIP))
    async with running(world.reconciler):
        await world.settled()
    assert "ANY" not in world.dump()


async def test_prune_removes_what_a_batch_that_was_cut_short_left_behind() -> None:
    world = LBWorld()
    async with running(world.reconciler):
        world.put(frontend(VIP, ["10.244.1.1:80/TCP"]))
        await world.settled()

    def bug(what: str, name: str, key: bytes) -> bool:
        raise RuntimeError("a bug")

    world.kernel.refused = bug
    fe, txn = world.frontend(VIP), world.db.read_txn()
    with pytest.raises(RuntimeError):
        world.ops.delete(txn, 1, fe)
    world.kernel.refused = lambda what, name, key: False
    world.ops.delete(txn, 1, fe)
    assert world.dump() != ""
    world.ops.prune(txn, ())
    assert world.dump() == ""


async def test_frontend_for_which_ids_ran_out_holds_only_what_it_was_given() -> None:
    world = LBWorld()
    world.ops._planner.backends._limit = 2
    async with running(world.reconciler):
        world.put(frontend(VIP, [f"10.244.1.{n}:80/TCP" for n in (1, 2, 3)]))
        await world.attempted()
        assert world.frontend(VIP).status.error == "all 2 backend ids are taken"
        assert world.dump() == ""
        world.put(frontend(VIP, [f"10.244.1.{n}:80/TCP" for n in (2, 3)]))
        await world.settled()
        assert world.ops.summary()["backendStates"] == 2
        world.remove(VIP)
        await world.settled()
    assert world.ops.summary()["backendStates"] == world.ops.summary()["backendIDs"] == 0
    assert world.dump() == ""
