/* SPDX-License-Identifier: Apache-2.0 */
#include "chan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void chan_shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

struct chan *chan_new(struct chans *chans, enum behind behind, const struct chan_kind *kind, uint32_t stream)
{
	for (size_t i = 0; i < CHAN_MOST; i++) {
		struct chan *chan = &chans->table[i];

		if (chan->behind == NOTHING) {
			memset(chan, 0, sizeof *chan);
			chan->behind = behind;
			chan->kind = kind;
			chan->stream = stream;
			chan->in = chan->out[0] = chan->out[1] = -1;
			return chan;
		}
	}
	return NULL;
}

struct chan *chan_find(struct chans *chans, uint32_t stream)
{
	for (size_t i = 0; i < CHAN_MOST; i++)
		if (chans->table[i].behind != NOTHING && chans->table[i].stream == stream)
			return &chans->table[i];
	return NULL;
}

struct chan *chan_find_job(struct chans *chans, uint32_t job)
{
	for (size_t i = 0; i < CHAN_MOST; i++)
		if (chans->table[i].behind == PROCESS && chans->table[i].job == job)
			return &chans->table[i];
	return NULL;
}

static void free_chan(struct chan *chan)
{
	if (chan->out[0] == chan->in)
		chan->out[0] = -1;
	chan_shut(&chan->in);
	chan_shut(&chan->out[0]);
	chan_shut(&chan->out[1]);
	if (chan->path != NULL)
		unlink(chan->path);
	free(chan->path);
	free(chan->queue);
	free(chan->ring);
	free(chan->title);
	memset(chan, 0, sizeof *chan);
}

void chan_close(struct chans *chans, struct chan *chan, const struct answer *answer)
{
	if (chan->stream != 0)
		port_send(chans->port, CLOSE, 0, chan->stream, answer->text, answer->length);
	free_chan(chan);
}

void chan_leave(struct chan *chan)
{
	chan->stream = 0;
	chan->credit = 0;
	if (chan->kind->left != NULL)
		chan->kind->left(chan);
	else
		free_chan(chan);
}

void chan_grant(struct chans *chans, struct chan *chan)
{
	chan->granted = CHAN_WINDOW - chan->queued;
	chan->eaten = 0;
	if (chan->granted > 0)
		port_send_credit(chans->port, chan->stream, chan->granted);
}

static void eat(struct chans *chans, struct chan *chan, size_t count)
{
	chan->eaten += count;
	if (chan->eaten >= CHAN_WINDOW / 4 && chan->stream != 0 && port_room(chans->port) > 4096) {
		port_send_credit(chans->port, chan->stream, chan->eaten);
		chan->granted += chan->eaten;
		chan->eaten = 0;
	}
}

static void shut_in(struct chan *chan)
{
	if (chan->behind == SOCKET && chan->in >= 0)
		shutdown(chan->in, SHUT_WR);
	else if (chan->behind == PROCESS && chan->in == chan->out[0]) {
		/* A terminal has no end; its reader takes this for one. */
		if (chan->in >= 0 && write(chan->in, "\004", 1) < 0)
			return;
	} else if (chan->behind == PROCESS) {
		chan_shut(&chan->in);
	}
}

/* Write to `in`; what it does not take stays. Returns how much went, with what can never go counted. */
static size_t give(struct chan *chan, const uint8_t *data, size_t size)
{
	size_t done = 0;

	while (done < size && chan->in >= 0) {
		ssize_t count = chan->behind == SOCKET || chan->behind == DATAGRAMS
					? send(chan->in, data + done, size - done, MSG_NOSIGNAL)
					: write(chan->in, data + done, size - done);

		if (count >= 0) {
			done += (size_t)count;
		} else if (errno == EAGAIN) {
			return done;
		} else if (errno != EINTR) {
			if (chan->behind == PROCESS && chan->in != chan->out[0])
				chan_shut(&chan->in);
			return size;
		}
	}
	return size;
}

bool chan_data(struct chans *chans, struct chan *chan, const struct frame *frame)
{
	size_t done = 0;

	if (frame->length > chan->granted || chan->in_over)
		return false;
	chan->granted -= frame->length;
	if (chan->queued == 0)
		done = give(chan, frame->payload, frame->length);
	if (chan->behind == DATAGRAMS)
		done = frame->length; /* one that a full socket does not take is lost, as any may be */
	eat(chans, chan, done);
	if (done == frame->length)
		return true;
	if (chan->queue == NULL)
		chan->queue = malloc(CHAN_WINDOW);
	if (chan->queue == NULL)
		return false;
	if (chan->queue_at + chan->queued + frame->length - done > CHAN_WINDOW) {
		memmove(chan->queue, chan->queue + chan->queue_at, chan->queued);
		chan->queue_at = 0;
	}
	memcpy(chan->queue + chan->queue_at + chan->queued, frame->payload + done, frame->length - done);
	chan->queued += frame->length - done;
	return true;
}

void chan_end(struct chan *chan)
{
	chan->in_over = true;
	if (chan->queued == 0 && !chan->connecting)
		shut_in(chan);
}

bool chan_credit(struct chan *chan, const struct frame *frame)
{
	if (frame->length != 4)
		return false;
	chan->credit += frame_get32(frame->payload);
	return chan->credit < 1u << 30;
}

