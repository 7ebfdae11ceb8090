/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once

/* Direct server return: the frontend travels with the client's packet, so that the backend's node can
 * answer in its name.
 *
 * Dispatch "opt" carries it in an IPv4 option or an IPv6 destination option, in the field's format and
 * numbers (Cilium, DSR_IPV4_OPT_TYPE and DSR_IPV6_OPT_TYPE): on the SYN of TCP and on every packet of
 * other protocols. Receivers skip an option of these types that they do not know. In the IPv4 option
 * address and port stand in reversed byte order, as the field has them. */
#include "packet.h"
#include "rewrite.h"

#define DSR_IPV4_OPTION 0x9a	/* copied into fragments, control, number 26 */
#define DSR_IPV6_OPTION 0x1b	/* «skip if unknown, does not change on the way», number 27 */

struct dsr4_option {
	__u8 type;
	__u8 length;
	__u16 port;		/* host order of a network-order number, see above */
	__u32 address;
};

struct dsr6_header {
	__u8 next;
	__u8 length;		/* in 8 bytes, without the first 8 */
	__u8 type;
	__u8 option_length;
	__be32 address[4];
	__be16 port;
	__u16 pad;
};

#define DSR4_BYTES 8
#define DSR6_BYTES 24

/* Bytes that a packet grows by. What continues a connection brings no frontend; what is in the middle of one
 * and goes to another backend does, so that the client believes the reset. */
static __always_inline __u16 dsr_growth(const struct packet *packet, bool continues, const bool v6)
{
	if (packet->tuple.proto == IPPROTO_TCP && !packet_opens_tcp(packet) && continues)
		return 0;
	return v6 ? DSR6_BYTES : DSR4_BYTES;
}

/* Room behind the fixed part of the IP header, which stays where the packet begins. */
static __always_inline int dsr_room(ctx_t *ctx, const struct packet *packet, const bool v6)
{
#ifdef CILIA_XDP
	__u8 head[ETH_HLEN + sizeof(struct ipv6hdr)];
	const __u32 size = ETH_HLEN + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));

	if (ctx_load_bytes(ctx, 0, head, size) || ctx_change_head(ctx, v6 ? DSR6_BYTES : DSR4_BYTES))
		return -1;
	return ctx_store_bytes(ctx, 0, head, size);
#else
	return bpf_skb_adjust_room(ctx, v6 ? DSR6_BYTES : DSR4_BYTES, BPF_ADJ_ROOM_NET,
				   BPF_F_ADJ_ROOM_FIXED_GSO);
#endif
}

static __always_inline int dsr4_insert(ctx_t *ctx, const struct packet *packet,
				       const __be32 *address, __be16 port)
{
	struct dsr4_option option = {
		.type = DSR_IPV4_OPTION,
		.length = sizeof(option),
		.port = bpf_htons(port),
		.address = bpf_htonl(*address),
	};
	__be32 old, new;
	struct iphdr ip;
	__s64 diff;

	if (ctx_load_bytes(ctx, packet->l3, &ip, sizeof(ip)) || ip.ihl + sizeof(option) / 4 > 15)
		return REFUSE(DROP_INVALID_PACKET);
	__builtin_memcpy(&old, &ip, sizeof(old));
	ip.ihl += sizeof(option) / 4;
	ip.tot_len = bpf_htons(bpf_ntohs(ip.tot_len) + sizeof(option));
	__builtin_memcpy(&new, &ip, sizeof(new));
	diff = bpf_csum_diff(&old, sizeof(old), &new, sizeof(new), 0);
	diff = bpf_csum_diff(NULL, 0, (void *)&option, sizeof(option), (__u32)diff);
	if (dsr_room(ctx, packet, false) ||
	    ctx_store_bytes(ctx, packet->l3, &new, sizeof(new)) ||
	    ctx_store_bytes(ctx, packet->l3 + sizeof(ip), &option, sizeof(option)))
		return REFUSE(DROP_WRITE_ERROR);
	return ctx_l3_csum_diff(ctx, packet->l3 + IP4_CSUM, diff) ? REFUSE(DROP_CSUM_L3) : 0;
}

static __always_inline int dsr6_insert(ctx_t *ctx, const struct packet *packet,
				       const __be32 *address, __be16 port)
{
	struct dsr6_header header = {
		.length = sizeof(header) / 8 - 1,
		.type = DSR_IPV6_OPTION,
		.option_length = sizeof(header) - 4,
		.port = port,
	};
	struct ipv6hdr ip;

	if (ctx_load_bytes(ctx, packet->l3, &ip, sizeof(ip)))
		return REFUSE(DROP_INVALID_PACKET);
	address_copy(header.address, address, true);
	header.next = ip.nexthdr;
	ip.nexthdr = IPPROTO_DSTOPTS;
	ip.payload_len = bpf_htons(bpf_ntohs(ip.payload_len) + sizeof(header));
	if (dsr_room(ctx, packet, true) ||
	    ctx_store_bytes(ctx, packet->l3, &ip, sizeof(ip)) ||
	    ctx_store_bytes(ctx, packet->l3 + sizeof(ip), &header, sizeof(header)))
		return REFUSE(DROP_WRITE_ERROR);
	return 0;
}

