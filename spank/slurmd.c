/* SPDX-License-Identifier: Apache-2.0 */
#include "slurmd.h"

#include <slurm/slurm.h>
#include <stdlib.h>

#include "common.h"
#include "config.h"
#include "drain.h"
#include "job.h"
#include "node.h"

static const char bad_arguments[] = "wrong arguments in plugstack.conf";

int pvc_slurmd_init(int ac, char *av[])
{
	struct pvc_config config;

	return pvc_config_parse(&config, ac, av);
}

int pvc_slurmd_prolog(int ac, char *av[])
{
	struct pvc_config config;

	if (getenv(PVC_JOB_REQUEST) == NULL)
		return 0;
	/* A hook's process has loaded nothing that questions to the controller need (24.11); twice does no harm. */
	slurm_init(NULL);
	if (pvc_config_parse(&config, ac, av) < 0) {
		pvc_drain_node(bad_arguments);
		return -1;
	}
	return pvc_node_prepare(&config, pvc_node_setup);
}

int pvc_slurmd_epilog(int ac, char *av[])
{
	struct pvc_config config;
	uint32_t job_id = pvc_common_job_id("SLURM_JOB_ID");

	/* Wrong arguments drain the node for a job of ours only: its leftovers cannot be removed. */
	if (pvc_config_parse(&config, ac, av) < 0) {
		if (getenv(PVC_JOB_REQUEST) == NULL)
			return 0;
		slurm_init(NULL);
		pvc_drain_node(bad_arguments);
		return -1;
	}
	if (job_id == 0 || !pvc_node_has(&config, job_id, ""))
		return 0;
	slurm_init(NULL);
	return pvc_node_ask(&config, pvc_node_teardown);
}
