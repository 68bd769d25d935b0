#include "stepd.h"

#include "common.h"
#include "late.h"

int pvc_stepd_init_post_opt(spank_t sp, int ac, char *av[])
{
	char definition[PVC_LINE_SIZE] = "";

	/* The job's control environment, as Slurm shows it to the job whatever --export says. */
	if (spank_getenv(sp, "SLURM_SPANK_PVC_DEFINITION", definition, (int)sizeof(definition)) == ESPANK_SUCCESS)
		/* Without a place for it (the extern step) there is no task that would look either. */
		(void)spank_setenv(sp, "PVC_DEFINITION", definition, 1);
	return pvc_late_set_up(sp, ac, av);
}