/* Put the frontend into the packet; its offsets are not valid any more. 0 or a refusal. */
static __always_inline int dsr_insert(ctx_t *ctx, const struct packet *packet,
				      const __be32 *address, __be16 port, const bool v6)
{
	return v6 ? dsr6_insert(ctx, packet, address, port) : dsr4_insert(ctx, packet, address, port);
}

/* The frontend that a packet carries; false if it carries none. */
static __always_inline bool dsr_read(ctx_t *ctx, const struct packet *packet, __be32 *address,
				     __be16 *port, const bool v6)
{
	__u16 header = packet->l4 - packet->l3;
	struct dsr4_option option;
	struct dsr6_header next;

	if (v6) {
		if (header < sizeof(struct ipv6hdr) + sizeof(next) ||
		    ctx_load_bytes(ctx, packet->l3 + sizeof(struct ipv6hdr), &next, sizeof(next)) ||
		    next.type != DSR_IPV6_OPTION || next.option_length != sizeof(next) - 4)
			return false;
		address_copy(address, next.address, true);
		*port = next.port;
		return true;
	}
	if (header < sizeof(struct iphdr) + sizeof(option) ||
	    ctx_load_bytes(ctx, packet->l3 + sizeof(struct iphdr), &option, sizeof(option)) ||
	    option.type != DSR_IPV4_OPTION || option.length != sizeof(option))
		return false;
	*address = bpf_ntohl(option.address);
	*port = bpf_ntohs(option.port);
	return true;
}

static __always_inline int dsr_close_room(ctx_t *ctx, const bool v6)
{
#ifdef CILIA_XDP
	return -1;	/* never: what arrives is left to tc */
#else
	return bpf_skb_adjust_room(ctx, -(v6 ? DSR6_BYTES : DSR4_BYTES), BPF_ADJ_ROOM_NET,
				   BPF_F_ADJ_ROOM_FIXED_GSO);
#endif
}

static __always_inline int dsr4_remove(ctx_t *ctx, const struct packet *packet)
{
	struct dsr4_option option;
	__be32 old, new;
	struct iphdr ip;
	__s64 diff;

	if (ctx_load_bytes(ctx, packet->l3, &ip, sizeof(ip)) ||
	    ctx_load_bytes(ctx, packet->l3 + sizeof(ip), &option, sizeof(option)))
		return REFUSE(DROP_INVALID_PACKET);
	__builtin_memcpy(&old, &ip, sizeof(old));
	ip.ihl -= sizeof(option) / 4;
	ip.tot_len = bpf_htons(bpf_ntohs(ip.tot_len) - sizeof(option));
	__builtin_memcpy(&new, &ip, sizeof(new));
	diff = bpf_csum_diff(&old, sizeof(old), &new, sizeof(new), 0);
	diff = bpf_csum_diff((void *)&option, sizeof(option), NULL, 0, (__u32)diff);
	if (dsr_close_room(ctx, false) || ctx_store_bytes(ctx, packet->l3, &new, sizeof(new)))
		return REFUSE(DROP_WRITE_ERROR);
	return ctx_l3_csum_diff(ctx, packet->l3 + IP4_CSUM, diff) ? REFUSE(DROP_CSUM_L3) : 0;
}

static __always_inline int dsr6_remove(ctx_t *ctx, const struct packet *packet)
{
	struct ipv6hdr ip;

	if (ctx_load_bytes(ctx, packet->l3, &ip, sizeof(ip)) ||
	    ctx_load_bytes(ctx, packet->l3 + sizeof(ip), &ip.nexthdr, sizeof(ip.nexthdr)))
		return REFUSE(DROP_INVALID_PACKET);
	ip.payload_len = bpf_htons(bpf_ntohs(ip.payload_len) - DSR6_BYTES);
	if (dsr_close_room(ctx, true) || ctx_store_bytes(ctx, packet->l3, &ip, sizeof(ip)))
		return REFUSE(DROP_WRITE_ERROR);
	return 0;
}

/* Take the frontend out of a packet that dsr_read found it in, so that it is as long as the client made it:
 * the backend's device may be narrower than those between nodes. Its offsets are not valid any more. 0 or a
 * refusal. */
static __always_inline int dsr_remove(ctx_t *ctx, const struct packet *packet, const bool v6)
{
	return v6 ? dsr6_remove(ctx, packet) : dsr4_remove(ctx, packet);
}
