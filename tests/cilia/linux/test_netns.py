# SPDX-License-Identifier: Apache-2.0
import os
import socket
import threading

import pytest

from cilia.linux.netns import NetNS

pytestmark = pytest.mark.root


def names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def test_work_runs_inside_and_the_caller_stays_where_it_is() -> None:
    with NetNS.current() as before, NetNS.new() as netns:
        assert netns.run(names) == ["lo"]
        assert netns.run(lambda: os.stat("/proc/thread-self/ns/net").st_ino) == netns.inode
        with NetNS.current() as after:
            assert after.inode == before.inode != netns.inode


def test_a_socket_stays_inside_whichever_thread_uses_it() -> None:
    with NetNS.new() as netns, netns.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        port: list[int] = []

        def listen() -> None:
            listener.bind(("0.0.0.0", 0))
            listener.listen()
            port.append(listener.getsockname()[1])

        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
        with socket.socket() as outside, pytest.raises(ConnectionRefusedError):
            outside.connect(("127.0.0.1", port[0]))


def test_an_exception_inside_reaches_the_caller() -> None:
    def fail() -> None:
        raise LookupError("inside")

    with NetNS.new() as netns, pytest.raises(LookupError, match="inside"):
        netns.run(fail)


def test_the_path_opens_the_same_namespace() -> None:
    with NetNS.new() as netns, NetNS.open(netns.path) as again:
        assert again.inode == netns.inode


def test_nothing_stays_open_after_close() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with NetNS.new() as netns:
            netns.run(names)
        netns.close()
    assert len(os.listdir("/proc/self/fd")) == before
