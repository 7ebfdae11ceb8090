# SPDX-License-Identifier: Apache-2.0
"""Modules of this package that a build compiles with mypyc: what each value of a manifest goes
through.
"""

MODULES = ("cilia/k8s/yaml_values.py",)
