# SPDX-License-Identifier: Apache-2.0
"""What accounts asked an API server for, by its audit log, beside what roles grant them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ACCOUNT = "system:serviceaccount"
#: That of the accounts.
OWN_NAMESPACE = "kube-system"


class Right(NamedTuple):
    """A verb on a resource; of one object or one namespace where these are given."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""

    def allows(self, use: Right) -> bool:
        return (
            self[:3] == use[:3]
            and self.namespace in ("", use.namespace)
            and self.name in ("", use.name)
        )


class AuditLog:
    """Notes each request of some service accounts, before it is answered."""

    def __init__(self, directory: Path, accounts: Sequence[str]) -> None:
        """`accounts`: namespace:name."""
        self.path, self._policy = directory / "audit.log", directory / "audit-policy.yaml"
        self.path.touch()
        rule = {"level": "Metadata", "users": [f"{ACCOUNT}:{account}" for account in accounts]}
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [rule],
        }
        self._policy.write_text(yaml.safe_dump(policy))

    @property
    def flags(self) -> tuple[str, ...]:
        """Of the API server."""
        return (
            f"--audit-policy-file={self._policy}",
            f"--audit-log-path={self.path}",
            "--audit-log-mode=blocking",
        )

    def uses(self, account: str) -> dict[Right, set[int]]:
        """What an account asked for, and the status codes of the answers."""
        found: dict[Right, set[int]] = {}
        for line in self.path.read_text().splitlines():
            event = json.loads(line)
            what = event.get("objectRef")
            if what is not None and event["user"]["username"] == f"{ACCOUNT}:{account}":
                use = Right(
                    event["verb"],
                    what.get("apiGroup", ""),
                    what["resource"],
                    what.get("namespace", ""),
                    what.get("name", ""),
                )
                found.setdefault(use, set()).add(event["responseStatus"]["code"])
        return found


def granted(forms: Iterable[dict[str, Any]], account: str) -> set[Right]:
    """What the roles among some manifests say for an account."""
    forms = list(forms)
    namespace, _, name = account.partition(":")
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    roles = {
        (form["roleRef"]["kind"], form["roleRef"]["name"])
        for form in forms
        if form["kind"].endswith("RoleBinding") and subject in form["subjects"]
    }
    return {
        right
        for form in forms
        if (form["kind"], form["metadata"]["name"]) in roles
        for rule in form["rules"]
        for right in rights(rule, form["metadata"].get("namespace", ""))
    }


def rights(rule: dict[str, Any], namespace: str = "") -> Iterator[Right]:
    """All that one rule of a role says."""
    for verb in rule["verbs"]:
        for group in rule.get("apiGroups") or ():
            for resource in rule.get("resources") or ():
                for name in rule.get("resourceNames") or ("",):
                    yield Right(verb, group, resource, namespace, name)


def unneeded(rights: Iterable[Right], uses: Iterable[Right]) -> set[Right]:
    """Rights that nobody used.

    One of all namespaces is used by asking for all of them, or for one that is not our own.
    """
    asked = list(uses)
    return {
        right
        for right in rights
        if not any(right.allows(use) and _needs(right, use) for use in asked)
    }


def _needs(right: Right, use: Right) -> bool:
    """Return True if no narrower right would do for a use that it allows."""
    return right.namespace == use.namespace or use.namespace != OWN_NAMESPACE


def not_granted(rights: Iterable[Right], uses: Iterable[Right]) -> set[Right]:
    has = list(rights)
    return {use for use in uses if not any(right.allows(use) for right in has)}
