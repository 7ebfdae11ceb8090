# SPDX-License-Identifier: Apache-2.0
"""The files of a directory of manifests: read when they are at rest, and what they say published.

Only regular files are opened, and none is waited for. A file counts as read (its *stamp* is kept)
once what it says is among what will be published, which a failure to publish does not lose.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from cilia.k8s.last_readable import LastReadable
from cilia.k8s.manifest_files import FileContent, Items, Manifests, decode_file, unreadable
from cilia.k8s.watch import Event, Invalid, Problem
from cilia.linux.identity import Place
from statedb.shown.text import visible

# A file written in place is first empty, then partial; it is read when it has been at rest this
# long.
SETTLE_S: Final = 0.03
# A file that became smaller in place, or is empty, is most likely being written: it is read when it
# has been at rest this long. Objects that a file lost in place are in force for as long, and those
# of a file that is gone: many programs remove a file to make it anew.
GRACE_S: Final = 1.0
# A file that is written to without rest is a problem after this long, and still is not read.
PATIENCE_S: Final = 10.0
# One that does not rest so long is not waited for when an agent starts: it has not been read yet.
HOPE_S: Final = 2 * GRACE_S
# A larger file is refused: the objects of 10,000 services take 20 MiB.
MOST_BYTES: Final = 256 << 20
# While many files are read, what they say is published this often: readers work meanwhile, and are
# not woken for each file, which makes the two threads fight for the interpreter.
PUBLISH_S: Final = 0.2

# Said of a broken file of which an agent before this one may have had objects in force.
UNKNOWN: Final = (
    "no copy tells what was in force from this file when the agent started: nothing is removed from"
    " the kernel until the file can be read, or is removed"
)

# Said of an empty directory that came in the place of another.
EMPTY: Final = (
    "is another directory than before and has no manifests, as when a file system is not mounted:"
    " what was in force stays until one is in it"
)
NOTHING_KNOWN: Final = (
    "has no manifests, and no copies tell what was in force when the agent started: nothing is"
    " removed from the kernel until one is in it (an empty List will do)"
)

# Said of the directory while files are unread, with their names.
UNREAD: Final = (
    "{} is not read, and nothing tells what was in force from it: until it can be read, or is"
    " removed, nothing is removed from the kernel; what others add or change is served"
)
# Files that a message names.
EXAMPLES: Final = 3

# Inode, size and modification time in ns.
Stamp = tuple[int, int, int]


class Unreadable(Exception):
    """A file that is no manifest; the text says why."""


class Restless(Exception):
    """A file that may be read in `wait_s` seconds, if it is not written to until then."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