static void drain_queue(struct chans *chans, struct chan *chan)
{
	size_t done = give(chan, chan->queue + chan->queue_at, chan->queued);

	chan->queued -= done;
	chan->queue_at = chan->queued > 0 ? chan->queue_at + done : 0;
	eat(chans, chan, done);
	if (chan->queued == 0) {
		free(chan->queue);
		chan->queue = NULL;
		if (chan->in_over)
			shut_in(chan);
	}
}

size_t chan_polls(struct chans *chans, struct chan *chan, struct pollfd *at)
{
	bool wants = chan->behind == LISTENER || (chan->stream != 0 && chan->credit > 0) ||
		     (chan->stream == 0 && chan->behind == PROCESS);
	size_t count = 0;

	if (chan->resolving)
		at[count++] = (struct pollfd){.fd = chan->in, .events = POLLIN};
	else if (chan->connecting || (chan->queued > 0 && chan->in >= 0))
		at[count++] = (struct pollfd){.fd = chan->in, .events = POLLOUT};
	if (!wants || chan->connecting || port_room(chans->port) < PORT_RESERVE + FRAME_MAX + FRAME_HEADER)
		return count;
	for (int i = 0; i < 2; i++)
		if (chan->out[i] >= 0)
			at[count++] = (struct pollfd){.fd = chan->out[i], .events = POLLIN};
	return count;
}

static void keep_in_ring(struct chan *chan, const uint8_t *data, size_t size)
{
	size_t over;

	if (chan->ring == NULL)
		chan->ring = malloc(CHAN_RING);
	if (chan->ring == NULL)
		return;
	if (size > CHAN_RING) {
		data += size - CHAN_RING;
		size = CHAN_RING;
	}
	over = chan->ring_length + size > CHAN_RING ? chan->ring_length + size - CHAN_RING : 0;
	memmove(chan->ring, chan->ring + over, chan->ring_length - over);
	memcpy(chan->ring + chan->ring_length - over, data, size);
	chan->ring_length += size - over;
}

/* Once from one source. 1: something, 0: nothing now, -1: it is over. */
static int take(struct chans *chans, struct chan *chan, int source)
{
	static uint8_t lost[16384];
	size_t size = chan->stream != 0 ? chan->credit : sizeof lost;
	uint8_t *room = chan->stream != 0 ? port_data_room(chans->port, &size) : lost;
	ssize_t count;

	if (room == NULL || size == 0)
		return 0;
	if (chan->behind == DATAGRAMS && size < FRAME_MAX)
		return 0;
	do
		count = read(chan->out[source], room, size);
	while (count < 0 && errno == EINTR);
	/* One full frame costs less than many short ones. */
	while (chan->behind == PROCESS && !chan->pty && count > 0 && (size_t)count < size) {
		ssize_t more = read(chan->out[source], room + count, size - (size_t)count);

		if (more <= 0)
			break;
		count += more;
	}
	if (count < 0 && errno == EAGAIN)
		return 0;
	if (count < 0 && chan->behind == DATAGRAMS)
		return 0; /* an ICMP error of an earlier datagram */
	if (count <= 0 && chan->behind != DATAGRAMS) {
		/* A connection that broke is over in both directions. */
		if (count < 0 && chan->behind == SOCKET) {
			chan->in_over = true;
			chan->queued = 0;
		}
		/* EIO: the last process has left its terminal. */
		if (chan->out[source] != chan->in)
			chan_shut(&chan->out[source]);
		chan->out[source] = -1;
		return -1;
	}
	chan->since_exit += chan->exited ? (size_t)count : 0;
	if (chan->stream != 0) {
		port_data_commit(chans->port, source != 0, chan->stream, (size_t)count);
		chan->credit -= (size_t)count;
	} else if (chan->detach) {
		keep_in_ring(chan, lost, (size_t)count);
	}
	return 1;
}

void chan_pump(struct chans *chans, struct chan *chan)
{
	bool still = true; /* nothing more to read now */

	if (chan->kind->pump != NULL && chan->kind->pump(chans, chan))
		return;
	if (chan->queued > 0)
		drain_queue(chans, chan);
	if (chan->stream != 0 &&
	    (chan->ring_length > 0 || port_room(chans->port) < PORT_RESERVE + FRAME_MAX + FRAME_HEADER))
		return;
	for (int i = 0; i < 2; i++)
		if (chan->out[i] >= 0 && take(chans, chan, i) > 0)
			still = false;
	if (!chan->told_end && chan->out[0] < 0 && chan->out[1] < 0 && chan->stream != 0 && chan->behind != PROCESS) {
		chan->told_end = true;
		port_send(chans->port, END, 0, chan->stream, NULL, 0);
	}
	/* No pipe held more than that when the process ended: the rest is said by others. */
	if (chan->since_exit > 2 * CHAN_PIPE)
		still = true;
	if (chan->kind->over != NULL && chan->exited && still)
		chan->kind->over(chans, chan);
	else if (chan->behind == SOCKET && chan->told_end && chan->in_over && chan->queued == 0)
		chan_close(chans, chan, &(struct answer){.length = 0});
}
