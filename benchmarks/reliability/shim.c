/* Faults on demand: stands between a program and its C library (LD_PRELOAD) and counts the calls that concern files
 * below one folder. The n-th of them can fail with a chosen errno, be cut short, or kill or interrupt the process.
 * Every call can also be written down, data included, for benchmarks/reliability/powerloss.py.
 *
 * Nothing happens before shim_arm. Calls by number of the system (syscall(2)) and from within the C library are not seen.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum call {  /* in the order of CALLS in shim.py */
    OPEN, CLOSE, READ, WRITE, FSYNC, TRUNCATE, RENAME, LINK, UNLINK, MKDIR, RMDIR, CHMOD, STAT, LIST, LOCK, SPACE
};
enum mode {  /* in the order of MODES in shim.py */
    COUNT, FAIL, FAIL_FROM_HERE, KILL_BEFORE, KILL_AFTER, KILL_TORN, SHORT, NOTHING, INTERRUPT
};

#define MAX_CALLS 100000
#define MAX_FDS 4096

static char prefix[PATH_MAX];
static size_t prefix_length;
static int armed, mode, error_number, trace = -1;
static long target, count;
static unsigned char seen[MAX_CALLS];
static unsigned char is_ours[MAX_FDS];
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

void shim_arm(const char *folder, long nth, int how, int number, int trace_fd) {
    strncpy(prefix, folder, sizeof prefix - 1);
    prefix_length = strlen(prefix);
    memset(is_ours, 0, sizeof is_ours);
    target = nth;
    mode = how;
    error_number = number;
    trace = trace_fd;
    count = 0;
    armed = 1;
}

void shim_disarm(void) { armed = 0; }
long shim_count(void) { return count; }
int shim_call(long nth) { return nth < MAX_CALLS ? seen[nth] : -1; }

static int fd_is_ours(int fd) { return armed && fd >= 0 && fd < MAX_FDS && is_ours[fd]; }

static int path_is_ours(int folder, const char *path) {
    if (!armed || !path)
        return 0;
    if (path[0] == '/')
        return strncmp(path, prefix, prefix_length) == 0;
    return folder != AT_FDCWD && fd_is_ours(folder);
}

static void absolute(int folder, const char *path, char *out) {
    char link[64];
    ssize_t length = 0;
    if (path[0] != '/' && folder != AT_FDCWD) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(link, out, PATH_MAX);
        out[length++] = '/';
    }
    strncpy(out + length, path, PATH_MAX - (size_t)length);
    out[2 * PATH_MAX - 1] = 0;
}

/* One record of the trace: call, descriptor, number (flags, offset or length), and up to two byte strings. */
static void note(int call, int fd, int64_t number, const void *a, uint32_t a_length, const void *b, uint32_t b_length) {
    struct __attribute__((packed)) { uint8_t call; int32_t fd; int64_t number; uint32_t a, b; } head = {
        (uint8_t)call, fd, number, a_length, b_length };
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)a, a_length}, {(void *)b, b_length}};
    if (trace < 0)
        return;
    syscall(SYS_writev, trace, parts, 3);
}

/* What to do with this call: -1 let it fail, 0 do it, 1 do it and die, 2 do half of it and die, 3 do half, 4 do none. */
static int meet(int call) {
    int what = 0;
    pthread_mutex_lock(&guard);
    long now = count++;
    if (now < MAX_CALLS)
        seen[now] = (unsigned char)call;
    if (mode != COUNT && (now == target || (mode == FAIL_FROM_HERE && now > target))) {
        switch (mode) {
        case FAIL: case FAIL_FROM_HERE: what = -1; break;
        case KILL_BEFORE: kill(getpid(), SIGKILL); for (;;) pause();
        case KILL_AFTER: what = 1; break;
        case KILL_TORN: what = 2; break;
        case SHORT: what = 3; break;
        case NOTHING: what = 4; break;
        case INTERRUPT: kill(getpid(), SIGINT); break;
        }
    }
    pthread_mutex_unlock(&guard);
    if (what == -1)
        errno = error_number;
    return what;
}

