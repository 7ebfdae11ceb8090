# SPDX-License-Identifier: Apache-2.0
"""A container runtime's requests, carried out: what `cilia-cni` was called for.

ADD::

    pod known -> numbers and addresses -> file -> devices -> row -> all in force -> answer

and whatever fails takes back what was done before it. The file comes before the devices, and the
devices before the row, so a kill leaves nothing that the next start could not find. DEL goes the
other way: devices, row, file. Addresses that it frees rest for a while.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import msgspec
import structlog

from cilia.endpoints import chained, links
from cilia.endpoints.annotations import InvalidAnnotation, mac_address
from cilia.endpoints.chaining import Chaining
from cilia.endpoints.checking import EndpointCheck
from cilia.endpoints.cni import results
from cilia.endpoints.cni.errors import CNIError, Code
from cilia.endpoints.cni.requests import Request
from cilia.endpoints.cni.results import Interface, Result, Route
from cilia.endpoints.cni.turns import Turns
from cilia.endpoints.inputs import Inputs
from cilia.endpoints.links import Pair
from cilia.endpoints.registry import NoNumber, Registry
from cilia.endpoints.saved import SavedEndpoints
from cilia.ipam.allocator import AddressTaken, NoPool, PoolExhausted, router_of
from cilia.linux.errors import KernelError
from cilia.linux.netlink import Netlink
from cilia.linux.sysctl import Sysctl
from tables.addressing import IP
from tables.cluster.pods import Pod
from tables.endpoints.endpoints import Attachment, Endpoint, EndpointState

__all__ = ["EndpointPlugin"]

log = structlog.get_logger("endpoints")

#: Of CHECK: the container has not what it was given.
UNHEALTHY: Final = 101

#: Seconds that a pod's object may be late.
POD_WAIT_S: Final = 10.0
#: Seconds until all must be in force: a start under load attaches hundreds of programs before.
READY_WAIT_S: Final = 40.0


class EndpointPlugin:
    """A `Plugin` on the tables of an agent."""

    def __init__(
        self,
        inputs: Inputs,
        registry: Registry,
        saved: SavedEndpoints,
        netlink: Netlink,
        sysctls: Sysctl,
        mtu: Callable[[], int],
        turns: Turns,
        checking: EndpointCheck,
        chaining: Chaining,
    ) -> None:
        """`netlink` and `sysctls` are those of the node, `mtu` is that of its pods' devices.

        `turns`, by device: the server serves one request of an attachment at a time, and nobody
        else is to be between the steps of one.
        """
        self._inputs = inputs
        self._registry = registry
        self._saved = saved
        self._netlink = netlink
        self._sysctls = sysctls
        self._mtu = mtu
        self._turns = turns
        self._checking = checking
        self._chaining = chaining

    # -- ADD --

    async def wait(self, request: Request) -> None:
        """Wait for the pod's object. Raises: CNIError."""
        self._chaining.check_place(request)
        self._inputs.require_synchronised()
        await self._inputs.pod(request, POD_WAIT_S)

    async def add(self, request: Request) -> Result:
        """Give a container its network. Raises: CNIError."""
        started = time.perf_counter()
        phases: dict[str, float] = {}

        def done(phase: str) -> None:
            phases[phase] = time.perf_counter() - started - sum(phases.values())

        if request.prev_result is not None:
            await self._remove_former(request, request.prev_result)
        made = await self._found_or_new(request)
        async with self._turns.take(made.device):
            pod = await self._inputs.pod(request)
            await self._remove(made.device, made.is_chained)
            ep = _of_pod(made, pod) if pod is not None else made
            try:
                ep = self._registry.adopt(ep) if ep.is_chained else self._registry.allocate(ep)
            except (NoNumber, NoPool, PoolExhausted, AddressTaken) as error:
                raise CNIError(Code.TRY_AGAIN_LATER, str(error)) from None
            done("address")
            await self._put_in_force(request, ep, done)
            self._registry.took(ep, phases)
        log.info("endpoint is ready", id=ep.id, pod=ep.pod_name, attachment=str(ep.attachment))
        return request.prev_result or self._result(ep, request)

    async def _put_in_force(
        self, request: Request, ep: Endpoint, done: Callable[[str], None]
    ) -> None:
        """Make devices and row, and wait for the rest; or undo all. Raises: CNIError."""
        try:
            ep = await self._make(request, ep)
            done("link")
            self._registry.insert(ep)
            await self._in_force(ep)
            done("datapath")
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._undo(ep)
            raise

    # -- devices that another plugin made --

    async def _remove_former(self, request: Request, result: Result) -> None:
        """Remove endpoints that had the addresses of a result, or its attachment, before: who gives
        addresses says that they are free. One whose device is there still is left.
        """
        addresses = self._chaining.addresses(result)
        former = [ep for ip in addresses if ip is not None for ep in self._registry.by_address(ip)]
        if (before := self._registry.by_attachment(_attachment(request))) is not None:
            former.append(before)
        for ep in former:
            again = ep.attachment == _attachment(request)
            if again or await anyio.to_thread.run_sync(self._netlink.link, ep.device) is None:
                await self.remove(ep.device)

    async def _found_or_new(self, request: Request) -> Endpoint:
        """Return an endpoint of the devices that are there, or else are to be made.

        Raises: CNIError.
        """
        if request.prev_result is None:
            device = links.device_name(request.container_id, request.ifname)
            return self._new(request, Pair(device, 0, links.new_mac(), links.new_mac()))
        pair, ipv4, ipv6 = await anyio.to_thread.run_sync(
            self._chaining.given, request, request.prev_result
        )
        ep = self._new(request, pair)
        return msgspec.structs.replace(ep, index=pair.index, ipv4=ipv4, ipv6=ipv6, is_chained=True)

    # -- devices of our own --

    def _new(self, request: Request, pair: Pair) -> Endpoint:
        return Endpoint(
            id=0,
            attachment=_attachment(request),
            device=pair.device,
            node_mac=pair.node_mac,
            mac=pair.mac,
            created_at=time.time(),
            state=EndpointState.WAITING_FOR_IDENTITY,
            labels=self._inputs.container_labels(request),
        )

    async def _make(self, request: Request, ep: Endpoint) -> Endpoint:
        """Write the file, then make the devices. Raises: CNIError."""
        assert request.netns_fd is not None
        work = partial(self._make_in_thread, request.netns_fd, ep)
        try:
            return await anyio.to_thread.run_sync(work)
        except OSError as error:
            raise CNIError(
                Code.IO_FAILURE, f"the container's network cannot be made: {error}"
            ) from error

    def _make_in_thread(self, netns_fd: int, ep: Endpoint) -> Endpoint:
        with links.open_netns(netns_fd) as netns:
            ep = msgspec.structs.replace(ep, netns_cookie=links.netns_cookie(netns))
            self._saved.write(ep)
            if ep.is_chained:
                chained.take(self._netlink, ep.index)
                return ep
            mtu = self._mtu()
            ifname = ep.attachment.ifname
            index = links.make_pair(
                self._netlink, self._sysctls, netns, ep.device, ifname, ep.mac, ep.node_mac, mtu
            )
            links.configure(netns, self._sysctls.inside(netns), self._interior(ep, mtu))
        return msgspec.structs.replace(ep, index=index)

    def _interior(self, ep: Endpoint, mtu: int = 0) -> links.Interior:
        routers = tuple(router_of(pool) for pool in self._registry.pools_of(ep))
        return links.Interior(ep.attachment.ifname, ep.addresses, routers, mtu)

    async def _in_force(self, ep: Endpoint) -> None:
        """Raises: CNIError."""
        missing = await self._registry.wait_ready(ep.id, READY_WAIT_S)
        if missing:
            raise CNIError(
                Code.TRY_AGAIN_LATER,
                f"the endpoint is not in force after {READY_WAIT_S:.0f} s: {missing}; look at"
                " `cilia status` on the node",
            )

    def _result(self, ep: Endpoint, request: Request) -> Result:
        gateways = {pool.is_ipv6: router_of(pool) for pool in self._registry.pools_of(ep)}
        return Result(
            interfaces=(
                Interface(name=ep.device, mac=ep.node_mac.hex(":")),
                Interface(name=ep.attachment.ifname, mac=ep.mac.hex(":"), sandbox=request.netns),
            ),
            ips=tuple(
                results.IP(
                    address=f"{ip}/{ip.bits}",
                    gateway=str(gateways[ip.is_ipv6]),
                    interface=1,
                )
                for ip in reversed(ep.addresses)
            ),
            routes=tuple(_routes(list(gateways.values()))),
        )

    # -- DEL and GC --

    async def delete(self, request: Request) -> None:
        """Take a container's network away; what is gone already is no error. Raises: CNIError."""
        await self._registry.wait_restored()  # its row would come when its device is gone
        ep = self._of(request)
        device = ep.device if ep else links.device_name(request.container_id, request.ifname)
        if ep is not None and ep.attachment.network not in ("", request.network):
            log.warning("a DEL names another network than the ADD", device=device)
            return
        await self.remove(device)

    def _of(self, request: Request) -> Endpoint | None:
        device = links.device_name(request.container_id, request.ifname)
        found = self._registry.by_attachment(_attachment(request))
        return found or self._registry.by_device(device)

    async def remove(self, device: str) -> None:
        """Remove the endpoint of a device, or what is left of one. Raises: CNIError."""
        async with self._turns.take(device):
            await self._remove(device)

    async def gc(self, request: Request) -> None:
        """Remove the endpoints of this network that the runtime does not know any more.

        Not those that were made after it made its list, and none whose pod there still is: another
        runtime on this node has a list of its own. Raises: CNIError.
        """
        self._inputs.require_synchronised()
        valid = {Attachment(*attachment) for attachment in request.valid_attachments}
        started_at = time.time()
        for ep in self._registry.of_network(request.network):
            if ep.attachment in valid or ep.created_at >= started_at or self._inputs.has_pod(ep):
                continue
            log.info("removing an endpoint that no runtime has", id=ep.id, device=ep.device)
            await self.remove(ep.device)

    async def _remove(self, device: str, is_chained: bool = False) -> None:
        ep = self._registry.disconnect(device)
        let_go = _letting_go(is_chained if ep is None else ep.is_chained)
        try:
            await anyio.to_thread.run_sync(let_go, self._netlink, device)
            if ep is not None:
                self._registry.remove(ep)
                await anyio.to_thread.run_sync(self._saved.remove, ep.id)
        except KernelError as error:
            raise CNIError(
                Code.IO_FAILURE, f"device {device} cannot be removed: {error}"
            ) from error
        except OSError as error:
            raise CNIError(
                Code.IO_FAILURE, f"the endpoint's file cannot be removed: {error}"
            ) from error

    async def _undo(self, ep: Endpoint) -> None:
        """Take back an ADD that failed; what cannot be taken back is found at the next start."""
        steps = (
            partial(_letting_go(ep.is_chained), self._netlink, ep.device),
            partial(self._registry.remove, ep),
            partial(self._saved.remove, ep.id),
        )
        for step in steps:
            try:
                await anyio.to_thread.run_sync(step)
            except OSError as error:
                log.error("an ADD is not taken back", device=ep.device, error=str(error))

    # -- CHECK and STATUS --

    async def check(self, request: Request) -> None:
        """Compare what the container has with what it was given. Raises: CNIError."""
        await self._registry.wait_restored()
        ep = self._of(request)
        if ep is None:
            raise CNIError(
                UNHEALTHY, f"no endpoint is known as {request.container_id}/{request.ifname}"
            )
        missing = self._registry.waits_for(ep)
        found = await anyio.to_thread.run_sync(self._differences, request, ep)
        differences = "; ".join([missing, *found] if missing else found)
        if differences:
            raise CNIError(
                UNHEALTHY,
                f"endpoint {ep.id} ({ep.device}) is not as it was made: {differences}",
            )

    def _differences(self, request: Request, ep: Endpoint) -> list[str]:
        # Who lost its file does not know the name of its interface.
        interior = dataclasses.replace(self._interior(ep), ifname=request.ifname)
        if request.netns_fd is None:
            return self._checking.differences(ep, None, interior)
        with links.open_netns(request.netns_fd) as netns:
            return self._checking.differences(ep, netns, interior)

    async def status(self, request: Request) -> None:
        """Raises: CNIError where ADD would fail."""
        try:
            self._inputs.require_synchronised()
        except CNIError as error:
            raise CNIError(Code.NOT_AVAILABLE, error.msg) from None
        if not self._chaining.is_on and (reason := self._registry.cannot_allocate()):
            raise CNIError(Code.NOT_AVAILABLE, reason)


def _letting_go(is_chained: bool) -> Callable[[Netlink, str], bool]:
    """Return what ends an endpoint's hold on its device."""
    return chained.give_back if is_chained else chained.let_go


def _attachment(request: Request) -> Attachment:
    return Attachment(*request.attachment)


def _of_pod(ep: Endpoint, pod: Pod) -> Endpoint:
    """Raises: CNIError for an annotation that no pod can have."""
    try:
        mac = mac_address(pod.annotations)
    except InvalidAnnotation as error:
        raise CNIError(Code.INVALID_CONFIG, str(error)) from None
    return msgspec.structs.replace(
        ep,
        namespace=pod.namespace,
        pod=pod.name,
        pod_uid=pod.uid,
        mac=ep.mac if ep.is_chained else mac or ep.mac,
    )


def _routes(gateways: list[IP]) -> list[Route]:
    found = []
    for gateway in gateways:
        found.append(Route(dst=f"{gateway}/{gateway.bits}"))
        found.append(Route(dst="::/0" if gateway.is_ipv6 else "0.0.0.0/0", gw=str(gateway)))
    return found
