/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Connection tracking: which connections go through a translation, and how long each is remembered.
 *
 * An entry is written to at most once a second, unless its TCP state changes. The flags that a side
 * sent are a byte of its own, so both directions may be seen on two CPUs at once without an atomic
 * operation. What has expired stays until it is collected from user space or evicted.
 */
#include "ct_types.h"
#include "flow_note.h"
#include "packet.h"

/* Set before load, seconds; the field's options are bpf-ct-timeout-regular-tcp and so on. */
const volatile __u32 ct_timeout_regular_tcp_s = 8000;
const volatile __u32 ct_timeout_regular_any_s = 60;
const volatile __u32 ct_timeout_service_tcp_s = 8000;
const volatile __u32 ct_timeout_service_tcp_grace_s = 60;
const volatile __u32 ct_timeout_service_any_s = 60;
const volatile __u32 ct_timeout_regular_tcp_syn_s = 60;
const volatile __u32 ct_timeout_regular_tcp_fin_s = 10;

/* Count packets and bytes of each connection. */
const volatile bool ct_accounting = false;

#define CT_MAP(name, key_type)				\
	struct {					\
		__uint(type, BPF_MAP_TYPE_LRU_HASH);	\
		__type(key, key_type);			\
		__type(value, struct ct_entry);		\
		__uint(max_entries, 65536);		\
	} name SEC(".maps")

CT_MAP(cilia_ct4_tcp, struct ct4_key);
CT_MAP(cilia_ct4_any, struct ct4_key);
CT_MAP(cilia_ct6_tcp, struct ct6_key);
CT_MAP(cilia_ct6_any, struct ct6_key);

union ct_key {
	struct ct4_key v4;
	struct ct6_key v6;
};

static __always_inline __u32 ct_now_s(void)
{
	return bpf_ktime_get_coarse_ns() / NSEC_PER_S;
}

static __always_inline void ct_key_of(union ct_key *key, const struct tuple *tuple, __u8 direction,
				      bool v6)
{
	__builtin_memset(key, 0, sizeof(*key));
	if (v6) {
		address_copy(key->v6.daddr, tuple->daddr, true);
		address_copy(key->v6.saddr, tuple->saddr, true);
		key->v6.dport = tuple->dport;
		key->v6.sport = tuple->sport;
		key->v6.proto = tuple->proto;
		key->v6.direction = direction;
		return;
	}
	key->v4.daddr = tuple->daddr[0];
	key->v4.saddr = tuple->saddr[0];
	key->v4.dport = tuple->dport;
	key->v4.sport = tuple->sport;
	key->v4.proto = tuple->proto;
	key->v4.direction = direction;
}

/* The entry of a connection by the tuple of who opened it, expired or not; or NULL. A function of its
 * own, as the others here with a key, because the stack of a program and its calls is 512 bytes. */
static __noinline struct ct_entry *ct_lookup(const struct tuple *tuple, __u8 direction, bool v6)
{
	union ct_key key;

	ct_key_of(&key, tuple, direction, v6);
	if (tuple->proto == IPPROTO_TCP) {
		if (v6)
			return bpf_map_lookup_elem(&cilia_ct6_tcp, &key);
		return bpf_map_lookup_elem(&cilia_ct4_tcp, &key);
	}
	if (v6)
		return bpf_map_lookup_elem(&cilia_ct6_any, &key);
	return bpf_map_lookup_elem(&cilia_ct4_any, &key);
}

/* The entry of the connection that a packet answers, or NULL. */
static __always_inline struct ct_entry *ct_lookup_reply(const struct packet *packet, __u8 direction,
							const bool v6)
{
	struct tuple opener = {};

	tuple_exchange(&opener, &packet->tuple);
	return ct_lookup(&opener, direction, v6);
}

static __noinline void ct_delete(const struct tuple *tuple, __u8 direction, bool v6)
{
	union ct_key key;

	ct_key_of(&key, tuple, direction, v6);
	if (tuple->proto == IPPROTO_TCP)
		bpf_map_delete_elem(v6 ? (void *)&cilia_ct6_tcp : (void *)&cilia_ct4_tcp, &key);
	else
		bpf_map_delete_elem(v6 ? (void *)&cilia_ct6_any : (void *)&cilia_ct4_any, &key);
}

