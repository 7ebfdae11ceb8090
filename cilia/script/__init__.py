# SPDX-License-Identifier: Apache-2.0
"""The script language: golden tests, and the commands of the live shell.

Belongs here: archives, the language, its generic commands, the runner of script files, the
sessions of the shell. Does not: commands that know a table, an API server or a map; they come as
values, from the packages that own these. Standard library only, and nothing else of the project;
`documents` alone needs two libraries, and is imported by nobody in this package.

Start reading at `engine`; the language is described in docs/scripts.md.
"""

__all__: list[str] = []
