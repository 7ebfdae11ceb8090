# SPDX-License-Identifier: Apache-2.0
"""Move modules to the folders of their features, and rewrite what names them.

`layout_moves.txt` has a line `OLD NEW` a file or folder. The script moves them with git, rewrites
import statements by their syntax tree, and replaces paths and dotted names in strings, comments,
documents and build files. Names in code are left alone: a variable `tables` is no package.
Run from the root of a clean checkout: python3 layout_moves.py.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path

HERE = Path(__file__).parent

#: Docstrings of the packages that are new, and what else stands in their `__init__.py`.
PACKAGES = {
    "bpf/lb": """Choice of a backend in Python, as the programs do it: hash, Maglev tables, model.

    Belongs here: what must give the same answer as `bpf/lib/lb_*.h`. Start with `choice.py`.""",
    "cilia/agent/script": """Script commands and the application that golden scripts run against.

    Belongs here: commands that need the agent's wiring. Start with `application.py`.""",
    "cilia/cluster": """Objects of the cluster: their source, pods, nodes, namespaces, problems.

    Belongs here: reflectors of objects that no other feature owns. Start with `inputs.py` (the
    source), then `objects.py` (how a table follows it).""",
    "cilia/datapath": """Maps and programs of the node: opening, devices, conntrack, drift.

    Belongs here: what every feature of the datapath shares. Start with `datapath.py`.""",
    "cilia/datapath/cli": "`cilia bpf`: pinned maps, also with the agent dead.",
    "cilia/loadbalancer/cli": "Commands about Services: `service`, `lb`, `lrp`, `replacement`.",
    "cilia/loadbalancer/connections": """Connections of Services: who has them, and who ends them.

    Belongs here: sockets and flows to backends that go. Start: `socket_termination.py`.""",
    "cilia/loadbalancer/redirects": """Local redirect policies: objects to rows, rows to frontends.

    Start with `controller.py`.""",
    "cilia/node": """The node's own network: devices, addresses and routes that netlink reports.

    Belongs here: netlink to tables, and what follows from them. Start with `wiring.py`.""",
    "reconcilers/datapath": "Programs at hooks, network devices. Start with `attachments.py`.",
    "reconcilers/loadbalancer": """Frontends and their BPF maps. Start with `frontends.py`.""",
    "reconcilers/maps": "Operations over BPF maps of any feature: `staged.py`, `entries.py`.",
    "reconcilers/node": "Routes, devices, addresses, rules and parameters of the kernel.",
    "statedb/shown": """How people see tables: columns, text, YAML, queries, commands.

    Start with `columns.py`, then `commands.py`.""",
    "statedb/web": """How other processes see tables: HTTP server, streams, remote database.

    Start with `server.py` and `remote.py`.""",
    "tables/cluster": "Pods, nodes, namespaces, and how they are watched.",
    "tables/datapath": "Programs at hooks, and devices as the programs know them.",
    "tables/loadbalancer": "Services, frontends, backends, redirect policies, reports.",
    "tables/node": "The node's network as it is, and as it is wanted.",
    "tests/cilia": "",
    "tests/cilia/agent/script": "",
    "tests/cilia/cluster": "",
    "tests/cilia/datapath": "",
    "tests/cilia/datapath/cli": "",
    "tests/cilia/loadbalancer/connections": "",
    "tests/cilia/loadbalancer/redirects": "",
    "tests/cilia/node": "",
    "tests/reconcilers/datapath": "",
    "tests/reconcilers/loadbalancer": "",
    "tests/reconcilers/maps": "",
    "tests/reconcilers/node": "",
    "tests/tables/loadbalancer": "",
    "tests/tables/node": "",
}

#: Packages with compiled modules of the group that their parent names.
COMPILED = {"reconcilers/loadbalancer", "reconcilers/maps"}

#: Packages of the old layout that are empty now.
EMPTY = ("cilia/controllers", "cilia/reflectors", "tests/controllers", "tests/reflectors")

#: Names that stand relative to some folder.
RELATIVE = (
    ('"cli/cluster/*.yaml"', '"cli/install/*.yaml"'),
    ('"cilia" / "cli" / "cluster"', '"cilia" / "cli" / "install"'),
    ("../../cilia/cli/cluster/", "../../cilia/cli/install/"),
    ("`redirectpolicy/", "`loadbalancer/redirects/"),
    ("`healthserver/", "`loadbalancer/health-check-ports/"),
    ('"lrp.h"', '"redirect_skips.h"'),
    ('"lrp_types.h"', '"redirect_skips_types.h"'),
    ('"lib/lrp.h"', '"lib/redirect_skips.h"'),
    ('"lib/lrp_types.h"', '"lib/redirect_skips_types.h"'),
)

INIT = '''# SPDX-License-Identifier: Apache-2.0
"""{doc}"""

__all__: list[str] = []
'''
COMPILED_INIT = '''# SPDX-License-Identifier: Apache-2.0
"""{doc}"""

from reconcilers.compiled import RECONCILERS
from statedb.compiled import prefer

prefer(RECONCILERS, __name__, __path__)

__all__: list[str] = []
'''
TESTS_INIT = "# SPDX-License-Identifier: Apache-2.0\n"
DATA = {".txtar", ".json", ".lock", ".sum"}


def git(*args: str) -> str:
    return subprocess.run(["git", *args], check=True, capture_output=True, text=True).stdout


def read_moves() -> list[tuple[str, str]]:
    lines = (HERE / "layout_moves.txt").read_text().splitlines()
    moves = [tuple(line.split()) for line in lines if line and not line.startswith("#")]
    return [(old, new) for old, new in moves if Path(old).exists()]


