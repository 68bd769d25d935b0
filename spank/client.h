/* SPDX-License-Identifier: Apache-2.0 */
/* A question to pvc-node's daemon. */
#ifndef PVC_CLIENT_H
#define PVC_CLIENT_H

#include <stddef.h>
#include <stdint.h>

enum pvc_client_result {
	PVC_CLIENT_ANSWERED,
	PVC_CLIENT_NO_ANSWER, /* no daemon, or it died while it was asked: start pvc-node instead */
	PVC_CLIENT_TIMED_OUT, /* it is there and works on, or hangs: said */
};

/* Send the verb and the facts; the answer's code (0-255) and text. */
enum pvc_client_result pvc_client_ask(const char *path, const char *verb, char *const facts[], int64_t deadline_ms,
				      int *code, char *text, size_t size);

#endif
