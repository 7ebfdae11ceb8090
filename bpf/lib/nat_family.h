/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* Source translation for the family NAT_FAMILY; included by nat.h alone, once for each. NAT(_key) is
 * struct nat4_key or nat6_key, and so on. */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct NAT(_key));
	__type(value, struct NAT(_value));
	__uint(max_entries, 524288);
} NAT_MAP SEC(".maps");

/* A translation being looked for or made. */
struct NAT(_search) {
	ctx_t *ctx;			/* for socket look-ups */
	struct NAT(_key) in;		/* the reply's tuple with the port being tried */
	struct NAT(_value) value;	/* while a port is looked for: what stands under it; then NAT_OUT */
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
	rc = bpf_map_update_elem(&NAT_MAP, &search->in, &search->value, BPF_NOEXIST);
	if (rc == -CILIA_EEXIST)
		return 0;
	search->result = rc ? DROP_MAP_FULL : 0;
	return 1;
}

/* Make both entries of a flow; search->value comes with the address that it gets and leaves as the
 * flow's NAT_OUT. Returns 0, NAT_RACED or a reason: then neither stands. */
static __noinline int NAT(_make)(struct NAT(_search) *search, const struct NAT(_key) *flow)
{
	__u32 count = nat_max_port - nat_min_port + 1;
	__u32 port = bpf_ntohs(flow->sport);
	struct NAT(_value) *value = &search->value;
	int rc;

	value->created_s = ct_now_s();
	value->expires_s = value->created_s + nat_lifetime_s(flow->proto, value->flags);
	NAT(_reply_key)(&search->in, flow, value);
	nat_copy(value->address, flow->saddr);
	value->port = flow->sport;
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
	nat_copy(value->address, search->in.daddr);
	value->port = search->in.dport;
	rc = bpf_map_update_elem(&NAT_MAP, flow, value, BPF_NOEXIST);
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
	__u32 expires_s = ct_now_s() + nat_lifetime_s(mine_key->proto, flags);
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
	other->rev_nat = mine->rev_nat;
	return true;
}

/* The source that a packet of a flow gets, left in search->value as its NAT_OUT; a flow without one
 * gets a port of the address there, for replies of the frontend rev_nat there. flow: the tuple before
 * translation, direction NAT_OUT. Returns 0 or DROP_*. */
static __noinline int NAT(_source)(struct NAT(_search) *search, const struct NAT(_key) *flow,
				   __u32 tcp_flags)
{
	struct NAT(_value) *held = bpf_map_lookup_elem(&NAT_MAP, flow);
	int rc;

	if (held) {
		/* Connection tracking gave the tuple to another frontend: that one before is over. */
		if (held->rev_nat != search->value.rev_nat) {
			held->rev_nat = search->value.rev_nat;
			held->expires_s = 0;
		}
		NAT(_reply_key)(&search->in, flow, held);
		if (NAT(_touch)(held, flow, &search->in, tcp_flags, false)) {
			search->value = *held;
			return 0;
		}
		bpf_map_delete_elem(&NAT_MAP, flow);
	}
	search->value.flags = nat_flags_after(0, tcp_flags, false);
	rc = NAT(_make)(search, flow);
	if (rc != NAT_RACED)
		return rc;
	held = bpf_map_lookup_elem(&NAT_MAP, flow);
	if (!held)
		return DROP_MAP_FULL;
	search->value = *held;
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