/* TCP: one side reset it, or both are done. */
static __always_inline bool ct_closed(const struct ct_entry *entry)
{
	return ((entry->tcp_flags | entry->reply_tcp_flags) & TCP_RST) ||
	       (entry->tcp_flags & entry->reply_tcp_flags & TCP_FIN);
}

/* TCP: at least one side is done; a SYN of the opener begins another connection. */
static __always_inline bool ct_closing(const struct ct_entry *entry)
{
	return (entry->tcp_flags | entry->reply_tcp_flags) & (TCP_FIN | TCP_RST);
}

static __always_inline bool ct_expired(const struct ct_entry *entry, __u32 now_s)
{
	return (__s32)(entry->expires_s - now_s) < 0;
}

/* Whether its tuple may be used by someone else. */
static __always_inline bool ct_over(const struct ct_entry *entry, __u32 now_s)
{
	return ct_expired(entry, now_s) || ct_closed(entry);
}

/* Whether somebody else's flow may have the tuple of this entry from now on. Nothing tells the end of a
 * datagram's flow, and clients use their ports again: the last one who spoke has it. */
static __always_inline bool ct_yields(const struct ct_entry *entry, __u8 proto, __u32 now_s)
{
	return proto == IPPROTO_UDP || ct_over(entry, now_s);
}

/* Whether a packet of the opener belongs to the connection of this entry, and not to a later one with
 * the same tuple. TCP in its middle belongs to it even if nobody spoke for a long time. */
static __always_inline bool ct_continues(const struct ct_entry *entry, const struct packet *packet,
					 __u32 now_s)
{
	if (packet_opens_tcp(packet))
		return !ct_closing(entry) && !ct_expired(entry, now_s);
	return packet->tuple.proto == IPPROTO_TCP || !ct_expired(entry, now_s);
}

/* Seconds that the entry stays after this packet. The replies of a service are not seen under its
 * own tuple, so there the opener's flags tell all. The only entry of a flow with CT_SNAT is noted on both
 * ways, and stays as long as its NAT_IN (nat_lifetime_s). TCP is open when the opener has acknowledged an
 * answer: a SYN that a backend answered and nobody else is no connection. */
static __always_inline __u32 ct_lifetime_s(const struct ct_entry *entry, __u8 proto, bool service)
{
	bool acknowledged = entry->tcp_flags & TCP_ACK;

	if (entry->flags & CT_SNAT)
		service = false;
	if (proto != IPPROTO_TCP)
		return service ? ct_timeout_service_any_s : ct_timeout_regular_any_s;
	if (service) {
		if (ct_closing(entry))
			return ct_timeout_service_tcp_grace_s;
		return acknowledged ? ct_timeout_service_tcp_s : ct_timeout_regular_tcp_syn_s;
	}
	if (ct_closed(entry))
		return ct_timeout_regular_tcp_fin_s;
	return acknowledged && (entry->flags & CT_SEEN_REPLY) ? ct_timeout_regular_tcp_s :
								ct_timeout_regular_tcp_syn_s;
}

/* A verdict as it stands in an entry. */
union ct_verdict {
	struct {
		__u32 remote_identity;
		__u32 generation;	/* perhaps with VERDICT_DENIED */
	};
	__u64 whole;
};

/* Read and written at once: two CPUs may judge a flow at the same time, by different identities. */
static __always_inline __u64 ct_verdict(const struct ct_entry *entry)
{
	return *(const volatile __u64 *)&entry->remote_identity;
}

static __always_inline void ct_set_verdict(struct ct_entry *entry, __u64 verdict)
{
	*(volatile __u64 *)&entry->remote_identity = verdict;
}

static __always_inline void ct_count(struct ct_entry *entry, bool reply, __u64 bytes)
{
	__sync_fetch_and_add(reply ? &entry->reply_packets : &entry->packets, 1);
	__sync_fetch_and_add(reply ? &entry->reply_bytes : &entry->bytes, bytes);
}

/* Note one more packet of a side; whether anything about the connection changed by it. An ICMP error
 * keeps nothing alive. */
