/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's tool for the tests of networks; statically linked, because the guest has no C library.
 *
 *   frames send DEVICE HEX...            send raw Ethernet frames
 *   frames watch DEVICE MARK...          print "watching", then each MARK (text) that is in a frame that comes in
 *   frames ping ADDRESS BYTES            one ICMP echo of an IPv4 packet of BYTES with DF set; 0 when it is answered
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *what)
{
    perror(what);
    return 1;
}

static int open_packet(const char *device, struct sockaddr_ll *address)
{
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));

    memset(address, 0, sizeof(*address));
    address->sll_family = AF_PACKET;
    address->sll_protocol = htons(ETH_P_ALL);
    address->sll_ifindex = (int)if_nametoindex(device);
    if (fd < 0 || address->sll_ifindex == 0 || bind(fd, (struct sockaddr *)address, sizeof(*address)) < 0)
        return -1;
    return fd;
}

static double now(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

/* Wait for something to read until the deadline; whether there is. */
static int wait_input(int fd, double deadline)
{
    struct pollfd item = {.fd = fd, .events = POLLIN};
    double left = deadline - now();

    return left > 0 && poll(&item, 1, (int)(left * 1000) + 1) > 0;
}

static int do_send(const char *device, char **words)
{
    struct sockaddr_ll address;
    unsigned char frame[2048];
    int fd = open_packet(device, &address);

    if (fd < 0)
        return fail(device);
    for (; *words; words++) {
        size_t size = strlen(*words) / 2;

        for (size_t at = 0; at < size && at < sizeof(frame); at++) {
            unsigned int byte = 0;

            sscanf(*words + 2 * at, "%2x", &byte);
            frame[at] = (unsigned char)byte;
        }
        if (sendto(fd, frame, size, 0, (struct sockaddr *)&address, sizeof(address)) < 0)
            return fail("sendto");
    }
    return 0;
}

static int do_watch(const char *device, char **marks)
{
    struct packet_mreq all = {.mr_type = PACKET_MR_PROMISC};
    struct sockaddr_ll address, from;
    static char frame[65536];
    int fd = open_packet(device, &address);

    if (fd < 0)
        return fail(device);
    all.mr_ifindex = address.sll_ifindex;
    if (setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof(all)) < 0)
        return fail("PACKET_MR_PROMISC");
    setlinebuf(stdout);
    puts("watching");
    while (1) {
        socklen_t length = sizeof(from);
        ssize_t size = recvfrom(fd, frame, sizeof(frame), 0, (struct sockaddr *)&from, &length);

        if (size < 0)
            return fail("recvfrom");
        if (from.sll_pkttype == PACKET_OUTGOING)
            continue;
        for (int at = 0; marks[at]; at++)
            if (memmem(frame, (size_t)size, marks[at], strlen(marks[at])))
                puts(marks[at]);
    }
}

static unsigned short checksum(const void *data, size_t size)
{
    const unsigned char *bytes = data;
    unsigned long sum = 0;

    for (size_t at = 0; at < size; at += 2)
        sum += (unsigned long)bytes[at] << 8 | (at + 1 < size ? bytes[at + 1] : 0);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons((unsigned short)~sum);
}

static int do_ping(const char *address, const char *bytes)
{
    static unsigned char packet[65536];
    struct icmphdr *echo = (struct icmphdr *)packet;
    struct sockaddr_in to = {.sin_family = AF_INET};
    size_t size = (size_t)atoi(bytes) - sizeof(struct iphdr);
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), always = IP_PMTUDISC_DO;
    unsigned short id = (unsigned short)getpid();

    if (fd < 0 || inet_pton(AF_INET, address, &to.sin_addr) != 1 || size < sizeof(*echo) || size > sizeof(packet) ||
        setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &always, sizeof(always)) < 0)
        return fail(address);
    for (size_t at = 0; at < size; at++)
        packet[at] = (unsigned char)at;
    memset(echo, 0, sizeof(*echo));
    echo->type = ICMP_ECHO;
    echo->un.echo.id = id;
    echo->checksum = checksum(packet, size);
    for (int tries = 0; tries < 5; tries++) {
        double deadline = now() + 2;

        if (sendto(fd, packet, size, 0, (struct sockaddr *)&to, sizeof(to)) < 0)
            return fail("sendto");
        while (wait_input(fd, deadline)) {
            static unsigned char answer[65536];
            ssize_t got = recv(fd, answer, sizeof(answer), 0);
            size_t head = (size_t)(answer[0] & 15) * 4;
            struct icmphdr *reply = (struct icmphdr *)(answer + head);

            if (got == (ssize_t)(head + size) && reply->type == ICMP_ECHOREPLY && reply->un.echo.id == id)
                return memcmp(reply + 1, echo + 1, size - sizeof(*echo)) != 0;
        }
    }
    errno = ETIMEDOUT;
    return fail(address);
}

int main(int argc, char **argv)
{
    if (argc >= 4 && !strcmp(argv[1], "send"))
        return do_send(argv[2], argv + 3);
    if (argc >= 4 && !strcmp(argv[1], "watch"))
        return do_watch(argv[2], argv + 3);
    if (argc == 4 && !strcmp(argv[1], "ping"))
        return do_ping(argv[2], argv[3]);
    fprintf(stderr, "frames send DEVICE HEX... | watch DEVICE MARK... | ping ADDRESS BYTES\n");
    return 2;
}
