/* What OPEN may ask for besides commands and connections. */
#ifndef OPS_H
#define OPS_H

#include "job.h"

/* The process that does this; NULL: there is no such work. */
job_work *ops_find(const char *name);

/* How the guest is. */
void ops_metrics(struct answer *answer);

int ops_get(const struct words *words);
int ops_put(const struct words *words);
int ops_mount(const struct words *words);

/* "MAC ADDRESS/PREFIX [GATEWAY]": the only global address of its family, of the interface with that MAC. */
bool ops_set_address(const char *text);

int ops_identity(const struct words *words);
int ops_freeze(const struct words *words);
int ops_power(const struct words *words);

#endif
