# SPDX-License-Identifier: Apache-2.0
"""`cilia quickstart`: a real agent, a real Service and two backends on this machine.

`stage.py` makes and undoes the network around it, `backend.py` is the small HTTP server in each
namespace, `asking.py` the client, `command.py` the programme of the evening.
"""

from cilia.cli.quickstart.command import quickstart

__all__ = ["quickstart"]
