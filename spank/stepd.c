/* SPDX-License-Identifier: Apache-2.0 */
#include "stepd.h"

#include "common.h"
#include "late.h"

/* Of the job's control environment, as Slurm shows it to the job whatever --export says. */
static void copy(spank_t sp, const char *from, const char *to)
{
	char text[PVC_LINE_SIZE] = "";

	if (spank_getenv(sp, from, text, (int)sizeof(text)) == ESPANK_SUCCESS)
		/* Without a place for it (the extern step) there is no task that would look either. */
		(void)spank_setenv(sp, to, text, 1);
}

int pvc_stepd_init_post_opt(spank_t sp, int ac, char *av[])
{
	copy(sp, "SLURM_SPANK_PVC_DEFINITION", "PVC_DEFINITION");
	copy(sp, "SLURM_SPANK_PVC_REQUEST", "PVC_REQUEST");
	return pvc_late_set_up(sp, ac, av);
}
