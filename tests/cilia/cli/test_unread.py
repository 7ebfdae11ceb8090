# SPDX-License-Identifier: Apache-2.0
"""Lists deny nothing that is in force while inputs are unread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cilia.__main__ import cli
from statedb import DB, RWTable
from tables.identity.identities import new_identities_table
from tables.identity.ipcache import new_ipcache_table
from tables.loadbalancer.frontends import new_frontends_table
from tables.loadbalancer.redirect_policies import new_redirect_policies_table
from tests.statedb.serving import served


@pytest.mark.parametrize(
    ("command", "name", "instead"),
    [
        ("service list", "frontends", "cilia bpf lb list"),
        ("lrp list", "frontends", "cilia bpf lb list"),
        ("ip get 10.1.2.3", "ipcache", "cilia bpf ipcache list"),
    ],
)
def test_a_list_says_what_is_unread(tmp_path: Path, command: str, name: str, instead: str) -> None:
    db = DB()
    tables: list[RWTable[Any]] = [new_frontends_table(db), new_ipcache_table(db)]
    new_redirect_policies_table(db)
    new_identities_table(db)
    (table,) = [table for table in tables if table.name == name]
    with db.write_txn(table) as wtxn:
        done = table.register_initializer(wtxn, "k8s")
    with served(db, tmp_path / "s") as path:
        said = run(path, command)
        assert "Not all is read yet (k8s)" in said.stderr
        assert instead in said.stderr
        with db.write_txn(table) as wtxn:
            done(wtxn)
        assert "Not all" not in run(path, command).stderr


def run(path: str, command: str) -> Result:
    return CliRunner().invoke(cli, ["--socket", path, *command.split()])