static void die_if(int what) {
    if (what == 1 || what == 2) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

#define PATH_CALL(kind, ours, call, noting) \
    if (!(ours)) return call; \
    int what = meet(kind); \
    if (what == -1) return -1; \
    int result = call; \
    int kept = errno; \
    if (result == 0 && trace >= 0) { noting; } \
    die_if(what); \
    errno = kept; \
    return result

static int note_paths(int kind, int64_t number, int from, const char *a, int to, const char *b) {
    static char first[2 * PATH_MAX], second[2 * PATH_MAX];
    absolute(from, a, first);
    second[0] = 0;
    if (b)
        absolute(to, b, second);
    note(kind, -1, number, first, (uint32_t)strlen(first), second, (uint32_t)strlen(second));
    return 0;
}

/* ---- opening and closing */

static int opened(int what, int fd, int folder, const char *path, int flags, mode_t access) {
    int kept = errno;
    if (fd >= 0 && fd < MAX_FDS) {
        static char whole[2 * PATH_MAX];
        is_ours[fd] = 1;
        if (trace >= 0) {
            absolute(folder, path, whole);
            note(OPEN, fd, flags | (int64_t)access << 32, whole, (uint32_t)strlen(whole), 0, 0);
        }
    }
    die_if(what);
    errno = kept;
    return fd;
}

#define OPEN_BODY(folder, real_call) \
    mode_t access = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; va_start(rest, flags); access = va_arg(rest, mode_t); va_end(rest); \
    } \
    if (!path_is_ours(folder, path)) return real_call; \
    int what = meet(OPEN); \
    if (what == -1) return -1; \
    return opened(what, real_call, folder, path, flags, access)

int open(const char *path, int flags, ...) {
    REAL(int, "open", const char *, int, ...);
    OPEN_BODY(AT_FDCWD, real(path, flags, access));
}
int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, ...);
    OPEN_BODY(AT_FDCWD, real(path, flags, access));
}
int openat(int folder, const char *path, int flags, ...) {
    REAL(int, "openat", int, const char *, int, ...);
    OPEN_BODY(folder, real(folder, path, flags, access));
}
int openat64(int folder, const char *path, int flags, ...) {
    REAL(int, "openat64", int, const char *, int, ...);
    OPEN_BODY(folder, real(folder, path, flags, access));
}

int close(int fd) {
    REAL(int, "close", int);
    if (!fd_is_ours(fd))
        return real(fd);
    int what = meet(CLOSE);
    is_ours[fd] = 0;
    int result = real(fd); /* a close that fails has closed all the same */
    if (result == 0)
        note(CLOSE, fd, 0, 0, 0, 0, 0);
    if (what == -1) {
        errno = error_number;
        return -1;
    }
    die_if(what);
    return result;
}

int dup(int fd) {
    REAL(int, "dup", int);
    int copy = real(fd);
    if (fd_is_ours(fd) && copy >= 0 && copy < MAX_FDS)
        is_ours[copy] = 1;
    return copy;
}

/* ---- data */

static size_t part(int what, size_t whole) { return what == 2 || what == 3 ? (whole > 1 ? whole / 2 : whole) : whole; }

#define DATA_CALL(kind, real_call, full_call, noting) \
    if (!fd_is_ours(fd)) return full_call; \
    int what = meet(kind); \
    if (what == -1) return -1; \
    if (what == 4) return 0; \
    size_t size = part(what, length); \
    ssize_t result = real_call; \
    int kept = errno; \
    if (result > 0 && trace >= 0) { noting; } \
    die_if(what); \
    errno = kept; \
    return result

ssize_t read(int fd, void *data, size_t length) {
    REAL(ssize_t, "read", int, void *, size_t);
    DATA_CALL(READ, real(fd, data, size), real(fd, data, length), (void)0);
}
ssize_t pread64(int fd, void *data, size_t length, off64_t offset) {
    REAL(ssize_t, "pread64", int, void *, size_t, off64_t);
    DATA_CALL(READ, real(fd, data, size, offset), real(fd, data, length, offset), (void)0);
}
ssize_t write(int fd, const void *data, size_t length) {
    REAL(ssize_t, "write", int, const void *, size_t);
    DATA_CALL(WRITE, real(fd, data, size), real(fd, data, length),
              note(WRITE, fd, lseek(fd, 0, SEEK_CUR) - result, data, (uint32_t)result, 0, 0));
}
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    DATA_CALL(WRITE, real(fd, data, size, offset), real(fd, data, length, offset),
              note(WRITE, fd, offset, data, (uint32_t)result, 0, 0));
}

