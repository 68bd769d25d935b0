/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * Programs at the ports of a cluster's networks on the kernel's data path (tc-bpf(8), both at ingress):
 *
 *   from_vm      at a VM's tap: the rate, whose addresses a frame has, and where it goes
 *   from_tunnel  at the tunnel's end: to which VM
 *
 * On an L3 network all VMs are known. A frame of one to another goes from device to device here; the bridge gets what
 * is for groups and for the gateway. A tunnel looks up the destination's MAC and knows no masks, so frames travel with
 * one MAC for each node, the label, and have both VMs' numbers in their source:
 *
 *   destination  02:00 label (4 bytes, the sender's own number of the node)
 *   source       02:00 number of the receiver (2), number of the sender (2)
 *
 * Who asks for the address of another node's VM (ARP, RFC 826; ND, RFC 4861) is answered here.
 */
#include "frames.h"
#include "guard.h"

#include <linux/pkt_cls.h>

#define MOST_VMS 65536
#define MOST_PORTS 4096
#define MOST_BLOCKS 131072
#define LABELLED 0x02
#define LEAST_HEADERS 28 /* of each piece of a frame that is cut up later: IPv4 and UDP */
#define SOLICITED_OVERRIDE 0x60000000
#define SECOND_US 1000000ULL
#define SECOND_NS 1000000000ULL
#define FULL_US (8 * SECOND_US) /* any bucket is full by then (plan/ethernet.py, burst_bytes) */

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* pvc/host/portprogs.py has the same. */
_Static_assert(sizeof(struct network) == 44 && sizeof(struct port) == 56 && sizeof(struct block) == 8, "layout");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct network);
} networks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MOST_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* index of the tap */
	__type(value, struct port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MOST_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);   /* number of a VM of this node */
	__type(value, __u32); /* index of its tap */
} here SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MOST_BLOCKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct block);
	__type(value, __u32); /* label of the node */
} elsewhere SEC(".maps");

/* The label of the node that runs a VM; NULL if no other node does. */
static __always_inline __u32 *find_label(__u32 number)
{
	struct block key = {.bits = 16};

	put_number(key.number, number);
	return bpf_map_lookup_elem(&elsewhere, &key);
}

/* More than its VM may send. Two processors that fill one bucket at once give a little too much. */
static __always_inline int is_over(struct port *port, __u32 size)
{
	__u64 now = bpf_ktime_get_ns(), filled = port->filled_ns, tokens = port->tokens, added;
	/* Another processor may have filled it meanwhile. */
	__u64 waited_us = now > filled ? (now - filled) / 1000 : 0;

	added = waited_us < FULL_US ? waited_us * port->rate / SECOND_US : port->burst;
	tokens += added;
	if (tokens >= port->burst) {
		tokens = port->burst;
		port->filled_ns = now;
	} else {
		/* The time that no whole byte came of counts next time. */
		port->filled_ns += added * SECOND_NS / port->rate;
	}
	if (tokens < size) {
		port->tokens = tokens;
		return 1;
	}
	port->tokens = tokens - size;
	return 0;
}

/* Whether another node runs the VM with that rank; its number. */
static __always_inline int is_elsewhere(const struct network *network, __u32 rank, __u32 *number)
{
	*number = (network->first + rank) & 0xffff;
	return rank < MOST_VMS && find_label(*number);
}

