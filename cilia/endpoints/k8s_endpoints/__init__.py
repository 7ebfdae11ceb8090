# SPDX-License-Identifier: Apache-2.0
"""CiliumEndpoint objects: what this node says of its pods, and what all nodes say.

    endpoints, k8s-pods -> controller -> desired-k8s-endpoints -> objects -> API server, or files
    API server, or files -> reflector -> k8s-endpoints

Start with `controller.py`.
"""

__all__: list[str] = []