def move(moves: list[tuple[str, str]]) -> dict[str, str]:
    """Move the files; return each file's old path with its new one."""
    places: dict[str, str] = {}
    for old, new in moves:
        files = git("ls-files", old).split()
        for file in files:
            target = new + file.removeprefix(old)
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            git("mv", file, target)
            places[file] = target
    for folder in EMPTY:
        for file in git("ls-files", folder).split():
            git("rm", "-q", "-f", file)
    for folder, doc in PACKAGES.items():
        init = Path(folder, "__init__.py")
        if init.exists() or not init.parent.exists():
            continue
        doc = "\n".join(line.removeprefix("    ") for line in doc.splitlines())
        doc += "\n" if "\n" in doc else ""
        form = TESTS_INIT if not doc else COMPILED_INIT if folder in COMPILED else INIT
        init.write_text(form.format(doc=doc))
        git("add", str(init))
    return places


def module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class Names:
    """Old names with their new ones, as modules and as text."""

    def __init__(self, moves: list[tuple[str, str]], places: dict[str, str]) -> None:
        self.modules = {
            module(old): module(new) for old, new in places.items() if old.endswith(".py")
        }
        self.modules |= {
            old.replace("/", "."): new.replace("/", ".") for old, new in moves if "." not in old
        }
        paths = dict(places) | dict(moves)
        self._paths = _pattern(paths, r"(?<![\w/.-])(?:{})(?![\w-]|/\w*\.py)")
        self._all_paths = paths
        self._dotted = _pattern(self.modules, r"(?<![\w./-])(?:{})(?!\w)")

    def in_text(self, text: str) -> str:
        text = self._paths.sub(lambda found: self._all_paths[found[0]], text)
        return self._dotted.sub(lambda found: self.modules[found[0]], text)


def _pattern(names: dict[str, str], form: str) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(form.format("|".join(map(re.escape, longest_first))))


def rewrite_imports(source: str, names: Names) -> str:
    lines = source.splitlines(keepends=True)
    nodes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level == 0
    ]
    for node in sorted(nodes, key=lambda node: node.lineno, reverse=True):
        statements = _statements(node, names)
        if statements is None:
            continue
        first, last = lines[node.lineno - 1], lines[(node.end_lineno or 0) - 1]
        indent = first[: node.col_offset]
        rest = last[node.end_col_offset :].rstrip("\n")
        if node.lineno != node.end_lineno:
            rest = rest or _comment(first)
        text = "".join(f"{indent}{statement}{rest}\n" for statement in statements)
        lines[node.lineno - 1 : node.end_lineno] = [text]
    return "".join(lines)


def _comment(line: str) -> str:
    _, mark, comment = line.rstrip("\n").partition("  #")
    return mark + comment


def _statements(node: ast.ImportFrom, names: Names) -> list[str] | None:
    """The statements that say the same after the moves; None if nothing changes."""
    assert node.module is not None
    wanted: dict[str, list[str]] = {}
    changed = False
    for alias in node.names:
        full = f"{node.module}.{alias.name}"
        package, name, local = node.module, alias.name, alias.asname or alias.name
        if full in names.modules:
            package, _, name = names.modules[full].rpartition(".")
        elif node.module in names.modules:
            package = names.modules[node.module]
        changed |= (package, name) != (node.module, alias.name)
        # A name that a package exports keeps its form `name as name`.
        shown = name if local == name and not alias.asname else f"{name} as {local}"
        wanted.setdefault(package, []).append(shown)
    if not changed:
        return None
    return [f"from {package} import {', '.join(shown)}" for package, shown in wanted.items()]


def rewrite_strings(source: str, names: Names) -> str:
    lines = source.splitlines(keepends=True)
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type in (tokenize.STRING, tokenize.COMMENT)
    ]
    for token in reversed(tokens):
        (row, column), (end_row, end_column) = token.start, token.end
        new = names.in_text(token.string)
        if new == token.string:
            continue
        head, tail = lines[row - 1][:column], lines[end_row - 1][end_column:]
        lines[row - 1 : end_row] = [head + new + tail]
    return "".join(lines)


def rewrite(names: Names) -> None:
    for file in git("ls-files").split():
        path = Path(file)
        if path.is_symlink() or path.name.startswith("layout_moves"):
            continue
        if path.suffix in DATA or path.name == "requirements.lock":
            continue
        try:
            old = path.read_text()
        except UnicodeDecodeError:
            continue
        new = old
        for before, after in RELATIVE:
            new = new.replace(before, after)
        if path.suffix == ".py":
            new = rewrite_strings(rewrite_imports(new, names), names)
        else:
            new = names.in_text(new)
        if new != old:
            path.write_text(new)


def relink() -> None:
    """Symbolic links into a moved folder."""
    for file in git("ls-files").split():
        path = Path(file)
        if path.is_symlink():
            target = str(path.readlink())
            new = target.replace("cilia/cli/cluster/", "cilia/cli/install/")
            if new != target:
                path.unlink()
                path.symlink_to(new)


def main() -> None:
    moves = read_moves()
    places = move(moves)
    rewrite(Names(moves, places))
    relink()
    ruff = str(HERE / ".venv" / "bin" / "ruff")
    subprocess.run([ruff, "check", "-q", "--fix", "--select", "I", "."], check=True)
    subprocess.run([ruff, "format", "-q", "."], check=True)


if __name__ == "__main__":
    main()
