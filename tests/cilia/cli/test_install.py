# SPDX-License-Identifier: Apache-2.0
from click.testing import CliRunner

from cilia.cli.install.install import install


def test_a_pod_network_is_not_installed_by_an_option_alone() -> None:
    done = CliRunner().invoke(install, ["--config=pod-network=true"])
    assert done.exit_code == 2
    assert "podNetwork.enabled=true" in done.output
