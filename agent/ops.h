/* SPDX-License-Identifier: Apache-2.0 */
/* What OPEN may ask for besides commands and connections. */
#ifndef OPS_H
#define OPS_H

#include "job.h"

/* The process that does this; NULL: there is no such work. */
job_work *ops_find(const char *name);

/* How the guest is; with "with=cloud-init" also how that got on. */
void ops_metrics(const struct words *words, struct answer *answer);

int ops_get(const struct words *words);
int ops_glob(const struct words *words);
int ops_put(const struct words *words);
int ops_mount(const struct words *words);

/* Mount a directory of the host's, 9p or virtiofs; false and a word on what went wrong. */
bool ops_mount_share(const char *type, bool read_only, const char *tag, const char *target);

/* "MAC ADDRESS/PREFIX [GATEWAY]": the only global address of its family, of the interface with that MAC. */
bool ops_set_address(const char *text);

/* The same for an interface that has no global address of the family until then (job_now()); others keep theirs. */
bool ops_give_address(const char *text, int64_t until);

#define OPS_HOST_KEY "/etc/ssh/ssh_host_ed25519_key"

/* Replace a file at once; a last line gets its end. */
bool ops_write_file(const char *path, const char *text, mode_t mode);
bool ops_set_hostname(const char *name);

/* Make the root file system as large as its device; false and a word on what went wrong. */
bool ops_grow_root(void);

int ops_identity(const struct words *words);
int ops_settle(const struct words *words);
int ops_freeze(const struct words *words);
int ops_power(const struct words *words);

#endif
