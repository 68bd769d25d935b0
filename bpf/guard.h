/* What a VM of an L3 network may send. */
#ifndef PVC_GUARD_H
#define PVC_GUARD_H

#include "frames.h"
#include "sums.h"

#define FRAGMENT_OFFSET 0xfff8 /* of the IPv6 fragment header, in bytes */
#define IPV4_OFFSET 0x1fff
#define MOST_HEADERS 8
#define NEXT_AUTH 51
#define NEXT_DESTINATION 60
#define NEXT_MOBILITY 135
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

static __always_inline int may_send_ipv4(struct __sk_buff *skb, const struct port *port, const struct network *network)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return 0;
	if (sum_at(skb) < ETH_HLEN + ip.ihl * 4 + PORTS_SIZE)
		return 0;
	if (ip.protocol == IPPROTO_UDP && !(ip.frag_off & bpf_htons(IPV4_OFFSET))) {
		__u16 udp[2]; /* source and destination port */
		__u8 target[ETH_ALEN];

		if (bpf_skb_load_bytes(skb, ETH_HLEN + ip.ihl * 4, udp, sizeof(udp)))
			return 0;
		/* A server is believed whatever port its answer is from. */
		if (udp[0] == bpf_htons(DHCP_SERVER) || udp[1] == bpf_htons(DHCP_CLIENT))
			return 0;
		if (!ip.saddr)
			return udp[0] == bpf_htons(DHCP_CLIENT) && udp[1] == bpf_htons(DHCP_SERVER) &&
			       !bpf_skb_load_bytes(skb, 0, target, ETH_ALEN) &&
			       (target[0] & 1 || same_mac(target, network->gateway));
	}
	return ip.saddr == port->address;
}

/* What an ICMPv6 message says to others, by its first 24 bytes; whole: it did not come in fragments. */
static __always_inline int may_say(struct __sk_buff *skb, __u32 at, int whole, int unspecified,
				   const struct port *port)
{
	struct neighbour nd = {};

	if (bpf_skb_load_bytes(skb, at, &nd.type, 1))
		return 0;
	if (nd.type < ROUTER_SOLICIT || nd.type > REDIRECT)
		return !unspecified || nd.type == MLD_REPORT || nd.type == MLD2_REPORT;
	/* Routers and their redirects: none of these is a VM. RFC 6980: no discovery in fragments. */
	if (nd.type == ROUTER_ADVERT || nd.type == REDIRECT || !whole)
		return 0;
	if (nd.type == ROUTER_SOLICIT || (nd.type == NEIGHBOUR_SOLICIT && !unspecified))
		return 1;
	if (bpf_skb_load_bytes(skb, at, &nd, 24))
		return 0;
	/* A claim. */
	if (nd.type == NEIGHBOUR_ADVERT && unspecified)
		return 0;
	if (is_link_local(nd.target))
		return !is_of_another(nd.target, port);
	return same(nd.target, port->address6, 16);
}

static __always_inline int may_send_ipv6(struct __sk_buff *skb, const struct port *port)
{
	static const __u8 nobody[16] = {};
	struct ipv6hdr ip;
	__u32 at = ETH_HLEN + sizeof(ip), next, more = 1, whole = 1;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 6)
		return 0;
	const __u8 *source = ip.saddr.in6_u.u6_addr8;
	int unspecified = same(source, nobody, 16), own = same(source, port->address6, 16);

	if (is_of_another(source, port) || !(unspecified || own || is_link_local(source)))
		return 0;
	next = ip.nexthdr;
	/* Whatever there is in between (RFC 7113), the last header decides, and it must be there (RFC 7112). */
#pragma unroll
	for (int passed = 0; passed < MOST_HEADERS; passed++) {
		__u8 head[4];

		if (!more)
			break;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_FRAGMENT &&
		    next != NEXT_AUTH && next != NEXT_DESTINATION && next != NEXT_MOBILITY) {
			more = 0;
			break;
		}
		if (bpf_skb_load_bytes(skb, at, head, sizeof(head)))
			return 0;
		if (next == IPPROTO_FRAGMENT) {
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
	if (more || sum_at(skb) < at + PORTS_SIZE)
		return 0;
	if (next == IPPROTO_ICMPV6)
		return sum_at(skb) == NO_SUM && may_say(skb, at, whole, unspecified, port);
	if (next == IPPROTO_UDP) {
		__u16 udp[2]; /* source and destination port */

		if (bpf_skb_load_bytes(skb, at, udp, sizeof(udp)) || udp[0] == bpf_htons(DHCP6_SERVER) ||
		    udp[1] == bpf_htons(DHCP6_CLIENT))
			return 0;
	}
	return !unspecified;
}

#endif
