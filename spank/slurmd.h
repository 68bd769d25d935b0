/* SPDX-License-Identifier: Apache-2.0 */
/* Root's hooks around a job, on each of its nodes. */
#ifndef PVC_SLURMD_H
#define PVC_SLURMD_H

/* At slurmd's start: wrong arguments are said at once, not by the first job. */
int pvc_slurmd_init(int ac, char *av[]);

int pvc_slurmd_prolog(int ac, char *av[]);
int pvc_slurmd_epilog(int ac, char *av[]);

#endif
