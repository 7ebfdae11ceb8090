# SPDX-License-Identifier: Apache-2.0
"""The product as it is installed: built, put into an environment of its own, and run from there.

Building takes minutes, so `make test-wheel` runs this and `make test` does not.
"""
