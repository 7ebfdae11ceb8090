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
	ctx_t *ctx;			/* to ask for flows of the node */
	struct NAT(_key) in;		/* the reply's tuple with the port being tried */
	struct NAT(_value) value;	/* while a port is looked for: what stands under it; then NAT_OUT */
	__u32 first;
	__u32 tries;
	__u32 yields;			/* nat_yields of the best port that can be taken over */
	__be16 yielding;		/* that port */
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

static __always_inline bool NAT(_is_own)(const struct NAT(_search) *search)
{
	struct own_flow *flow = own_flow();

	if (!flow)
		return false;
	nat_copy(flow->tuple.NAT_IP.saddr, search->in.saddr);
	nat_copy(flow->tuple.NAT_IP.daddr, search->in.daddr);
	flow->tuple.NAT_IP.sport = search->in.sport;
	flow->tuple.NAT_IP.dport = search->in.dport;
	return own_flow_has(search->ctx, flow, search->in.proto, NAT_V6);
}

/* Take a port unless somebody has it: false then. Whose flow gives it away is remembered. A look-up
 * precedes the insertion, because an LRU map that is full evicts an entry for one that fails, too. */
static __always_inline bool NAT(_try_port)(struct NAT(_search) *search, __u32 number)
{
	const struct NAT(_value) *in;
	__u32 yields;
	int rc;

	search->in.dport = bpf_htons(nat_min_port + number);
	in = bpf_map_lookup_elem(&NAT_MAP, &search->in);
	if (in) {
		yields = nat_yields(search->in.proto, in->flags, in->created_s, in->expires_s);
		if (yields > search->yields) {
			search->yields = yields;
			search->yielding = search->in.dport;
		}
		return false;
	}
	if (NAT(_is_own)(search))
		return false;
	rc = bpf_map_update_elem(&NAT_MAP, &search->in, &search->value, BPF_NOEXIST);
	if (rc == -CILIA_EEXIST)
		return false;
	search->result = rc ? DROP_MAP_FULL : 0;
	return true;
}

/* Turn of bpf_loop: 1 ends it. At random, unless the range has so few ports that each one is looked at. */
static long NAT(_try)(__u32 turn, struct NAT(_search) *search)
{
	__u32 count = nat_max_port - nat_min_port + 1;
	__u32 at = count <= search->tries ? search->first + turn : bpf_get_prandom_u32();

	if (search->yields >= NAT_EXPIRED || (search->yields && turn >= NAT_CHOICES))
		return 1;
	return NAT(_try_port)(search, at % count);
}

/* Take over the port that its flow gives away. Of several CPUs the one that clears created_s gets it; the
 * flow that had it takes another port with its next packet, if there is one. */
static __always_inline void NAT(_take_over)(struct NAT(_search) *search)
{
	struct NAT(_value) *in;
	__u32 created_s;

	search->in.dport = search->yielding;
	in = bpf_map_lookup_elem(&NAT_MAP, &search->in);
	if (in) {
		created_s = in->created_s;
		if (!nat_yields(search->in.proto, in->flags, created_s, in->expires_s) ||
		    __sync_val_compare_and_swap(&in->created_s, created_s, 0) != created_s)
			return;
	}
	search->result = bpf_map_update_elem(&NAT_MAP, &search->in, &search->value,
					     in ? BPF_ANY : BPF_NOEXIST) ?
				 DROP_MAP_FULL : 0;
}

/* Whether an entry NAT_IN is this one's: both name the same end, and the same frontend, for a client may
 * ask two frontends of one backend from one port. Its number may be another one by now. */
static __always_inline bool NAT(_is_mine)(const struct NAT(_value) *in, const struct NAT(_value) *mine)
{
	if (!in || !nat_same(in->address, mine->address) || in->port != mine->port || !in->created_s)
		return false;
	if (!in->frontend_port)
		return in->rev_nat == mine->rev_nat;
	return nat_same(in->frontend, mine->frontend) && in->frontend_port == mine->frontend_port;
}

