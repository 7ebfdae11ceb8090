# SPDX-License-Identifier: Apache-2.0
"""Long runs, one module each, outside of `make test`: kill points, restarts, churn.

Each has a short variant among the tests, so that it does not rot. Start reading at `kills.py`.
"""