/* The kernel's own copying is refused: the program then copies by calls that are met and noted one by one. */
ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *at, size_t length, unsigned int flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned int);
    if (!fd_is_ours(from) && !fd_is_ours(to))
        return real(from, start, to, at, length, flags);
    errno = ENOSYS;
    return -1;
}

static ssize_t positioned(ssize_t (*real)(int, const struct iovec *, int, off64_t), int fd, const struct iovec *parts,
                          int parts_count, off64_t offset) {
    if (!fd_is_ours(fd))
        return real(fd, parts, parts_count, offset);
    int what = meet(READ);
    if (what == -1)
        return -1;
    if (what == 4)
        return 0;
    struct iovec first = parts[0];
    first.iov_len = part(what, first.iov_len);
    ssize_t result = real(fd, what ? &first : parts, what ? 1 : parts_count, offset);
    int kept = errno;
    die_if(what);
    errno = kept;
    return result;
}
ssize_t preadv64(int fd, const struct iovec *parts, int parts_count, off64_t offset) {
    REAL(ssize_t, "preadv64", int, const struct iovec *, int, off64_t);
    return positioned(real, fd, parts, parts_count, offset);
}
ssize_t preadv(int fd, const struct iovec *parts, int parts_count, off_t offset) {
    REAL(ssize_t, "preadv", int, const struct iovec *, int, off_t);
    return positioned(real, fd, parts, parts_count, offset);
}
ssize_t preadv64v2(int fd, const struct iovec *parts, int parts_count, off64_t offset, int flags) {
    REAL(ssize_t, "preadv64", int, const struct iovec *, int, off64_t);
    (void)flags; /* Python passes none */
    return positioned(real, fd, parts, parts_count, offset);
}

#define FD_CALL(kind, call, noting) \
    if (!fd_is_ours(fd)) return call; \
    int what = meet(kind); \
    if (what == -1) return -1; \
    int result = call; \
    int kept = errno; \
    if (result == 0 && trace >= 0) { noting; } \
    die_if(what); \
    errno = kept; \
    return result

int fsync(int fd) {
    REAL(int, "fsync", int);
    FD_CALL(FSYNC, real(fd), note(FSYNC, fd, 0, 0, 0, 0, 0));
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    FD_CALL(FSYNC, real(fd), note(FSYNC, fd, 0, 0, 0, 0, 0));
}
int ftruncate64(int fd, off64_t length) {
    REAL(int, "ftruncate64", int, off64_t);
    FD_CALL(TRUNCATE, real(fd, length), note(TRUNCATE, fd, length, 0, 0, 0, 0));
}
int flock(int fd, int operation) {
    REAL(int, "flock", int, int);
    FD_CALL(LOCK, real(fd, operation), (void)0);
}

