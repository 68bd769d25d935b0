/* SPDX-License-Identifier: Apache-2.0 */
/* What is behind a stream: a process with its pipes, a socket, or a listener. One table for all. */
#ifndef CHAN_H
#define CHAN_H

#include "port.h"
#include "words.h"

#include <poll.h>
#include <sys/types.h>

#define CHAN_MOST 256
#define CHAN_WINDOW 1048576u /* what the host may send before we took it */
#define CHAN_PIPE 262144u    /* what a pipe to a process holds */
#define CHAN_RING 65536u     /* what is kept of a detached command's output */
#define CHAN_ENDED 32        /* detached commands that ended and whose result nobody fetched */

enum behind { NOTHING, PROCESS, SOCKET, DATAGRAMS, LISTENER };

struct chans;
struct chan;

/* What whoever made it does at certain moments; this file knows none of its users. NULL: nothing. */
struct chan_kind {
	/* Before data moves; true: none moves now. */
	bool (*pump)(struct chans *chans, struct chan *chan);
	/* Nobody is attached any more; without this it ends. */
	void (*left)(struct chan *chan);
	/* Its process has exited, and there is nothing more to read now. */
	void (*over)(struct chans *chans, struct chan *chan);
};

struct chan {
	enum behind behind;
	const struct chan_kind *kind;
	uint32_t stream; /* 0: nobody is attached */
	int in;          /* where DATA goes, -1: nowhere */
	int out[2];      /* where it comes from, -1: over */
	bool connecting;
	bool resolving;  /* a process looks for the name first; `in` leads to it */
	bool ready;      /* poll(2) said so */
	bool in_over;    /* END came; `in` is closed once the queue is empty */
	bool told_end;
	size_t credit;   /* the host takes that much */
	size_t granted;  /* the host may send that much */
	size_t eaten;    /* taken since the last CREDIT */
	uint8_t *queue;  /* CHAN_WINDOW bytes once `in` did not take all at once */
	size_t queued, queue_at;
	/* A process. */
	pid_t pid;
	uint32_t job;
	bool pty, detach, exited, work;
	int status;
	size_t since_exit; /* bytes that came after it had exited */
	int64_t kill_at; /* when SIGKILL follows, 0: never */
	uint8_t *ring;   /* the last output of a detached command */
	size_t ring_length;
	char *title;     /* its words, tab-separated */
	/* A Unix listener's file. */
	char *path;
};

struct chans {
	struct port *port;
	struct chan table[CHAN_MOST];
	size_t turn;
	uint32_t last_job, last_stream;
};

/* A free place, with nothing open; NULL: there is none. */
struct chan *chan_new(struct chans *chans, enum behind behind, const struct chan_kind *kind, uint32_t stream);
struct chan *chan_find(struct chans *chans, uint32_t stream);
struct chan *chan_find_job(struct chans *chans, uint32_t job);

/* Frames of the host. false: the host broke the protocol. */
bool chan_data(struct chans *chans, struct chan *chan, const struct frame *frame);
void chan_end(struct chan *chan);
bool chan_credit(struct chan *chan, const struct frame *frame);

/* Nobody is attached any more: it ends, unless it is a detached command. */
void chan_leave(struct chan *chan);

/* Say what became of it, and forget it. */
void chan_close(struct chans *chans, struct chan *chan, const struct answer *answer);

/* Grant the whole window for a start. */
void chan_grant(struct chans *chans, struct chan *chan);

/* What poll(2) should wait for; at most 3 of each chan. Returns how many were added. */
size_t chan_polls(struct chans *chans, struct chan *chan, struct pollfd *at);

/* Move data as far as it goes now. */
void chan_pump(struct chans *chans, struct chan *chan);

void chan_shut(int *fd);

#endif
