# SPDX-License-Identifier: Apache-2.0
"""`cilia cleanup`: remove everything that an instance ever made.

Links and tc filters first (traffic passes untranslated from then on), then maps and their pins,
then the state directory, then the mounts that the agent had to make. Idempotent; refused while the
agent runs.
"""

from __future__ import annotations

import errno
import shutil
import time
from pathlib import Path

import click

from cilia.agent.config import AgentConfig
from cilia.agent.state_directory import entries, make_and_lock
from cilia.datapath.mounts import pin_dirs, unmount_ours
from cilia.endpoints.cni_files import remove_files
from cilia.endpoints.removal import remove_pod_network
from cilia.linux.lock import AlreadyRunning, InstanceLock
from cilia.linux.netlink import Netlink
from cilia.program.errors import ProgramError
from cilia.program.instance import DEFAULT_INSTANCE
from cilia.program.options import validated

WAIT_S = 10.0


@click.command()
@click.option("--state-dir", type=click.Path(path_type=Path), help="As given to the agent.")
@click.option("--bpf-root", type=click.Path(path_type=Path), help="As given to the agent.")
@click.option("--wait", is_flag=True, help="Wait a few seconds for an agent that is ending.")
@click.option(
    "--hand-back",
    type=float,
    metavar="SECONDS",
    help="Leave new connections to kube-proxy first, and wait so long for the end of known ones.",
)
@click.pass_context
def cleanup(
    ctx: click.Context,
    state_dir: Path | None,
    bpf_root: Path | None,
    wait: bool,
    hand_back: float | None,
) -> None:
    """Remove everything that an instance ever made: programs, maps, pins, state, mounts.

    Connections that are translated here are broken by it, and pods whose network is cilia's
    (--pod-network) lose it.

    \b
    Examples:
      cilia cleanup
      cilia cleanup --hand-back 60
      cilia --instance test cleanup
    """
    instance = ctx.obj["explicit_instance"] or DEFAULT_INSTANCE
    given = {"instance": instance, "state_dir": state_dir, "bpf_root": bpf_root}
    config = validated(AgentConfig, given)
    lock = InstanceLock()
    try:
        acquire(lock, config, WAIT_S if wait else 0.0)
        if hand_back is not None:
            _hand_back(config, hand_back)
        removed = remove_everything(config)
    except (AlreadyRunning, ProgramError) as error:
        raise click.ClickException(str(error)) from None
    except PermissionError as error:
        text = f"{error.filename}: {error.strerror}: run this as root"
        raise click.ClickException(text) from None
    except OSError as error:
        text = f"{error.filename}: {error.strerror}: mend that, then run this again"
        raise click.ClickException(text) from None
    finally:
        lock.release()
    for line in removed or [f"nothing of instance {instance} was there"]:
        click.echo(line)


def acquire(lock: InstanceLock, config: AgentConfig, wait_s: float) -> None:
    """An agent that starts takes the lock of the state directory first: it is made if need be.

    Raises: AlreadyRunning, ProgramError (also for a directory that no agent had), OSError.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            make_and_lock(config.run_dir, lock)
            if config.pin_dir.exists():
                lock.acquire(config.pin_dir)
            return
        except AlreadyRunning:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)  # flock has no wait with a time limit


def _hand_back(config: AgentConfig, timeout_s: float) -> None:
    maps = config.pin_dir / "maps"
    if maps.exists():
        from cilia.loadbalancer import hand_back  # loads libbpf

        hand_back.hand_back(maps, timeout_s, click.echo)


def remove_everything(config: AgentConfig) -> list[str]:
    """What was removed, a line each."""
    removed = []
    # The agent may have been given another --bpf-root than this command.
    for pin_dir in dict.fromkeys([config.pin_dir, *pin_dirs(config.run_dir)]):
        if pin_dir.exists():
            removed += _remove_datapath(pin_dir)
    # Without its list the container runtime asks nobody for a network that goes.
    removed += remove_files(config.run_dir)
    removed += remove_pod_network(config.run_dir)
    removed += unmount_ours(config.run_dir)
    if config.run_dir.exists():
        removed += _remove_directory(config.run_dir)
    return removed


def _remove_datapath(pin_dir: Path) -> list[str]:
    from bpf.datapath import DIRECTORIES  # loads libbpf
    from bpf.datapath import cleanup as detach_and_unpin

    filters = _detach_filters(pin_dir)
    ours = any((pin_dir / name).is_dir() for name in DIRECTORIES)
    left = detach_and_unpin(pin_dir)
    return [
        *([f"{filters} tc filters on devices"] if filters else []),
        *([f"programs, maps and links pinned below {pin_dir}"] if ours else []),
        *(f"left: {path} is not of an instance" for path in left),
    ]


def _detach_filters(pin_dir: Path) -> int:
    """Take away what serves devices on a kernel without TCX: filters have no pin, and would go on
    translating without an agent. They are known by their programs; another instance has others.
    """
    from reconcilers.datapath.attachment_places import FilterPlaces

    with Netlink() as netlink:
        return FilterPlaces(netlink, pin_dir).detach_all()


def _remove_directory(directory: Path) -> list[str]:
    """Remove what an agent keeps in its state directory, and the directory if nothing else is in
    it; a mount point, as in a container, stays.
    """
    ours, others = entries(directory)
    for path in ours:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not others:
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EROFS):  # mounted; also in a read-only root
                raise
    left = [f"left: {path} is not an agent's" for path in others]
    return [str(directory), *left] if ours else left
