/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* What a VM of an L3 network may send. */
#ifndef PVC_GUARD_H
#define PVC_GUARD_H

#include "frames.h"
#include "sums.h"

#include <linux/tcp.h>
#include <linux/udp.h>

#define FRAGMENT_OFFSET 0xfff8 /* of the IPv6 fragment header, in bytes */
#define IPV4_OFFSET 0x1fff
#define IPV4_MORE 0x2000
#define MOST_HEADERS 8
#define MOST_OPTIONS 8 /* of a message of discovery: an address, a nonce, and what signs it (RFC 3971) */
#define NEXT_AUTH 51
#define NEXT_DESTINATION 60
#define NEXT_MOBILITY 135
#define NEXT_HIP 139
#define NEXT_SHIM6 140
#define LAST_ASSIGNED 147 /* what has a greater number is for experiments, or may be an extension header one day */
#define DHCP_SERVER 67
#define DHCP_CLIENT 68
#define DHCP6_CLIENT 546
#define DHCP6_SERVER 547
#define MLD_REPORT 131
#define MLD2_REPORT 143

static __always_inline int may_send_arp(struct __sk_buff *skb, const struct port *port)
{
	struct arp arp;

	if (sum_at(skb) != NO_SUM || bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return 0;
	if (arp.hardware != bpf_htons(ARP_ETHERNET) || arp.protocol != bpf_htons(ETH_P_IP) ||
	    arp.hardware_size != ETH_ALEN || arp.protocol_size != 4 || !same_mac(arp.sender_mac, port->mac))
		return 0;
	if (arp.operation != bpf_htons(ARP_REQUEST) && arp.operation != bpf_htons(ARP_REPLY))
		return 0;

	__u32 sender;
	__builtin_memcpy(&sender, arp.sender, 4);
	/* RFC 5227: a probe asks with no address of its own. */
	return sender == port->address || (!sender && arp.operation == bpf_htons(ARP_REQUEST));
}

/* Bytes of a packet that ends at `end`; not 0 if it has fewer. A receiver cuts off what a frame has behind its packet,
   so nothing there is a header: who reads up to the frame's end believes what the receiver never sees. */
static __always_inline long load(struct __sk_buff *skb, __u32 at, void *into, __u32 size, __u32 end)
{
	return at + size > end ? -1 : bpf_skb_load_bytes(skb, at, into, size);
}

/* A datagram that is there as far as it says, or the first piece of one. */
static __always_inline int load_udp(struct __sk_buff *skb, __u32 at, struct udphdr *udp, int whole, __u32 end)
{
	if (load(skb, at, udp, sizeof(*udp), end))
		return 0;

	__u32 size = bpf_ntohs(udp->len);
	return size >= sizeof(*udp) && (!whole || at + size <= end);
}

static __always_inline int may_send_ipv4(struct __sk_buff *skb, const struct port *port, const struct network *network)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return 0;

	__u32 at = ETH_HLEN + ip.ihl * 4, end = ETH_HLEN + bpf_ntohs(ip.tot_len);
	if (end > skb->len || end < at || sum_at(skb) < at + PORTS_SIZE)
		return 0;
	if (ip.protocol == IPPROTO_UDP && !(ip.frag_off & bpf_htons(IPV4_OFFSET))) {
		struct udphdr udp;
		__u8 target[ETH_ALEN];

		if (!load_udp(skb, at, &udp, !(ip.frag_off & bpf_htons(IPV4_MORE)), end))
			return 0;
		/* A server is believed whatever port its answer is from. */
		if (udp.source == bpf_htons(DHCP_SERVER) || udp.dest == bpf_htons(DHCP_CLIENT))
			return 0;
		if (!ip.saddr)
			return udp.source == bpf_htons(DHCP_CLIENT) && udp.dest == bpf_htons(DHCP_SERVER) &&
			       !bpf_skb_load_bytes(skb, 0, target, ETH_ALEN) &&
			       (target[0] & 1 || same_mac(target, network->gateway));
	}
	return ip.saddr == port->address;
}

