/* Trees of pvc-agent(7): records of files, on standard input or output. */
#ifndef TREE_H
#define TREE_H

#include "words.h"

#include <stdio.h>

#define TREE_WORDS 8192u /* the longest words of a record */
#define TREE_BLOCK 262144u
#define TREE_DEEP 128    /* directories within each other */

/* The CRC-32 of zlib, of more bytes after others. */
uint32_t tree_crc(uint32_t crc, const uint8_t *data, size_t size);

/* All of it; false: the other side is gone (or the input has ended early). */
bool tree_write(const void *data, size_t size);
bool tree_read(void *data, size_t size);

bool tree_write_words(const struct answer *words);

#endif