/* The port that follows from the client's: its own if that is in the range, so that the flow looks the
 * same on both sides. One client's ports rarely meet there, and a flow whose other half was lost, or that
 * another CPU begins as well, finds its own port again. */
static __always_inline bool NAT(_try_first)(struct NAT(_search) *search)
{
	__u32 port = bpf_ntohs(search->value.port);
	__u32 number = port < nat_min_port ? port : port - nat_min_port;
	struct NAT(_value) *in;

	if (NAT(_try_port)(search, number % (nat_max_port - nat_min_port + 1)))
		return true;
	in = bpf_map_lookup_elem(&NAT_MAP, &search->in);
	if (!NAT(_is_mine)(in, &search->value))
		return false;
	in->flags = search->value.flags;
	in->expires_s = search->value.expires_s;
	in->rev_nat = search->value.rev_nat;
	search->result = 0;
	return true;
}

/* While new connections go to another proxy, one of the node takes its own port over from a flow that is
 * over: it goes on without us then. */
static __always_inline bool NAT(_keeps_port)(const struct NAT(_search) *search)
{
	return !search->value.rev_nat && search->yields >= NAT_RANK(3) && switch_hands_back();
}

/* Look at some ports for what search->in and search->value say: a free one, or one that is given away. */
static __always_inline void NAT(_look)(struct NAT(_search) *search)
{
	search->first = bpf_get_prandom_u32();
	search->tries = NAT(_keeps_port)(search) ? 0 : nat_tries;
	bpf_loop(search->tries, NAT(_try), search, 0);
	if (search->result == DROP_NAT_NO_MAPPING && search->yields)
		NAT(_take_over)(search);
	nat_searched(!search->result);
}

/* Take a port for what search->in and search->value say, and make that entry NAT_IN. 0 or a reason. */
static __noinline int NAT(_take)(struct NAT(_search) *search, __u8 proto)
{
	__u32 now_s = ct_now_s();

	search->value.created_s = now_s;
	search->value.expires_s = now_s + nat_lifetime_s(proto, search->value.flags);
	search->yields = 0;
	search->result = DROP_NAT_NO_MAPPING;
	if (NAT(_try_first)(search))
		return search->result;
	NAT(_look)(search);
	if (search->result || search->yields)
		nat_signal((void *)&search->in.saddr, search->in.sport, proto, search->result, NAT_V6);
	return search->result;
}

/* Take note of a packet in an entry, at most once a second or when the state changes: then true. */
static __always_inline bool NAT(_note)(struct NAT(_value) *value, __u8 proto, __u8 tcp_flags,
				       bool reply)
{
	__u16 flags = nat_flags_after(value->flags, tcp_flags, reply);
	__u32 expires_s = ct_now_s() + nat_lifetime_s(proto, flags);

	if (value->expires_s == expires_s && value->flags == flags)
		return false;
	value->expires_s = expires_s;
	value->flags = flags;
	return true;
}

/* What a client's flow has in its NAT_IN, and its key; asked: the tuple that the client sees, to: the one
 * behind the translation, end: the source that the flow gets. */
static __always_inline void NAT(_client)(struct NAT(_search) *search, const struct tuple *asked,
					 const struct tuple *to, const struct nat_end *end)
{
	nat_copy(search->in.daddr, end->address);
	nat_copy(search->in.saddr, to->daddr);
	search->in.dport = end->port;
	search->in.sport = to->dport;
	search->in.proto = to->proto;
	search->in.direction = NAT_IN;
	nat_copy(search->value.address, to->saddr);
	search->value.port = to->sport;
	search->value.rev_nat = end->rev_nat;
	nat_copy(search->value.frontend, asked->daddr);
	search->value.frontend_port = asked->dport;
}

/* Take note of a packet of a client, from `to` as it is behind the translation, in the NAT_IN of the
 * source that its flow has; a lost one is made anew. false: the port is another flow's by now. */
