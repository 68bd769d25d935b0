/* SPDX-License-Identifier: Apache-2.0 */
#include "drain.h"

#include <slurm/slurm.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>

#include "common.h"

void pvc_drain_node(const char *reason)
{
	char text[PVC_LINE_SIZE] = "";
	char *node = getenv("SLURMD_NODENAME");
	update_node_msg_t message;

	if (node == NULL)
		return;
	(void)snprintf(text, sizeof(text), "pvc: %s", reason[0] == '\0' ? "pvc-node failed without a word" : reason);
	/* Root's terminals show it (sinfo -R), and a word in it may be a user's. */
	pvc_common_clean(text);
	/* The process is linked with Slurm's library: no scontrol has to be found and started. */
	slurm_init_update_node_msg(&message);
	message.node_names = node;
	message.node_state = NODE_STATE_DRAIN;
	message.reason = text;
	if (slurm_update_node(&message) != SLURM_SUCCESS)
		slurm_error("pvc: cannot give Slurm the reason: %s", text);
}
