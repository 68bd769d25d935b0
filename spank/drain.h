/* SPDX-License-Identifier: Apache-2.0 */
/* Why a node is taken out of service. */
#ifndef PVC_DRAIN_H
#define PVC_DRAIN_H

/*
 * Drain this node with a reason for `sinfo -R`. Slurm drains it anyway when a hook fails, but calls it "Prolog
 * error"; a reason that is there already it keeps.
 */
void pvc_drain_node(const char *reason);

#endif