static __noinline bool NAT(_keep)(ctx_t *ctx, const struct packet *packet, const struct tuple *to,
				  const struct nat_end *end)
{
	struct NAT(_search) search = { .ctx = ctx };
	struct NAT(_value) *in;

	NAT(_client)(&search, &packet->tuple, to, end);
	in = bpf_map_lookup_elem(&NAT_MAP, &search.in);
	if (!in) {
		search.value.created_s = ct_now_s();
		NAT(_note)(&search.value, to->proto, packet->tcp_flags, false);
		return !bpf_map_update_elem(&NAT_MAP, &search.in, &search.value, BPF_NOEXIST);
	}
	if (!NAT(_is_mine)(in, &search.value))
		return false;
	nat_copy(in->frontend, search.value.frontend);
	in->frontend_port = search.value.frontend_port;
	in->rev_nat = search.value.rev_nat;
	NAT(_note)(in, to->proto, packet->tcp_flags, false);
	return true;
}

/* Until when a client's flow with the source in end has this tuple behind the translation; 0: it has another
 * one. */
static __noinline __attribute__((unused)) __u32 NAT(_kept_until)(const struct tuple *asked,
								 const struct tuple *to,
								 const struct nat_end *end)
{
	struct NAT(_search) search = {};
	struct NAT(_value) *in;

	NAT(_client)(&search, asked, to, end);
	in = bpf_map_lookup_elem(&NAT_MAP, &search.in);
	if (!NAT(_is_mine)(in, &search.value))
		return 0;
	/* As the entry of lb_until: an earlier version wrote the number only. */
	if (!in->frontend_port) {
		nat_copy(in->frontend, search.value.frontend);
		in->frontend_port = search.value.frontend_port;
	}
	return in->expires_s;
}

/* A free port of the address in end for a client's flow, whose way back is made. 0 or a reason. */
static __noinline int NAT(_take_for_client)(ctx_t *ctx, const struct packet *packet,
					    const struct tuple *to, struct nat_end *end)
{
	struct NAT(_search) search = { .ctx = ctx };
	int reason;

	NAT(_client)(&search, &packet->tuple, to, end);
	search.value.flags = nat_flags_after(0, packet->tcp_flags, false);
	reason = NAT(_take)(&search, to->proto);
	end->port = search.in.dport;
	return reason;
}

/* Make both entries of a flow of the node itself; search->value comes with the address that it gets
 * and leaves as the flow's NAT_OUT. Returns 0, NAT_RACED or a reason: then neither stands. */
static __always_inline int NAT(_make)(struct NAT(_search) *search,
					    const struct NAT(_key) *flow)
{
	struct NAT(_value) *value = &search->value;
	int rc;

	NAT(_reply_key)(&search->in, flow, value);
	nat_copy(value->address, flow->saddr);
	value->port = flow->sport;
	rc = NAT(_take)(search, flow->proto);
	if (rc)
		return rc;
	nat_copy(value->address, search->in.daddr);
	value->port = search->in.dport;
	rc = bpf_map_update_elem(&NAT_MAP, flow, value, BPF_NOEXIST);
	if (rc == -CILIA_EEXIST)
		return NAT_RACED;
	if (rc)
		bpf_map_delete_elem(&NAT_MAP, &search->in);
	return rc ? DROP_MAP_FULL : 0;
}

/* Take note of a packet in both entries of a flow of the node. mine is the entry that the packet was
 * found by, other_key that of the other half. false: the other half is lost for good, its tuple belongs
 * to another flow by now. */
static __always_inline bool NAT(_touch)(struct NAT(_value) *mine, const struct NAT(_key) *mine_key,
					const struct NAT(_key) *other_key, __u8 tcp_flags,
					bool reply)
{
	struct NAT(_value) anew, *other;

	if (!NAT(_note)(mine, mine_key->proto, tcp_flags, reply))
		return true;
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
	other->expires_s = mine->expires_s;
	other->flags = mine->flags;
	return true;
}

