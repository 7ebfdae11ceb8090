/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* Source translation for the family NAT_FAMILY; included by nat.h alone, once for each. NAT(_key) is
 * struct nat4_key or nat6_key, and so on. */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct NAT(_key));
	__type(value, struct NAT(_value));
	__uint(max_entries, 524288);
} NAT_MAP SEC(".maps");

/* One look for a port, handed from turn to turn. */
struct NAT(_search) {
	void *ctx;			/* of the program, for socket look-ups */
	struct NAT(_key) in;		/* the reply's tuple with the port being tried */
	struct NAT(_value) back;	/* what stands under it */
	__u32 first;
	int result;
};

/* The tuple of replies to a flow that leaves as address:port. */
static __always_inline void NAT(_reply_key)(struct NAT(_key) *in, const struct NAT(_key) *flow,
					    const struct NAT(_value) *out)
{
	__builtin_memset(in, 0, sizeof(*in));
	nat_copy(in->daddr, out->address);
	nat_copy(in->saddr, flow->daddr);
	in->dport = out->port;
	in->sport = flow->dport;
	in->proto = flow->proto;
	in->direction = NAT_IN;
}

/* The tuple of the flow that a reply belongs to, from what stands under the reply's tuple. */
static __always_inline void NAT(_flow_key)(struct NAT(_key) *flow, const struct NAT(_key) *reply,
					   const struct NAT(_value) *in)
{
	__builtin_memset(flow, 0, sizeof(*flow));
	nat_copy(flow->daddr, reply->saddr);
	nat_copy(flow->saddr, in->address);
	flow->dport = reply->sport;
	flow->sport = in->port;
	flow->proto = reply->proto;
	flow->direction = NAT_OUT;
}

static __always_inline bool NAT(_has_socket)(struct NAT(_search) *search)
{
	struct bpf_sock_tuple tuple = {};

	nat_copy(tuple.NAT_IP.saddr, search->in.saddr);
	nat_copy(tuple.NAT_IP.daddr, search->in.daddr);
	tuple.NAT_IP.sport = search->in.sport;
	tuple.NAT_IP.dport = search->in.dport;
	return nat_socket(search->ctx, &tuple, sizeof(tuple.NAT_IP), search->in.proto);
}

/* Turn of bpf_loop: 1 ends it. A look-up precedes the insertion, because an LRU map that is full
 * evicts an entry for an insertion that fails, too. */
static long NAT(_try)(__u32 turn, struct NAT(_search) *search)
{
	__u32 count = nat_max_port - nat_min_port + 1;
	int rc;

	search->in.dport = bpf_htons(nat_min_port + (search->first + turn) % count);
	if (bpf_map_lookup_elem(&NAT_MAP, &search->in) || NAT(_has_socket)(search))
		return 0;
	rc = bpf_map_update_elem(&NAT_MAP, &search->in, &search->back, BPF_NOEXIST);
	if (rc == -CILIA_EEXIST)
		return 0;
	search->result = rc ? DROP_MAP_FULL : 0;
	return 1;
}

/* Make both entries of a flow; out comes with the address it gets and leaves with the port. Returns
 * 0, NAT_RACED or a reason: then neither stands. */
static __noinline int NAT(_make)(struct NAT(_search) *search, const struct NAT(_key) *flow,
				 struct NAT(_value) *out)
{
	__u32 count = nat_max_port - nat_min_port + 1;
	__u32 port = bpf_ntohs(flow->sport);
	int rc;