/* ---- names */

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    PATH_CALL(RENAME, path_is_ours(AT_FDCWD, from), real(from, to), note_paths(RENAME, 0, AT_FDCWD, from, AT_FDCWD, to));
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    PATH_CALL(RENAME, path_is_ours(a, from), real(a, from, b, to), note_paths(RENAME, 0, a, from, b, to));
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    PATH_CALL(RENAME, path_is_ours(a, from), real(a, from, b, to, flags), note_paths(RENAME, flags, a, from, b, to));
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    PATH_CALL(LINK, path_is_ours(AT_FDCWD, from), real(from, to), note_paths(LINK, 0, AT_FDCWD, from, AT_FDCWD, to));
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    PATH_CALL(LINK, path_is_ours(a, from), real(a, from, b, to, flags), note_paths(LINK, 0, a, from, b, to));
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    PATH_CALL(UNLINK, path_is_ours(AT_FDCWD, path), real(path), note_paths(UNLINK, 0, AT_FDCWD, path, 0, 0));
}
int unlinkat(int folder, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    PATH_CALL(UNLINK, path_is_ours(folder, path), real(folder, path, flags), note_paths(UNLINK, 0, folder, path, 0, 0));
}
int mkdir(const char *path, mode_t access) {
    REAL(int, "mkdir", const char *, mode_t);
    PATH_CALL(MKDIR, path_is_ours(AT_FDCWD, path), real(path, access),
              note_paths(MKDIR, access, AT_FDCWD, path, 0, 0));
}
int mkdirat(int folder, const char *path, mode_t access) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    PATH_CALL(MKDIR, path_is_ours(folder, path), real(folder, path, access),
              note_paths(MKDIR, access, folder, path, 0, 0));
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    PATH_CALL(RMDIR, path_is_ours(AT_FDCWD, path), real(path), note_paths(RMDIR, 0, AT_FDCWD, path, 0, 0));
}
int chmod(const char *path, mode_t access) {
    REAL(int, "chmod", const char *, mode_t);
    PATH_CALL(CHMOD, path_is_ours(AT_FDCWD, path), real(path, access),
              note_paths(CHMOD, access, AT_FDCWD, path, 0, 0));
}

/* ---- looking */

int stat64(const char *path, struct stat64 *status) {
    REAL(int, "stat64", const char *, struct stat64 *);
    PATH_CALL(STAT, path_is_ours(AT_FDCWD, path), real(path, status), (void)0);
}
int lstat64(const char *path, struct stat64 *status) {
    REAL(int, "lstat64", const char *, struct stat64 *);
    PATH_CALL(STAT, path_is_ours(AT_FDCWD, path), real(path, status), (void)0);
}
int stat(const char *path, struct stat *status) {
    REAL(int, "stat", const char *, struct stat *);
    PATH_CALL(STAT, path_is_ours(AT_FDCWD, path), real(path, status), (void)0);
}
int lstat(const char *path, struct stat *status) {
    REAL(int, "lstat", const char *, struct stat *);
    PATH_CALL(STAT, path_is_ours(AT_FDCWD, path), real(path, status), (void)0);
}
int fstat64(int fd, struct stat64 *status) {
    REAL(int, "fstat64", int, struct stat64 *);
    FD_CALL(STAT, real(fd, status), (void)0);
}
int fstat(int fd, struct stat *status) {
    REAL(int, "fstat", int, struct stat *);
    FD_CALL(STAT, real(fd, status), (void)0);
}
int fstatat64(int folder, const char *path, struct stat64 *status, int flags) {
    REAL(int, "fstatat64", int, const char *, struct stat64 *, int);
    PATH_CALL(STAT, path_is_ours(folder, path), real(folder, path, status, flags), (void)0);
}
int fstatat(int folder, const char *path, struct stat *status, int flags) {
    REAL(int, "fstatat", int, const char *, struct stat *, int);
    PATH_CALL(STAT, path_is_ours(folder, path), real(folder, path, status, flags), (void)0);
}
int statvfs64(const char *path, struct statvfs64 *status) {
    REAL(int, "statvfs64", const char *, struct statvfs64 *);
    PATH_CALL(SPACE, path_is_ours(AT_FDCWD, path), real(path, status), (void)0);
}
int statvfs(const char *path, struct statvfs *status) {
    REAL(int, "statvfs", const char *, struct statvfs *);
    PATH_CALL(SPACE, path_is_ours(AT_FDCWD, path), real(path, status), (void)0);
}
DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    if (!path_is_ours(AT_FDCWD, path))
        return real(path);
    int what = meet(LIST);
    if (what == -1)
        return 0;
    DIR *result = real(path);
    int kept = errno;
    die_if(what);
    errno = kept;
    return result;
}
DIR *fdopendir(int fd) {
    REAL(DIR *, "fdopendir", int);
    if (!fd_is_ours(fd))
        return real(fd);
    int what = meet(LIST);
    if (what == -1)
        return 0;
    DIR *result = real(fd);
    int kept = errno;
    die_if(what);
    errno = kept;
    return result;
}