class DirectoryFiles:
    """Reads files, keeps what they say together, and publishes what changes.

    `read` may run in a thread, one at a time. With ``keeps_removed``, a file that goes leaves its
    objects in force and is a problem. `copies` has what was in force from a file before this agent
    started; a broken file of which nobody knows that counts as unread.
    """

    def __init__(
        self,
        directory: Path,
        manifests: Manifests,
        publish: Callable[[Iterable[Event]], None],
        *,
        items: Items,
        settle_s: float = SETTLE_S,
        keeps_removed: bool = False,
        copies: LastReadable | None = None,
    ) -> None:
        self._copies = copies
        self._directory = directory
        self._manifests = manifests
        self._publish = publish
        self._items = items
        self._settle_s = settle_s
        self._keeps_removed = keeps_removed
        # What readers have not been told yet, and since when in seconds of `time.monotonic`.
        self._unpublished: list[Event] = []
        self._published_at = 0.0
        self._stamps: dict[str, Stamp] = {}
        # When to look again, and since when a file does not rest, in seconds of `time.monotonic`.
        self.due: dict[str, float] = {}
        self._restless_since: dict[str, float] = {}
        # Files that are gone and whose objects are in force, and since when, likewise.
        self._gone: dict[str, float] = {}
        # Broken files that may have objects in force which nobody knows.
        self._unknown: set[str] = set()
        self._copies_problem = ""
        # There is no file, and nobody knows what is in force.
        self._copies_lost = False
        # The directory that was read last, also by the agent before.
        self.place = None if copies is None else copies.last_place()

    @property
    def names(self) -> Iterable[str]:
        return self._manifests.files

    @property
    def waiting(self) -> bool:
        """True while what a file has in force is not known: it was not read yet, or is broken."""
        return self._copies_lost or bool(self._unknown or self._restless())

    @property
    def hopeful(self) -> bool:
        """True while a file that was not read yet may come to rest at any moment."""
        now = time.monotonic()
        return any(now - self._restless_since[name] < HOPE_S for name in self._restless())

    @property
    def unread(self) -> str:
        """A sentence on what is not known; empty if nothing is."""
        names = sorted({*self._unknown, *self._restless()})
        if not names:
            return NOTHING_KNOWN if self._copies_lost else ""
        more = [f"{len(names) - EXAMPLES} more"] if len(names) > EXAMPLES else []
        return UNREAD.format(", ".join([*map(visible, names[:EXAMPLES]), *more]))

    def _restless(self) -> set[str]:
        """Files that were never read, because they do not rest."""
        return self._restless_since.keys() - set(self._manifests.files)

    @property
    def copies_directory(self) -> Path | None:
        return None if self._copies is None else self._copies.directory

    @property
    def has_unkept(self) -> bool:
        """True while a file has no copy though it should."""
        return self._copies is not None and bool(self._copies.unkept)

    def prepare_copies(self) -> None:
        """Make the directory of the copies, before a watch of the way to it would tell of that."""
        if self._copies is not None:
            self._copies.prepare()

    def keep_all(self) -> str:
        """Keep what is in force although the directory has no files; return why, or nothing.

        At a start it is put in force again, from the copies. One that cannot be read, or that was
        lost, counts as an unread file.
        """
        if any(self.names):
            return EMPTY
        if self._copies is None:
            return ""
        for name, objects in self._copies.all():
            self._unpublished += self._manifests.put(name, FileContent(dict(objects or {})))
            if objects is None:
                self._unknown.add(name)
        self._tell()
        self._copies_lost = not self._copies.is_complete
        if self._copies_lost:
            return NOTHING_KNOWN
        return EMPTY if any(self.names) else ""

    def begin(self, place: Place) -> None:
        """All files of this directory are read now."""
        self.place = place
        self._copies_lost = False

    def forget_stamps(self) -> None:
        """Count all files as unread."""
        self._stamps.clear()

    def read(self, names: Iterable[str]) -> list[str]:
        """Take in the files that changed and are at rest; return those that are gone."""
        try:
            return [name for name in names if not self._is_there(name)]
        finally:
            self._tell()

    def finish(self, gone: Iterable[str]) -> None:
        """End a reading: take out files that are gone, and keep what has no copy yet."""
        self._let_go(gone)
        self._keep_copies()
        self._tell()

    def _let_go(self, names: Iterable[str]) -> None:
        """What a file alone had stays in force for a while; what others have is theirs at once."""
        now = time.monotonic()
        for name in names:
            self._stamps.pop(name, None)  # one that comes back as it was is read again
            self._unknown.discard(name)
            left_s = self._gone.setdefault(name, now) + GRACE_S - now
            if left_s > 0 and self._manifests.alone(name):
                self.due[name] = now + left_s
            else:
                del self._gone[name]
                self._remove(name)
        for name in self._gone:
            content = FileContent(self._manifests.alone(name))
            self._unpublished += self._manifests.put(name, content)

    def _remove(self, name: str) -> None:
        self._unpublished += self._manifests.remove(name)
        if self._copies is not None:
            self._copies.forget(name)

    def _is_there(self, name: str) -> bool:
        """Take in a file if it can be; return False if it is gone."""
        self.due.pop(name, None)
        is_there = True
        try:
            self._read(name)
        except Restless as error:
            self._gone.pop(name, None)
            self._look_again(name, error.wait_s)
            return True
        except FileNotFoundError as error:
            is_there = self._keeps_removed
            if is_there:
                self._put(name, self._problem(name, f"cannot be read: {error.strerror}"))
        except OSError as error:
            self._put(name, self._problem(name, f"cannot be read: {error.strerror}"))
        except Unreadable as error:
            self._put(name, self._problem(name, str(error)))
        self._restless_since.pop(name, None)
        if is_there:
            self._gone.pop(name, None)
        return is_there

    def forget_others(self, names: Iterable[str]) -> None:
        """Forget what the last agent was told by files that are not among these any more."""
        if self._copies is not None:
            self._copies.retain(names)

    def _keep_copies(self) -> None:
        """Write the copies that could not be written, or that somebody removed, and the mark that
        there are all of them.
        """
        if self._copies is None:
            return
        for name in (*self._copies.unkept, *self._copies.lost(self.names)):
            self._keep(name)
        if not self.waiting and self.place is not None:
            self._copies.mark_complete(self.place)

    def _read(self, name: str) -> None:
        """Raises OSError, Restless, Unreadable."""
        known = self._stamps.get(name)
        stamp, age_s, data = read_at_rest(self._directory / name, known, self._settle_s)
        if data is None:
            return
        content = decode_file(visible(name), data, self._items)
        in_place = known is not None and known[0] == stamp[0]
        if in_place and 0 <= age_s < GRACE_S:
            lost = self._manifests.lost(name, content)
            if lost:
                self._put(name, msgspec.structs.replace(content, keep=content.keep | lost))
                raise Restless(GRACE_S - age_s)
        self._put(name, content)
        self._stamps[name] = stamp

    def _put(self, name: str, content: FileContent) -> None:
        if not (content.keep_all or content.keep):
            self._unknown.discard(name)
        elif self._copies is not None:
            content = self._with_former(name, content, self._copies)
        self._unpublished += self._manifests.put(name, content)
        self._keep(name)
        if time.monotonic() - self._published_at >= PUBLISH_S:
            self._tell()

    def _with_former(self, name: str, content: FileContent, copies: LastReadable) -> FileContent:
        """Put what was in force from a broken file before this agent started, or say that nobody
        knows that.
        """
        if name not in self._manifests.files:
            before = copies.last(name)
            if before is None:
                self._unknown.add(name)
            elif before:
                self._unpublished += self._manifests.put(name, FileContent(dict(before)))
        if name not in self._unknown:
            return content
        unknown = Problem(UNKNOWN, visible(name))
        return msgspec.structs.replace(content, problems=(*content.problems, unknown))

    def _keep(self, name: str) -> None:
        """Keep a copy of what is in force from a file, before it is published."""
        if self._copies is None or name in self._unknown:
            return
        self._copies.keep(name, self._manifests.objects(name))

    def _tell(self) -> None:
        """Publish what readers have not been told yet; a failure leaves it for the next time."""
        problem = "" if self._copies is None else self._copies.problem()
        if self._copies is not None and problem != self._copies_problem:
            self._copies_problem = problem
            directory = visible(str(self._copies.directory))
            problems = (Problem(problem, directory),) if problem else ()
            self._unpublished.append(Invalid(f"copies:{directory}", problems))
        self._publish(self._unpublished)
        self._unpublished = []
        self._published_at = time.monotonic()

    def _problem(self, name: str, message: str) -> FileContent:
        self._stamps.pop(name, None)
        return unreadable(visible(name), message)

    def _look_again(self, name: str, wait_s: float) -> None:
        now = time.monotonic()
        self.due[name] = now + max(wait_s, 0.001)
        since = self._restless_since.setdefault(name, now)
        if now - since >= PATIENCE_S:
            message = f"has been written to for {PATIENCE_S:g} s: it is read once it rests"
            self._put(name, self._problem(name, message))


