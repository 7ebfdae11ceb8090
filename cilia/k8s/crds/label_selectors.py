# SPDX-License-Identifier: Apache-2.0
"""Label selectors in the form of objects, as the field's kinds have them."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from cilia.k8s.crds.custom import CustomModel
from tables.selectors import Requirement, Selector

__all__ = ["LabelSelector", "LabelSelectorRequirement"]


class LabelSelectorRequirement(CustomModel):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] | None = None

    @model_validator(mode="after")
    def _values_where_they_mean_something(self) -> LabelSelectorRequirement:
        if bool(self.values) is not (self.operator in ("In", "NotIn")):
            raise ValueError(f"{self.operator} {'needs' if not self.values else 'takes no'} values")
        return self


class LabelSelector(CustomModel):
    """All of both hold; an empty selector matches everything."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelSelectorRequirement] | None = None

    def parsed(self) -> Selector:
        """
        >>> wanted = LabelSelector(match_labels={"app": "dns"})
        >>> wanted.parsed().matches({"app": "dns", "zone": "a"})
        True
        """
        equal = [
            Requirement(key, frozenset((value,)), False)
            for key, value in (self.match_labels or {}).items()
        ]
        return Selector((*equal, *map(_requirement, self.match_expressions or ())))


def _requirement(expression: LabelSelectorRequirement) -> Requirement:
    values = frozenset(expression.values) if expression.values else None
    negated = expression.operator in ("NotIn", "DoesNotExist")
    return Requirement(expression.key, values, negated)
