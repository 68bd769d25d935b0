/* SPDX-License-Identifier: Apache-2.0 */
/* Processes: commands of the host's users, and our own work that may block. */
#ifndef JOB_H
#define JOB_H

#include "chan.h"

/* Our own work, in a process of its own with pipes for standard input, output and error; returns its exit code. */
typedef int job_work(const struct words *words);

/* Start what OPEN asks for; the answer goes to the host. work NULL: the command in "arg". */
void job_start(struct chans *chans, uint32_t stream, const struct words *words, job_work *work);
void job_attach(struct chans *chans, uint32_t stream, const struct words *words);
void job_list(struct chans *chans, uint32_t stream);
void job_note(struct chan *chan, const struct words *words);

/* Take in who has exited; kill what does not end. Returns when to look again (ms, as job_now()), 0: never. */
int64_t job_tend(struct chans *chans, int64_t now);

int64_t job_now(void);

#endif