/* Whether options are whole, and link-layer addresses in them the VM's own: others believe these (RFC 4861, 4.6). */
static __always_inline int has_own_links(struct __sk_buff *skb, __u32 at, __u32 end, const struct port *port)
{
#pragma unroll
	for (int passed = 0; passed < MOST_OPTIONS; passed++) {
		struct option option;

		if (at == end)
			return 1;
		if (load(skb, at, &option, sizeof(option), end) || !option.size)
			return 0;
		if ((option.type == SOURCE_OPTION || option.type == TARGET_OPTION) &&
		    (option.size != 1 || !same_mac(option.mac, port->mac)))
			return 0;
		at += option.size * 8;
	}
	return at == end;
}

/* What an ICMPv6 message says to others; whole: it did not come in fragments. */
static __always_inline int may_say(struct __sk_buff *skb, __u32 at, int whole, int unspecified,
				   const struct port *port, __u32 end)
{
	struct neighbour nd = {};

	if (load(skb, at, &nd, 4, end))
		return 0;
	if (nd.type < ROUTER_SOLICIT || nd.type > REDIRECT)
		return !unspecified || nd.type == MLD_REPORT || nd.type == MLD2_REPORT;
	/* Routers and their redirects: none of these is a VM. RFC 6980: no discovery in fragments. */
	if (nd.type == ROUTER_ADVERT || nd.type == REDIRECT || !whole)
		return 0;
	if (nd.type == ROUTER_SOLICIT)
		return has_own_links(skb, at + 8, end, port);
	if (load(skb, at, &nd, 24, end) || !has_own_links(skb, at + 24, end, port))
		return 0;
	if (nd.type == NEIGHBOUR_SOLICIT && !unspecified)
		return 1;
	/* A claim. */
	if (nd.type == NEIGHBOUR_ADVERT && unspecified)
		return 0;
	if (is_link_local(nd.target))
		return !is_of_another(nd.target, port);
	return same(nd.target, port->address6, 16);
}

/* Those that say how long they are and what comes next (RFC 6564). */
static __always_inline int is_extension(__u32 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_FRAGMENT || next == NEXT_AUTH ||
	       next == NEXT_DESTINATION || next == NEXT_MOBILITY || next == NEXT_HIP || next == NEXT_SHIM6;
}

static __always_inline int may_send_ipv6(struct __sk_buff *skb, const struct port *port)
{
	static const __u8 nobody[16] = {};
	struct ipv6hdr ip;
	__u32 at = ETH_HLEN + sizeof(ip), next, end, more = 1, whole = 1;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 6)
		return 0;
	const __u8 *source = ip.saddr.in6_u.u6_addr8;
	int unspecified = same(source, nobody, 16), own = same(source, port->address6, 16);

	if (is_of_another(source, port) || !(unspecified || own || is_link_local(source)))
		return 0;
	/* A jumbogram (RFC 2675) says 0 and so has no headers here. */
	end = at + bpf_ntohs(ip.payload_len);
	if (end > skb->len)
		return 0;
	next = ip.nexthdr;
	/* Whatever there is in between (RFC 7113), the last header decides, and it must be there (RFC 7112). */
#pragma unroll
	for (int passed = 0; passed < MOST_HEADERS; passed++) {
		__u8 head[4];

		if (!more)
			break;
		if (!is_extension(next)) {
			more = 0;
			break;
		}
		if (load(skb, at, head, sizeof(head), end))
			return 0;
		if (next == IPPROTO_FRAGMENT) {
			/* A piece of a piece is nothing that anybody sends. */
			if (!whole || at + 8 > end)
				return 0;
			if ((head[2] << 8 | head[3]) & FRAGMENT_OFFSET)
				/* What it belongs to was decided with the first one. */
				return !unspecified && sum_at(skb) == NO_SUM;
			whole = 0;
			at += 8;
		} else {
			at += next == NEXT_AUTH ? (head[1] + 2) * 4 : (head[1] + 1) * 8;
		}
		next = head[0];
	}
	if (more || next > LAST_ASSIGNED || at > end || sum_at(skb) < at + PORTS_SIZE)
		return 0;
	if (next == IPPROTO_ICMPV6)
		return sum_at(skb) == NO_SUM && may_say(skb, at, whole, unspecified, port, end);
	if (next == IPPROTO_UDP) {
		struct udphdr udp;

		if (!load_udp(skb, at, &udp, whole, end) || udp.source == bpf_htons(DHCP6_SERVER) ||
		    udp.dest == bpf_htons(DHCP6_CLIENT))
			return 0;
	}
	if (next == IPPROTO_TCP && at + sizeof(struct tcphdr) > end)
		return 0;
	return !unspecified;
}

#endif
