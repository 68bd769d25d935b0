/* SPDX-License-Identifier: Apache-2.0 */
/* Trees of pvc-agent(7): records of files, on standard input or output. */
#ifndef TREE_H
#define TREE_H

#include "words.h"

#include <stdio.h>

#define TREE_WORDS 8192u /* the longest words of a record */
#define TREE_BLOCK 262144u
#define TREE_HEAD 8u            /* before each piece of a file: how many bytes; 0: that was all */
#define TREE_HOLE (1ull << 63)  /* in a head: so many zeros, which are not sent */
#define TREE_SIZE (1ull << 62)  /* the largest file */
#define TREE_DEEP 128    /* directories within each other */

/* The CRC-32 of zlib, of more bytes after others. */
uint32_t tree_crc(uint32_t crc, const uint8_t *data, size_t size);

/* All of it; false: the other side is gone (or the input has ended early). */
bool tree_write(const void *data, size_t size);
bool tree_read(void *data, size_t size);

bool tree_write_words(const struct answer *words);

#endif
