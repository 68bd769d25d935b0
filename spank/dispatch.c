/* SPDX-License-Identifier: Apache-2.0 */
/* Slurm's callbacks, each handed to the part of the context that it runs in. */
#include <slurm/spank.h>
#include <stddef.h>

#include "options.h"
#include "slurmd.h"
#include "stepd.h"
#include "submit.h"

/* Read from the file by pvc doctor (pvc/ops/slurmcheck.py); nothing else here refers to it. */
__attribute__((used)) static const char release[] = "pvc plug-in of " PVC_RELEASE ";";

#pragma GCC visibility push(default)

SPANK_PLUGIN(pvc, 1)

int slurm_spank_init(spank_t sp, int ac, char *av[])
{
	switch (spank_context()) {
	case S_CTX_LOCAL:
	case S_CTX_ALLOCATOR:
		pvc_submit_init();
		return pvc_options_register(sp);
	case S_CTX_REMOTE:
		return pvc_options_register(sp);
	case S_CTX_SLURMD:
		return pvc_slurmd_init(ac, av);
	default:
		return 0;
	}
}

int slurm_spank_init_post_opt(spank_t sp, int ac, char *av[])
{
	switch (spank_context()) {
	case S_CTX_LOCAL:
	case S_CTX_ALLOCATOR:
		return pvc_submit_init_post_opt(sp, ac, av);
	case S_CTX_REMOTE:
		return pvc_stepd_init_post_opt(sp, ac, av);
	default:
		return 0;
	}
}

int slurm_spank_job_prolog(spank_t sp, int ac, char *av[])
{
	(void)sp;
	return pvc_slurmd_prolog(ac, av);
}

int slurm_spank_job_epilog(spank_t sp, int ac, char *av[])
{
	(void)sp;
	return pvc_slurmd_epilog(ac, av);
}

#pragma GCC visibility pop
