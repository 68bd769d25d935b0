/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/* What a guest leaves to be summed (virtio 1.2, 5.1.6.2): two bytes of a frame that are written after it was judged. */
#ifndef PVC_SUMS_H
#define PVC_SUMS_H

#include "frames.h"

#include <bpf/bpf_core_read.h>

#define UNSUMMED 3 /* CHECKSUM_PARTIAL */
#define NO_SUM 0xffffffff
#define PORTS_SIZE 6 /* a sum of UDP or TCP is behind them */

/* As far as it is read: where they are in a kernel, libbpf finds out. */
struct sk_buff {
	__u8 ip_summed : 2;
	__u16 csum_start;
	__u16 csum_offset;
	__u16 mac_header;
} __attribute__((preserve_access_index));

/* Where in the frame a device will write two bytes that its VM left out: whatever is there now is not what arrives. */
static __always_inline __u32 sum_at(struct __sk_buff *skb)
{
	struct sk_buff *frame = (void *)skb;
	__u16 start = 0, offset = 0, begin = 0;

	if (BPF_CORE_READ_BITFIELD_PROBED(frame, ip_summed) != UNSUMMED)
		return NO_SUM;
	if (bpf_core_read(&start, sizeof(start), &frame->csum_start) ||
	    bpf_core_read(&offset, sizeof(offset), &frame->csum_offset) ||
	    bpf_core_read(&begin, sizeof(begin), &frame->mac_header))
		return 0;
	return (__u16)(start - begin) + offset;
}

#endif
