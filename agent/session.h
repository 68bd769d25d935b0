/* SPDX-License-Identifier: Apache-2.0 */
/* What the host's frames mean. */
#ifndef SESSION_H
#define SESSION_H

#include "chan.h"

/* Take all frames that came, as far as there is room for answers. */
void session_take(struct chans *chans);

/* End what belongs to the host; detached commands go on. */
void session_end(struct chans *chans);

#endif
