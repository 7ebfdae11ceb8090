# SPDX-License-Identifier: Apache-2.0
"""Long runs, one module each, outside of `make test`: kill points, restarts, churn (`__main__.py`).

Each has a short variant among the tests, so that it does not rot. Start reading at `kills.py`.

A soak with a text `EXPECTED_FAILURE` shows a fault of the product. Its exit code is 0 when the
fault is seen, 1 when it is not seen any more (then the text goes, and the soak demands what is
right), and 2 when something else failed.
"""
