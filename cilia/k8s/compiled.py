# SPDX-License-Identifier: Apache-2.0
"""Which modules of this package are compiled (see ``statedb.compiled``): what each value of a
manifest goes through."""

from statedb.compiled import Group

K8S = Group("k8s", ("cilia/k8s/yaml_values.py",))
