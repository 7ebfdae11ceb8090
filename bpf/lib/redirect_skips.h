/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Who is spared a local redirection: the pods behind it, which would be sent to themselves. */
#include "common.h"
#include "lb.h"
#include "redirect_skips_types.h"
#include "tuple.h"

LB_HASH(cilia_skip_lb4, struct skip_lb4_key, struct skip_lb_value);
LB_HASH(cilia_skip_lb6, struct skip_lb6_key, struct skip_lb_value);
LB_HASH(cilia_skip_pod4, struct skip_pod4_key, struct skip_lb_value);
LB_HASH(cilia_skip_pod6, struct skip_pod6_key, struct skip_lb_value);

/* Whether a socket reaches the frontend that it dials itself. The maps are asked for redirected frontends
 * only, so that no other pays for them. */
static __always_inline bool redirect_skips_socket(struct bpf_sock_addr *ctx, const struct lb_service *svc,
						  const __be32 *address, __be16 port, const bool v6)
{
	if (svc->type != LB_TYPE_LOCAL_REDIRECT)
		return false;
	if (v6) {
		struct skip_lb6_key key = { .netns_cookie = bpf_get_netns_cookie(ctx), .port = port };

		address_copy(key.address, address, true);
		return bpf_map_lookup_elem(&cilia_skip_lb6, &key);
	} else {
		struct skip_lb4_key key = {
			.netns_cookie = bpf_get_netns_cookie(ctx),
			.address = *address,
			.port = port,
		};

		return bpf_map_lookup_elem(&cilia_skip_lb4, &key);
	}
}

/* Whether a workload's packet reaches the frontend itself. */
static __noinline __attribute__((unused)) bool redirect_skips_packet(const struct lb_service *svc,
								const struct tuple *tuple, bool v6)
{
	if (svc->type != LB_TYPE_LOCAL_REDIRECT)
		return false;
	if (v6) {
		struct skip_pod6_key key = { .port = tuple->dport };

		address_copy(key.pod, tuple->saddr, true);
		address_copy(key.address, tuple->daddr, true);
		return bpf_map_lookup_elem(&cilia_skip_pod6, &key);
	} else {
		struct skip_pod4_key key = {
			.pod = tuple->saddr[0],
			.address = tuple->daddr[0],
			.port = tuple->dport,
		};

		return bpf_map_lookup_elem(&cilia_skip_pod4, &key);
	}
}
