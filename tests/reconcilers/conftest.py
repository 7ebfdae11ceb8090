# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest

from tests.kernel import Kernel, new_kernel


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with new_kernel() as kernel:
        yield kernel
