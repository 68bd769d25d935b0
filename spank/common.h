/* SPDX-License-Identifier: Apache-2.0 */
/* What every part needs: clock, descriptors, text. */
#ifndef PVC_COMMON_H
#define PVC_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Longest line of an answer, of a request and of a definition, the final NUL included. */
#define PVC_LINE_SIZE 1024

/* Monotonic milliseconds, and what is left until a deadline as poll(2) wants it (never negative). */
int64_t pvc_common_now_ms(void);
int pvc_common_left_ms(int64_t deadline_ms);

/* Close what is open and forget it. */
void pvc_common_close(int *fd);

/*
 * The same open file above the standard descriptors, closed on exec; takes over fd, -1 stays -1.
 * The epilog runs with some of 0-2 closed: a socket that landed there would be written to by any message.
 */
int pvc_common_above_stdio(int fd);

/* An anonymous file for a child's output. */
int pvc_common_memfd(const char *name);

/* The last size - 1 bytes of a file as text. Returns their number, or -1. */
ptrdiff_t pvc_common_read_end(int fd, char *text, size_t size);

/* Not empty, shorter than size, no control character: safe as one line of the protocol. */
bool pvc_common_is_line(const char *text, size_t size);

/* The job id that a variable of the environment holds in decimal digits, or 0. */
uint32_t pvc_common_job_id(const char *name);

/* The last line of a command's words that says what is wrong: neither empty nor a hint. Cuts the text after it. */
const char *pvc_common_last_line(char *text);

/*
 * All but plain text becomes '?', byte by byte: others' words end in logs, in reasons that everybody reads in sinfo -R,
 * and on terminals. pvc/texts.py does it for the Python, and knows more of Unicode.
 */
void pvc_common_clean(char *text);

/* Each line of a text, cleaned, as a message of its own. */
void pvc_common_say(void (*say)(const char *format, ...) __attribute__((format(printf, 1, 2))),
		    const char *prefix, char *text);

#endif
