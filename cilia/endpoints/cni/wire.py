# SPDX-License-Identifier: Apache-2.0
r"""Requests and answers between `cilia-cni` (`cni/cilia-cni.c`) and the agent, as bytes.

::

    request   "CNI" 1   u32 size of environment   u32 size of input   environment   input
    answer    "CNI" 1   u32 exit status           u32 size of output  output

Numbers are in network order. The environment is `CNI_X=...\0` for each variable, the input the
network configuration. The network namespace comes with the first byte of a request, by SCM_RIGHTS.
A file of the queue is a request without that.
"""

from __future__ import annotations

import array
import socket
import struct
from typing import Final

import anyio

from cilia.endpoints.cni.errors import WireError

__all__ = ["MAX_REQUEST", "answer", "receive_request", "send", "split"]

HEADER: Final = struct.Struct("!3sBII")
MAGIC: Final = b"CNI"
VERSION: Final = 1
#: Largest sizes, those of the program too.
MAX_ENVIRONMENT: Final = 256 << 10
MAX_INPUT: Final = 1 << 20
MAX_REQUEST: Final = HEADER.size + MAX_ENVIRONMENT + MAX_INPUT
#: Bytes that are read at a time.
CHUNK: Final = 64 << 10
_DESCRIPTOR: Final = array.array("i").itemsize


def answer(status: int, output: bytes) -> bytes:
    """Return an answer; the exit status is that of the program, 0 to 255."""
    return HEADER.pack(MAGIC, VERSION, status, len(output)) + output


def split(request: bytes) -> tuple[bytes, bytes]:
    """Return environment and input of a whole request.

    Raises:
        WireError: it is none.
    """
    environment = _sizes(request)[0]
    if len(request) != (whole := HEADER.size + sum(_sizes(request))):
        raise WireError(f"it has {len(request)} bytes where {whole} are announced")
    body = request[HEADER.size :]
    return body[:environment], body[environment:]


def _sizes(request: bytes | bytearray) -> tuple[int, int]:
    """Return the sizes of environment and input.

    Raises:
        WireError: the header is none, of another version, or announces too much.
    """
    if len(request) < HEADER.size:
        raise WireError(f"it ends after {len(request)} bytes")
    magic, version, environment, input_size = HEADER.unpack_from(request)
    if magic != MAGIC:
        raise WireError("it does not begin as a request of cilia-cni does")
    if version != VERSION:
        raise WireError(
            f"it is of version {version}, and this agent speaks {VERSION}: the program in the"
            " directory of CNI plugins is another release's; the agent installs its own"
        )
    if environment > MAX_ENVIRONMENT or input_size > MAX_INPUT:
        raise WireError(
            f"it announces {environment} and {input_size} bytes; at most {MAX_ENVIRONMENT} of"
            f" environment and {MAX_INPUT} of network configuration are read"
        )
    return environment, input_size


async def receive_request(peer: socket.socket, descriptors: list[int]) -> bytes:
    """Return a whole request. The descriptors that came with it, which are at most one, are added
    to the list; the caller closes them, also after an error.

    Raises:
        WireError: the peer sends something else, or goes.
    """
    request, whole = bytearray(), HEADER.size
    while len(request) < whole:
        await anyio.wait_readable(peer)
        try:
            data, ancillary, flags, _ = peer.recvmsg(
                min(CHUNK, whole - len(request)),
                socket.CMSG_SPACE(4 * _DESCRIPTOR),
                socket.MSG_CMSG_CLOEXEC,
            )
        except BlockingIOError:
            continue
        except ConnectionError as error:
            raise WireError(f"it ends: {error.strerror}") from None
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors += array.array("i", content)
        if len(descriptors) > 1 or flags & socket.MSG_CTRUNC:
            raise WireError("more than one descriptor comes with it")
        if not data:
            raise WireError(f"it ends after {len(request)} bytes")
        request += data
        if whole == HEADER.size <= len(request):
            whole += sum(_sizes(request))
    return bytes(request)


async def send(peer: socket.socket, data: bytes) -> None:
    """Send all bytes. Raises: OSError if the peer has gone."""
    left = memoryview(data)
    while left:
        try:
            left = left[peer.send(left, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            await anyio.wait_writable(peer)