/* Answer who asks for a VM of another node: what becomes of the frame, -1 if that is not what it is. */
static __always_inline int answer_arp(struct __sk_buff *skb, const struct network *network)
{
	struct arp_frame *frame = (void *)(long)skb->data;
	__u8 asked[4];
	__u32 address, number;

	if ((void *)(frame + 1) > (void *)(long)skb->data_end || frame->arp.operation != bpf_htons(ARP_REQUEST))
		return -1;
	__builtin_memcpy(asked, frame->arp.target, 4);
	__builtin_memcpy(&address, asked, 4);
	if (!is_elsewhere(network, bpf_ntohl(address) - network->base, &number))
		return -1;
	frame->arp.operation = bpf_htons(ARP_REPLY);
	copy_mac(frame->arp.target_mac, frame->arp.sender_mac);
	__builtin_memcpy(frame->arp.target, frame->arp.sender, 4);
	put_mac(frame->arp.sender_mac, network, number);
	__builtin_memcpy(frame->arp.sender, asked, 4);
	copy_mac(frame->ether.h_dest, frame->arp.target_mac);
	copy_mac(frame->ether.h_source, frame->arp.sender_mac);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline int answer_neighbour(struct __sk_buff *skb, const struct network *network)
{
	struct neighbour_frame frame;
	__u32 number;

	if (bpf_skb_load_bytes(skb, 0, &frame, sizeof(frame)) || frame.ip.nexthdr != IPPROTO_ICMPV6 ||
	    frame.nd.type != NEIGHBOUR_SOLICIT || bpf_ntohs(frame.ip.payload_len) < sizeof(frame.nd) ||
	    frame.nd.option.type != SOURCE_OPTION)
		return -1;
	if (!same(frame.nd.target, network->base6, 14))
		return -1;
	if (!is_elsewhere(network, number_of(frame.nd.target + 14) - number_of(network->base6 + 14), &number))
		return -1;
	copy_mac(frame.ether.h_dest, frame.ether.h_source);
	put_mac(frame.ether.h_source, network, number);
	frame.ip.payload_len = bpf_htons(sizeof(frame.nd));
	frame.ip.hop_limit = 255;
	__builtin_memcpy(&frame.ip.daddr, &frame.ip.saddr, 16);
	__builtin_memcpy(&frame.ip.saddr, frame.nd.target, 16);
	frame.nd.type = NEIGHBOUR_ADVERT;
	frame.nd.code = 0;
	frame.nd.flags = bpf_htonl(SOLICITED_OVERRIDE);
	frame.nd.option.type = TARGET_OPTION;
	copy_mac(frame.nd.option.mac, frame.ether.h_source);

	/* The message, and the pseudo header before it (RFC 8200, 8.1): the addresses lie there already. */
	struct {
		__u8 addresses[32];
		__u32 size;
		__u32 next;
		struct neighbour nd;
	} summed = {.size = bpf_htonl(sizeof(frame.nd)), .next = bpf_htonl(IPPROTO_ICMPV6)};
	frame.nd.checksum = 0;
	__builtin_memcpy(summed.addresses, &frame.ip.saddr, 32);
	__builtin_memcpy(&summed.nd, &frame.nd, sizeof(frame.nd));
	__u32 sum = bpf_csum_diff(0, 0, (void *)&summed, sizeof(summed), 0);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	frame.nd.checksum = ~sum;
	if (skb->len > sizeof(frame) && bpf_skb_change_tail(skb, sizeof(frame), 0))
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, 0, &frame, sizeof(frame), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

/* What is for all, and for the gateway, is the bridge's; what is for a VM goes there, and for nobody else anywhere. */
static __always_inline int deliver(struct __sk_buff *skb, const struct network *network)
{
	struct ethhdr *ether = (void *)(long)skb->data;

	if ((void *)(ether + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	if (skb->gso_size ? skb->gso_size + LEAST_HEADERS > network->mtu : skb->len > network->mtu + ETH_HLEN)
		return TC_ACT_SHOT;
	if (ether->h_dest[0] & 1 || same_mac(ether->h_dest, network->gateway))
		return TC_ACT_OK;
	if (!same(ether->h_dest, network->prefix, 4))
		return TC_ACT_SHOT;

	__u32 number = number_of(ether->h_dest + 4), *tap = bpf_map_lookup_elem(&here, &number);
	if (tap)
		return *tap == skb->ifindex ? TC_ACT_SHOT : bpf_redirect(*tap, 0);
	__u32 *label = find_label(number);
	if (!label)
		return TC_ACT_SHOT;

	__u32 way = bpf_htonl(*label);
	ether->h_dest[0] = LABELLED;
	ether->h_dest[1] = 0;
	__builtin_memcpy(ether->h_dest + 2, &way, 4);
	ether->h_source[0] = LABELLED;
	ether->h_source[1] = 0;
	put_number(ether->h_source + 2, number);
	return bpf_redirect(network->tunnel, 0);
}

SEC("tc")
int from_vm(struct __sk_buff *skb)
{
	__u32 first = 0, device = skb->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &device);
	const struct network *network = bpf_map_lookup_elem(&networks, &first);

	if (!port || !network || (port->rate && is_over(port, skb->len)))
		return TC_ACT_SHOT;
	if (!port->guarded)
		return TC_ACT_OK;
	if (skb->vlan_present)
		return TC_ACT_SHOT;
	/* A guest's frame may have its headers in another piece of memory. */
	if ((void *)(long)skb->data + sizeof(struct arp_frame) > (void *)(long)skb->data_end &&
	    bpf_skb_pull_data(skb, skb->len < sizeof(struct arp_frame) ? skb->len : sizeof(struct arp_frame)))
		return TC_ACT_SHOT;

	const struct ethhdr *ether = (void *)(long)skb->data;
	if ((void *)(ether + 1) > (void *)(long)skb->data_end || !same_mac(ether->h_source, port->mac))
		return TC_ACT_SHOT;
	switch (ether->h_proto) {
	case bpf_htons(ETH_P_IP):
		return may_send_ipv4(skb, port, network) ? deliver(skb, network) : TC_ACT_SHOT;
	case bpf_htons(ETH_P_ARP): {
		if (!may_send_arp(skb, port))
			return TC_ACT_SHOT;
		int answered = answer_arp(skb, network);
		return answered < 0 ? deliver(skb, network) : answered;
	}
	case bpf_htons(ETH_P_IPV6): {
		if (!network->with6 || !may_send_ipv6(skb, port))
			return TC_ACT_SHOT;
		int answered = answer_neighbour(skb, network);
		return answered < 0 ? deliver(skb, network) : answered;
	}
	default:
		return TC_ACT_SHOT;
	}
}

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	__u32 first = 0;
	const struct network *network = bpf_map_lookup_elem(&networks, &first);
	struct ethhdr *ether = (void *)(long)skb->data;

	if (!network || skb->vlan_present || (void *)(ether + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	if (ether->h_dest[0] & 1)
		return TC_ACT_OK;

	__u32 number = number_of(ether->h_source + 2), *tap = bpf_map_lookup_elem(&here, &number);
	if (!tap)
		return TC_ACT_SHOT;
	put_mac(ether->h_dest, network, number);
	__builtin_memcpy(ether->h_source, network->prefix, 4);
	return bpf_redirect(*tap, 0);
}