/* The source that a packet of a flow of the node gets, left in search->value as its NAT_OUT; a flow
 * without one gets a port of the address there. flow: the tuple before translation, direction NAT_OUT.
 * Returns 0 or DROP_*. */
static __noinline int NAT(_source)(struct NAT(_search) *search, const struct NAT(_key) *flow,
				   __u32 tcp_flags)
{
	struct NAT(_value) *held = bpf_map_lookup_elem(&NAT_MAP, flow);
	int rc;

	if (held) {
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
	if (!held || held->port != search->in.dport)
		bpf_map_delete_elem(&NAT_MAP, &search->in);
	if (!held)
		return DROP_MAP_FULL;
	search->value = *held;
	return 0;
}

/* What stands under the tuple of a reply, the flow being kept alive, or NULL: no translated flow
 * has such replies. reply: direction NAT_IN; noted: a client's entry has changed. */
static __noinline struct NAT(_value) *NAT(_reply)(const struct NAT(_key) *reply,
						   __u8 tcp_flags, bool *noted)
{
	struct NAT(_value) *in = bpf_map_lookup_elem(&NAT_MAP, reply);
	struct NAT(_key) flow;

	if (!in || (in->flags & NAT_ENDED))
		return NULL;
	if (in->rev_nat) {
		*noted = NAT(_note)(in, reply->proto, tcp_flags, true);
		return in;
	}
	NAT(_flow_key)(&flow, reply, in);
	/* A reply goes where its own entry says, whoever has the other half. */
	NAT(_touch)(in, reply, &flow, tcp_flags, true);
	return in;
}

static __always_inline void NAT(_end)(struct nat_end *end, const struct NAT(_value) *value)
{
	__builtin_memcpy(end->address, &value->address, sizeof(value->address));
	end->port = value->port;
	end->rev_nat = value->rev_nat;
	end->flags = value->flags;
	end->noted = false;
}

static __always_inline void NAT(_frontend)(struct nat_frontend *frontend, const struct NAT(_value) *value)
{
	__builtin_memcpy(frontend->address, &value->frontend, sizeof(value->frontend));
	frontend->port = value->frontend_port;
}

/* The entry of a key as it stands; false if there is none. frontend: NULL, or gets that of the entry. */
static __always_inline bool NAT(_find)(const struct NAT(_key) *key, struct nat_end *end,
				       struct nat_frontend *frontend)
{
	const struct NAT(_value) *value = bpf_map_lookup_elem(&NAT_MAP, key);

	if (value)
		NAT(_end)(end, value);
	if (value && frontend)
		NAT(_frontend)(frontend, value);
	return value;
}

/* The source of a packet of the node itself; end comes with the device's address. 0 or DROP_*. */
static __always_inline int NAT(_packet)(ctx_t *ctx, const struct packet *packet, struct nat_end *end)
{
	struct NAT(_search) search = { .ctx = ctx };
	union ct_key key;
	int reason;

	ct_key_of(&key, &packet->tuple, NAT_OUT, NAT_V6);
	nat_copy(search.value.address, end->address);
	reason = NAT(_source)(&search, (void *)&key, packet->tcp_flags);
	NAT(_end)(end, &search.value);
	return reason;
}

/* The client of a reply and its frontend, the flow being kept alive; false if no translated flow has such
 * replies. */
static __always_inline bool NAT(_client_of)(const struct NAT(_key) *reply, __u8 tcp_flags,
					    struct nat_end *end, struct nat_frontend *frontend)
{
	const struct NAT(_value) *value;
	bool noted = false;

	value = NAT(_reply)(reply, tcp_flags, &noted);
	if (value) {
		NAT(_end)(end, value);
		NAT(_frontend)(frontend, value);
	}
	end->noted = noted;
	return value;
}
