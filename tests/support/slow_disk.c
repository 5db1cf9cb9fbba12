/* A disk that is slow for the bodies of a spool: each write and each read that waits takes DISK_MS
   longer, and nothing is in memory. For LD_PRELOAD; compiled by tests/support/slow_disk.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define LEAST 4096 /* octets of a call that is looked at */

static int is_body(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return strstr(path, "/spool.sqlite-content/") != NULL;
}

static void wait_if_body(int fd, size_t count)
{
    const char *ms = getenv("DISK_MS");
    if (ms == NULL || count < LEAST || !is_body(fd))
        return;
    struct timespec pause = {atol(ms) / 1000, atol(ms) % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *octets, size_t count)
{
    wait_if_body(fd, count);
    return REAL(write)(fd, octets, count);
}

ssize_t pread64(int fd, void *octets, size_t count, off64_t at)
{
    wait_if_body(fd, count);
    return REAL(pread64)(fd, octets, count, at);
}

ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags)
{
    if (flags && is_body(fd)) {
        errno = EAGAIN;
        return -1;
    }
    return REAL(preadv64v2)(fd, parts, count, at, flags);
}
