# SPDX-License-Identifier: Apache-2.0
"""Lists of Services and of policies deny nothing while inputs are unread."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cilia.__main__ import cli
from statedb import DB
from tables.loadbalancer.frontends import new_frontends_table
from tables.loadbalancer.redirect_policies import new_redirect_policies_table
from tests.statedb.serving import served


@pytest.mark.parametrize("command", ["service list", "lrp list"])
def test_a_list_says_what_is_unread(tmp_path: Path, command: str) -> None:
    db = DB()
    frontends = new_frontends_table(db)
    new_redirect_policies_table(db)
    with db.write_txn(frontends) as wtxn:
        done = frontends.register_initializer(wtxn, "k8s-services")
    with served(db, tmp_path / "s") as path:
        said = run(path, command)
        assert said.exit_code == 0
        assert "Not all is read yet (k8s-services)" in said.stderr
        assert "cilia bpf lb list" in said.stderr
        with db.write_txn(frontends) as wtxn:
            done(wtxn)
        assert not run(path, command).stderr


def run(path: str, command: str) -> Result:
    return CliRunner().invoke(cli, ["--socket", path, *command.split()])
