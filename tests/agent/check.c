/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's parts that read what others wrote, under the sanitizers: known cases, then noise from a fixed seed. */
#include "frame.h"
#include "tree.h"
#include "words.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 20000

static unsigned failures;

static void check(bool good, int line, const char *text)
{
	if (good)
		return;
	fprintf(stderr, "check.c:%d: not so: %s\n", line, text);
	failures++;
}

#define CHECK(condition) check((condition), __LINE__, #condition)

static uint32_t noise(void)
{
	static uint32_t state = 2463534242u;

	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

static size_t put_frame(uint8_t *at, enum kind kind, uint32_t stream, const void *payload, uint32_t length)
{
	frame_header(at, kind, 0, stream, length);
	if (length > 0)
		memcpy(at + FRAME_HEADER, payload, length);
	return FRAME_HEADER + length;
}

static size_t put_hello(uint8_t *at)
{
	uint8_t payload[FRAME_HELLO] = FRAME_MAGIC;

	return put_frame(at, HELLO, 0, payload, sizeof payload);
}

static void feed(struct decoder *decoder, const uint8_t *data, size_t size)
{
	size_t room;
	uint8_t *at = frame_room(decoder, &room);

	CHECK(size <= room);
	memcpy(at, data, size);
	frame_filled(decoder, size);
}

static void test_frames(void)
{
	struct decoder *decoder = calloc(1, sizeof *decoder);
	uint8_t *data = calloc(1, 4096);
	struct frame frame;
	size_t size;

	/* Nothing counts before a HELLO; zeros are skipped; a frame in two parts is one. */
	size = put_frame(data, DATA, 7, "x", 1);
	size += put_hello(data + size);
	size += 5;
	size += put_frame(data + size, NOTE, 9, "a=b", 4);
	feed(decoder, data, size - 2);
	CHECK(frame_next(decoder, &frame) == 1 && frame.kind == HELLO && frame.length == FRAME_HELLO);
	CHECK(frame_next(decoder, &frame) == 0);
	feed(decoder, data + size - 2, 2);
	CHECK(frame_next(decoder, &frame) == 1 && frame.kind == NOTE && frame.stream == 9 && frame.length == 4);
	CHECK(memcmp(frame.payload, "a=b", 4) == 0);
	/* What is no frame is told once, and then a HELLO is waited for. */
	feed(decoder, (const uint8_t *)"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12);
	CHECK(frame_next(decoder, &frame) == -1);
	CHECK(frame_next(decoder, &frame) == 0);
	size = put_frame(data, DATA, 7, "x", 1);
	feed(decoder, data, size);
	CHECK(frame_next(decoder, &frame) == 0);
	size = put_hello(data);
	feed(decoder, data, size);
	CHECK(frame_next(decoder, &frame) == 1 && frame.kind == HELLO);
	free(decoder);
	free(data);
}

/* After any noise, zeros and a HELLO come through. */
static void test_frames_in_noise(void)
{
	struct decoder *decoder = calloc(1, sizeof *decoder);
	uint8_t data[256];
	struct frame frame;

	for (unsigned round = 0; round < ROUNDS; round++) {
		size_t size = noise() % sizeof data;
		int found;

		for (size_t i = 0; i < size; i++)
			data[i] = (uint8_t)noise();
		/* Half of the rounds begin like a frame. */
		if (size > FRAME_HEADER && noise() % 2 == 0)
			frame_header(data, (enum kind)(noise() % 11), noise() % 3 & 0xff, noise() % 4, noise() % 300);
		feed(decoder, data, size);
		while ((found = frame_next(decoder, &frame)) != 0)
			CHECK(found < 0 || (frame.length <= FRAME_MAX && frame.kind >= HELLO && frame.kind <= CLOSE));
		if (round % 500 == 0) {
			static const uint8_t zeros[FRAME_SYNC];
			uint8_t hello[FRAME_HEADER + FRAME_HELLO];
			bool heard = false;

			feed(decoder, zeros, sizeof zeros);
			while (frame_next(decoder, &frame) != 0)
				continue;
			feed(decoder, hello, put_hello(hello));
			while ((found = frame_next(decoder, &frame)) != 0)
				heard = heard || (found > 0 && frame.kind == HELLO);
			CHECK(heard);
		}
	}
	free(decoder);
}

static void test_words(void)
{
	static const char text[] = "op=exec\0arg=a\0arg=\0arg=c=d\0n=12\0big=99999999999999999999\0";
	struct words words = {text, sizeof text - 1};
	const char *each = NULL;
	struct answer answer = {.length = 0};
	unsigned count = 0;

	CHECK(words_good((const uint8_t *)text, sizeof text - 1));
	CHECK(words_is(&words, "op", "exec") && words_find(&words, "o") == NULL && words_find(&words, "xec") == NULL);
	while ((each = words_next(&words, "arg", each)) != NULL)
		CHECK(strcmp(each, count++ == 0 ? "a" : count == 2 ? "" : "c=d") == 0);
	CHECK(count == 3);
	CHECK(words_number(&words, "n", 5, 20) == 12 && words_number(&words, "n", 5, 11) == -1);
	CHECK(words_number(&words, "none", 5, 20) == 5 && words_number(&words, "op", 5, 20) == -1);
	CHECK(words_number(&words, "big", 5, 20) == -1);
	CHECK(!words_good((const uint8_t *)"a=b", 3) && !words_good((const uint8_t *)"=b", 3));
	CHECK(!words_good((const uint8_t *)"A=b", 4) && !words_good((const uint8_t *)"\0", 1) && words_good(NULL, 0));
	for (int i = 0; i < 1000; i++)
		words_add(&answer, "key", "%0200d", i);
	CHECK(answer.length <= sizeof answer.text && words_good((const uint8_t *)answer.text, answer.length));
	answer.length = 0;
	words_add_error(&answer, "cannot", ENOSPC);
	words.at = answer.text;
	words.length = answer.length;
	CHECK(words_is(&words, "error", "cannot: No space left on device") && words_is(&words, "errno", "ENOSPC"));
}

static void test_words_in_noise(void)
{
	static const char letters[] = "ab-=\0\0=z9A\xff";

	for (unsigned round = 0; round < ROUNDS; round++) {
		size_t size = noise() % 40;
		uint8_t *data = malloc(size > 0 ? size : 1); /* of just this size, so that one byte too far is seen */
		struct words words = {(const char *)data, size};

		for (size_t i = 0; i < size; i++)
			data[i] = (uint8_t)letters[noise() % (sizeof letters - 1)];
		if (words_good(data, size)) {
			const char *each = NULL;

			while ((each = words_next(&words, "ab", each)) != NULL)
				CHECK(each > words.at && each < words.at + words.length);
			words_number(&words, "z9", 1, 9);
		}
		free(data);
	}
}

static void test_checksums(void)
{
	uint8_t data[1000];

	/* The check value that everybody gives for CRC-32. */
	CHECK(tree_crc(0, (const uint8_t *)"123456789", 9) == 0xcbf43926u);
	for (size_t i = 0; i < sizeof data; i++)
		data[i] = (uint8_t)noise();
	for (size_t cut = 0; cut <= sizeof data; cut += 37)
		CHECK(tree_crc(tree_crc(0, data, cut), data + cut, sizeof data - cut) == tree_crc(0, data, sizeof data));
}

int main(void)
{
	test_frames();
	test_frames_in_noise();
	test_words();
	test_words_in_noise();
	test_checksums();
	if (failures == 0)
		puts("all checks of the agent's parts passed");
	return failures == 0 ? 0 : 1;
}
