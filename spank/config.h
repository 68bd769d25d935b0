/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin's arguments in plugstack.conf. */
#ifndef PVC_CONFIG_H
#define PVC_CONFIG_H

#include <limits.h>
#include <stdint.h>
#include <sys/un.h>

struct pvc_config {
	char pvc[PATH_MAX];       /* pvc=        the users' command */
	char pvc_node[PATH_MAX];  /* pvc-node=   root's command, when its daemon does not answer */
	char state_dir[PATH_MAX]; /* state_dir=  pvc-node's state; jobs/ID in it says that a job has something here */
	char socket[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* socket= of pvc-node's daemon */
	int64_t timeout_ms;       /* timeout=    seconds for one hook, daemon and cold start together */
};

/* Defaults, then the arguments. Returns -1 when one is unknown, relative, too long or out of range: said. */
int pvc_config_parse(struct pvc_config *config, int ac, char *av[]);

#endif
