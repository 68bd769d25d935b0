/* SPDX-License-Identifier: Apache-2.0 */
/* What is asked of pvc-node for a job, by its daemon or by a process of its own. */
#ifndef PVC_NODE_H
#define PVC_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "config.h"

/* "setup", "ensure" (the same, but not twice) and "teardown". */
extern char pvc_node_setup[], pvc_node_ensure[], pvc_node_teardown[];

/*
 * The environment's job: 0 when this node's share is done. Otherwise the node is drained with the reason, and all is
 * said.
 */
int pvc_node_ask(const struct pvc_config *config, char *verb);

/* The same for one of the set-ups, after what only Slurm's controller knows of the job is found. */
int pvc_node_prepare(const struct pvc_config *config, char *verb);

/* Whether pvc-node has something of a job here, or a certain file; in doubt, yes. */
bool pvc_node_has(const struct pvc_config *config, uint32_t job_id, const char *file);

#endif
