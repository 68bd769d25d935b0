#include "stepd.h"

#include <stddef.h>

#include "options.h"

int pvc_stepd_init_post_opt(spank_t sp)
{
	const char *definition = pvc_options_definition();
	spank_err_t err = ESPANK_SUCCESS;

	if (definition == NULL)
		return 0;
	err = spank_setenv(sp, "PVC_DEFINITION", definition, 1);
	/* The extern step has no tasks and no environment: not worth a job. */
	if (err != ESPANK_SUCCESS)
		slurm_debug("pvc: cannot set PVC_DEFINITION: %s", spank_strerror(err));
	return 0;
}