static __always_inline bool ct_seen(ctx_t *ctx, struct ct_entry *entry, const struct packet *packet,
				    bool reply, bool service, __u32 now_s)
{
	__u8 *seen = reply ? &entry->reply_tcp_flags : &entry->tcp_flags;
	__u8 tcp_flags = *seen | packet->tcp_flags;
	__u16 flags = entry->flags;
	bool changed = tcp_flags != *seen;
	__u32 changes = tcp_flags ^ *seen;
	__u32 same = (changes - 1) >> 31, lifetime_s;

	if (packet->flags & PACKET_ICMP_ERROR) {
		flow_note_related(packet, reply);
		return false;
	}
	changes &= monitor_flags;
#ifdef CILIA_FLOWS
	/* A note about the packet, no part of it: constant ones get it too. Programs of the node's devices judge
	 * nothing, and their stack is full. */
	if (!service)
		((struct packet *)packet)->verdict = ct_verdict(entry);
#endif
	if (changed)
		*seen = tcp_flags;
	if (reply)
		flags |= CT_SEEN_REPLY;
	if (tcp_flags & (TCP_FIN | TCP_RST))
		flags |= reply ? CT_REPLY_CLOSING : CT_ORIGIN_CLOSING;
	changes |= (flags ^ entry->flags) & CT_SEEN_REPLY;
	if (flags != entry->flags)
		entry->flags = flags;
	lifetime_s = ct_lifetime_s(entry, packet->tuple.proto, service);
	if (now_s + lifetime_s != entry->expires_s) {
		/* New flags may have changed the lifetime: then this does not tell when it was seen. */
		changes |= same * flow_note_due(now_s, entry->expires_s - lifetime_s);
		entry->expires_s = now_s + lifetime_s;
		changed = true;
	}
	flow_note_known(packet, reply, changes);
	if (ct_accounting)
		ct_count(entry, reply, ctx_length(ctx));
	return changed;
}

/* What a new entry begins with; the rest is 0. */
struct ct_new {
	__u32 backend_id;
	__u32 rev_nat;
	__u32 ifindex;
	__u32 now_s;
	__u16 flags;		/* CT_* */
	__u8 direction;
	__u8 tcp_flags;
	__be16 frontend_port;	/* CT_EGRESS with rev_nat */
#ifdef CILIA_FLOWS
	__u32 remote_identity;
	__u32 policy_generation;
#endif
};

/* Make the entry of a tuple, in place of an older one. address: nat_address, that of the frontend or of
 * CT_SNAT, or NULL. 0 or a refusal. */
static __noinline __attribute__((unused)) int ct_create_snat(const struct tuple *tuple,
							     const struct ct_new *new,
							     const __be32 *address, __be16 port,
							     bool v6)
{
	struct ct_entry entry = {
		.created_s = new->now_s,
		.backend_id = new->backend_id,
		.rev_nat = new->rev_nat,
		.ifindex = new->ifindex,
#ifdef CILIA_FLOWS
		.remote_identity = new->remote_identity,
		.policy_generation = new->policy_generation,
#endif
		.flags = new->flags,
		.tcp_flags = new->tcp_flags,
		.nat_port = port,
	};
	union ct_key key;
	int error;

	if (address)
		address_copy(entry.nat_address, address, v6);
	if (new->direction == CT_EGRESS)
		entry.frontend_port = new->frontend_port;
	if (tuple->proto == IPPROTO_TCP && !(new->tcp_flags & TCP_SYN))
		entry.flags |= CT_NON_SYN;
	if (new->tcp_flags & (TCP_FIN | TCP_RST))
		entry.flags |= CT_ORIGIN_CLOSING;
	entry.expires_s = new->now_s +
			  ct_lifetime_s(&entry, tuple->proto, new->direction == CT_SERVICE);
	ct_key_of(&key, tuple, new->direction, v6);
	if (tuple->proto == IPPROTO_TCP)
		error = bpf_map_update_elem(v6 ? (void *)&cilia_ct6_tcp : (void *)&cilia_ct4_tcp,
					    &key, &entry, BPF_ANY);
	else
		error = bpf_map_update_elem(v6 ? (void *)&cilia_ct6_any : (void *)&cilia_ct4_any,
					    &key, &entry, BPF_ANY);
	return error ? REFUSE(DROP_CT_CREATE_FAILED) : 0;
}

static __always_inline int ct_create(const struct tuple *tuple, const struct ct_new *new, const bool v6)
{
	return ct_create_snat(tuple, new, NULL, 0, v6);
}
