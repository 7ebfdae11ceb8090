# SPDX-License-Identifier: Apache-2.0
"""Commands about Services: `service`, `lb`, `lrp`, `replacement`."""

__all__: list[str] = []
