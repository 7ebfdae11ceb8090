/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* The mark of a packet, which all programs of a node share: Cilium's layout, so that rules for its marks
 * fit ours.
 *
 * Bits 8-11 say what was done with a packet. 0x0300 is ours so far; the others are reserved: to the proxy
 * 0x0200 (its port in bits 16-31), from overlay 0x0400, egress gateway done 0x0500, skip tproxy 0x0800,
 * proxy egress with endpoint 0x0900, from the ingress proxy 0x0a00, from the egress proxy 0x0b00, host
 * 0x0c00, decrypt 0x0d00, encrypt 0x0e00, identity 0x0f00. An identity has its low 16 bits in bits 16-31,
 * its high 8 in bits 0-7. Bits 14 and 15 are kube-proxy's (0x4000 masquerade, 0x8000 drop): never touch.
 */
#define MARK_MASK 0x0f00

/* Translated for good: the egress program of the device does not look at the packet again. */
#define MARK_TRANSLATED 0x0300
