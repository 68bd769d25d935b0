/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include "job.h"
#include "ops.h"
#include "sock.h"

#include <string.h>

void session_end(struct chans *chans)
{
	for (size_t i = 0; i < CHAN_MOST; i++) {
		struct chan *chan = &chans->table[i];

		if (chan->behind != NOTHING && chan->stream != 0)
			chan_leave(chan);
	}
}

static void open_stream(struct chans *chans, const struct frame *frame)
{
	struct words words = {(const char *)frame->payload, frame->length};
	struct answer answer = {.length = 0};
	const char *op = words_find(&words, "op");
	job_work *work = op != NULL ? ops_find(op) : NULL;

	if (op == NULL)
		words_add(&answer, "error", "a request without op");
	else if (work != NULL)
		job_start(chans, frame->stream, &words, work);
	else if (strcmp(op, "exec") == 0)
		job_start(chans, frame->stream, &words, NULL);
	else if (strcmp(op, "attach") == 0)
		job_attach(chans, frame->stream, &words);
	else if (strcmp(op, "list") == 0)
		job_list(chans, frame->stream);
	else if (strcmp(op, "connect") == 0)
		sock_connect(chans, frame->stream, &words);
	else if (strcmp(op, "listen") == 0)
		sock_listen(chans, frame->stream, &words);
	else if (strcmp(op, "metrics") == 0)
		ops_metrics(&words, &answer);
	else
		words_add(&answer, "error", "the agent knows no request %.40s", op);
	if (answer.length > 0)
		port_send(chans->port, CLOSE, 0, frame->stream, answer.text, answer.length);
}

static bool take_stream_frame(struct chans *chans, const struct frame *frame)
{
	struct chan *chan = chan_find(chans, frame->stream);
	struct words words = {(const char *)frame->payload, frame->length};
	bool has_words = frame->kind == OPEN || frame->kind == NOTE || frame->kind == CLOSE;

	if (frame->stream == 0 || (has_words && !words_good(frame->payload, frame->length)))
		return false;
	if (frame->kind == OPEN) {
		if (chan != NULL || frame->stream >= 0x80000000u)
			return false;
		open_stream(chans, frame);
		return true;
	}
	/* One that was closed from here while the host spoke. */
	if (chan == NULL)
		return true;
	switch (frame->kind) {
	case DATA:
		return frame->flags == 0 && chan_data(chans, chan, frame);
	case END:
		chan_end(chan);
		return true;
	case CREDIT:
		return chan_credit(chan, frame);
	case NOTE:
		if (chan->behind == PROCESS)
			job_note(chan, &words);
		return true;
	default:
		port_send(chans->port, CLOSE, 0, frame->stream, NULL, 0);
		chan_leave(chan);
		return true;
	}
}

static void give_up(struct chans *chans)
{
	session_end(chans);
	chans->port->established = false;
	chans->port->decoder.in_step = false;
	port_hello(chans->port, 0);
}

static void take_hello(struct chans *chans, const struct frame *frame)
{
	switch (port_greet(chans->port, frame)) {
	case GREETING_BAD:
		give_up(chans);
		break;
	case GREETING_STRANGER:
		port_hello(chans->port, 0);
		break;
	case GREETING_NEW:
		session_end(chans);
		port_hello(chans->port, chans->port->session);
		break;
	case GREETING_SAME:
		break;
	}
}

void session_take(struct chans *chans)
{
	struct port *port = chans->port;
	struct frame frame;

	while (port_room(port) >= PORT_RESERVE) {
		int found = frame_next(&port->decoder, &frame);

		if (found == 0)
			return;
		if (found < 0) {
			give_up(chans);
			continue;
		}
		if (frame.kind == HELLO)
			take_hello(chans, &frame);
		else if (!port->established)
			continue;
		else if (frame.kind == PING)
			port_send(port, PONG, 0, 0, frame.payload, frame.length);
		else if (frame.kind != PONG && !take_stream_frame(chans, &frame))
			give_up(chans);
	}
}
