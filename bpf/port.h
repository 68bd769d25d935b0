/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* What a program at a port is told: pvc/host/portprogs.py packs these. Numbers are of the host, but for addresses. */
#ifndef PVC_PORT_H
#define PVC_PORT_H

#include <linux/types.h>

/* An L3 network of a cluster, as this node has it. A VM's MAC is prefix and number, its rank the number less `first`;
   its addresses are the bases and the rank. */
struct network {
	__u8 prefix[4];
	__u8 gateway[6];
	__u16 first;
	__u32 base;
	__u32 with6;
	__u8 base6[16];
	__u32 tunnel;    /* the index of the device */
	__u32 mtu;
};

/* A VM's interface. What it may send a second, and at once, is in bytes; a rate of 0 is none. */
struct port {
	__u8 mac[6];
	__u16 guarded; /* 0 on an L2 network, where addresses are the users' own */
	__u32 address;
	__u8 address6[16];
	__u32 burst;
	__u64 rate;
	__u64 tokens;
	__u64 filled_ns;
};

/* The numbers of VMs that another node runs: those whose first `bits` bits are those of `number`. */
struct block {
	__u32 bits;
	__u8 number[2];
	__u8 unused[2];
};

#endif
