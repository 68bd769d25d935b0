/* SPDX-License-Identifier: Apache-2.0 */
/* The option that users see. */
#ifndef PVC_OPTIONS_H
#define PVC_OPTIONS_H

#include <slurm/spank.h>

/* Make --pvc known to the command or daemon that loads the plugin. */
int pvc_options_register(spank_t sp);

/* The definition given to --pvc, or NULL. */
char *pvc_options_definition(void);

/* The options of a component were read; those of the next one begin, the environment's first. */
void pvc_options_next_component(void);

#endif
