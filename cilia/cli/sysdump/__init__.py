# SPDX-License-Identifier: Apache-2.0
"""`cilia sysdump`: what one node knows, in one archive, for somebody who is not at the node.

Belongs here: gathering and reading an archive. What is gathered is made elsewhere. Start at
`parts.py`.
"""

__all__: list[str] = []