def read_at_rest(
    path: Path, known: Stamp | None, settle_s: float = SETTLE_S
) -> tuple[Stamp, float, bytes | None]:
    """Return the stamp, age in seconds and content of a file that is at rest; no content when the
    stamp is the known one.

    Raises:
        OSError: as the kernel says.
        Restless: the file was just written, or is written while it is read.
        Unreadable: it is no regular file, or too large.
    """
    before = _stamp(os.stat(path))
    if before == known:
        return before, 0.0, None
    shrank = known is not None and known[0] == before[0] and before[1] < known[1]
    rest_s = max(settle_s, GRACE_S) if shrank or not before[1] else settle_s
    _check_rest(before, rest_s)
    # Not to wait for a writer if the name leads to a pipe by now.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(file, "rb") as opened:
        _stamp(os.fstat(file))
        data = opened.read()
        after = _stamp(os.fstat(file))
    age_s = _check_rest(after, rest_s)
    if before != after:
        raise Restless(settle_s)
    return after, age_s, data


def _check_rest(stamp: Stamp, rest_s: float) -> float:
    """The age of a file that rests long enough. Raises Restless."""
    age_s = time.time() - stamp[2] / 1e9
    if 0 <= age_s < rest_s:
        raise Restless(rest_s - age_s)
    return age_s


def _stamp(status: os.stat_result) -> Stamp:
    """Raises Unreadable."""
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("is not a regular file")
    if status.st_size > MOST_BYTES:
        raise Unreadable(f"has {status.st_size} bytes, more than {MOST_BYTES}")
    return (status.st_ino, status.st_size, status.st_mtime_ns)
