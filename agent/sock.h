/* SPDX-License-Identifier: Apache-2.0 */
/* Connections to and from sockets of the guest. */
#ifndef SOCK_H
#define SOCK_H

#include "chan.h"

void sock_connect(struct chans *chans, uint32_t stream, const struct words *words);
void sock_listen(struct chans *chans, uint32_t stream, const struct words *words);

#endif