	out->created_s = nat_now_s();
	out->expires_s = out->created_s + nat_lifetime_s(flow->proto, out->flags);
	out->port = flow->sport;
	NAT(_reply_key)(&search->in, flow, out);
	search->back = *out;
	nat_copy(search->back.address, flow->saddr);
	search->result = DROP_NAT_NO_MAPPING;
	/* The client's own port, if it may be had: the flow then looks the same on both sides. */
	if (port >= nat_min_port && port <= nat_max_port) {
		search->first = port - nat_min_port;
		NAT(_try)(0, search);
	}
	if (search->result == DROP_NAT_NO_MAPPING) {
		search->first = bpf_get_prandom_u32() % count;
		bpf_loop(count, NAT(_try), search, 0);
	}
	if (search->result)
		return search->result;
	out->port = search->in.dport;
	rc = bpf_map_update_elem(&NAT_MAP, flow, out, BPF_NOEXIST);
	if (rc)
		bpf_map_delete_elem(&NAT_MAP, &search->in);
	if (rc == -CILIA_EEXIST)
		return NAT_RACED;
	return rc ? DROP_MAP_FULL : 0;
}

/* Take note of a packet in both entries, at most once a second or when the state changes. mine is
 * the entry that the packet was found by, other_key that of the other half. false: the other half
 * is lost for good, its tuple belongs to another flow by now. */
static __always_inline bool NAT(_touch)(struct NAT(_value) *mine, const struct NAT(_key) *mine_key,
					const struct NAT(_key) *other_key, __u8 tcp_flags,
					bool reply)
{
	__u16 flags = nat_flags_after(mine->flags, tcp_flags, reply);
	__u32 expires_s = nat_now_s() + nat_lifetime_s(mine_key->proto, flags);
	struct NAT(_value) anew, *other;

	if (mine->expires_s == expires_s && mine->flags == flags)
		return true;
	mine->expires_s = expires_s;
	mine->flags = flags;
	other = bpf_map_lookup_elem(&NAT_MAP, other_key);
	if (!other) {
		anew = *mine;
		if (reply) {
			nat_copy(anew.address, mine_key->daddr);
			anew.port = mine_key->dport;
		} else {
			nat_copy(anew.address, mine_key->saddr);
			anew.port = mine_key->sport;
		}
		return !bpf_map_update_elem(&NAT_MAP, other_key, &anew, BPF_NOEXIST);
	}
	if (reply ? !nat_same(other->address, mine_key->daddr) || other->port != mine_key->dport :
		    !nat_same(other->address, mine_key->saddr) || other->port != mine_key->sport)
		return false;
	other->expires_s = expires_s;
	other->flags = flags;
	return true;
}

/* The source that a packet of a flow gets, left in out; a flow without one gets a port of the
 * address in out, which names rev_nat and ifindex too. flow: the tuple before translation, direction
 * NAT_OUT. Returns 0 or DROP_*. */
static __always_inline int NAT(_source)(void *ctx, const struct NAT(_key) *flow, __u8 tcp_flags,
					struct NAT(_value) *out)
{
	struct NAT(_value) *held = bpf_map_lookup_elem(&NAT_MAP, flow);
	struct NAT(_search) search;
	int rc;

	if (held) {
		NAT(_reply_key)(&search.in, flow, held);
		if (NAT(_touch)(held, flow, &search.in, tcp_flags, false)) {
			*out = *held;
			return 0;
		}
		bpf_map_delete_elem(&NAT_MAP, flow);
	}
	search.ctx = ctx;
	out->flags = nat_flags_after(0, tcp_flags, false);
	rc = NAT(_make)(&search, flow, out);
	if (rc != NAT_RACED)
		return rc;
	held = bpf_map_lookup_elem(&NAT_MAP, flow);
	if (!held)
		return DROP_MAP_FULL;
	*out = *held;
	return 0;
}

/* What stands under the tuple of a reply, the flow being kept alive, or NULL: no translated flow
 * has such replies. reply: direction NAT_IN. */
static __always_inline struct NAT(_value) *NAT(_reply)(const struct NAT(_key) *reply,
						       __u8 tcp_flags)
{
	struct NAT(_value) *in = bpf_map_lookup_elem(&NAT_MAP, reply);
	struct NAT(_key) flow;

	if (!in)
		return NULL;
	NAT(_flow_key)(&flow, reply, in);
	/* A reply goes where its own entry says, whoever has the other half. */
	NAT(_touch)(in, reply, &flow, tcp_flags, true);
	return in;
}
