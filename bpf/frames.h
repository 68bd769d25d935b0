/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* Frames, as far as the programs read them, and what they compare. */
#ifndef PVC_FRAMES_H
#define PVC_FRAMES_H

#include "port.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define ARP_ETHERNET 1
#define ARP_REQUEST 1
#define ARP_REPLY 2
#define SOURCE_OPTION 1
#define TARGET_OPTION 2
#define ROUTER_SOLICIT 133
#define ROUTER_ADVERT 134
#define NEIGHBOUR_SOLICIT 135
#define NEIGHBOUR_ADVERT 136
#define REDIRECT 137

struct arp {
	__u16 hardware;
	__u16 protocol;
	__u8 hardware_size;
	__u8 protocol_size;
	__u16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

/* Of discovery, as far as it has a link-layer address; its size is in units of 8 bytes (RFC 4861, 4.6). */
struct option {
	__u8 type;
	__u8 size;
	__u8 mac[6];
} __attribute__((aligned(2)));

/* A solicitation or an advertisement with one option (RFC 4861, 4.3 and 4.4). */
struct neighbour {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u32 flags;
	__u8 target[16];
	struct option option;
};

struct arp_frame {
	struct ethhdr ether;
	struct arp arp;
} __attribute__((packed));

struct neighbour_frame {
	struct ethhdr ether;
	struct ipv6hdr ip;
	struct neighbour nd;
} __attribute__((packed));

static __always_inline int same(const __u8 *one, const __u8 *other, int size)
{
	int difference = 0;

	for (int at = 0; at < size; at++)
		difference |= one[at] ^ other[at];
	return !difference;
}

static __always_inline int same_mac(const __u8 *one, const __u8 *other)
{
	const __u16 *a = (const void *)one, *b = (const void *)other;

	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]));
}

static __always_inline void copy_mac(__u8 *to, const __u8 *from)
{
	__builtin_memcpy(to, from, ETH_ALEN);
}

static __always_inline int is_link_local(const __u8 *address)
{
	return address[0] == 0xfe && (address[1] & 0xc0) == 0x80;
}

/* A link-local address is the guest's own choice (RFC 7217), but those that are made of this network's MACs belong to
   whom the MAC does (RFC 4291, appendix A), the gateway for one. */
static __always_inline int is_of_another(const __u8 *address, const struct port *port)
{
	const __u8 *mac = port->mac;
	const __u8 made[13] = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe};

	return same(address, made, sizeof(made)) && !same(address + 13, mac + 3, 3);
}

static __always_inline __u32 number_of(const __u8 *end)
{
	return (__u32)end[0] << 8 | end[1];
}

static __always_inline void put_number(__u8 *end, __u32 number)
{
	end[0] = number >> 8;
	end[1] = number;
}

static __always_inline void put_mac(__u8 *mac, const struct network *network, __u32 number)
{
	__builtin_memcpy(mac, network->prefix, 4);
	put_number(mac + 4, number);
}

#endif
