/* Stands between a process and libc to count, kill at, fail or record the calls that change the files
 * of a store: what a crash or a full disk at exactly that call would do. Loaded with LD_PRELOAD;
 * nothing happens before arm(). Calls are serialised while armed, so that counting is exact. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { OFF, COUNT, KILL_BEFORE, KILL_AFTER, TEAR, FAIL, RECORD };

static int mode = OFF, error_number;
static long at, until, calls;
static char root[4096], journal[4096];
static FILE *log_file;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

/* From now on, call number `first` (from 1) on files below `below` is killed, torn or, up to call
 * `last`, fails with `error`. RECORD writes what becomes durable to the folder `where`. */
void arm(const char *below, int what, long first, long last, int error, const char *where) {
    pthread_mutex_lock(&mutex);
    snprintf(root, sizeof root, "%s", below);
    snprintf(journal, sizeof journal, "%s", where ? where : "");
    at = first, until = last, error_number = error, calls = 0;
    if (what == RECORD) {
        char path[4200];
        snprintf(path, sizeof path, "%s/log", journal);
        log_file = fopen(path, "ae");
    }
    mode = what;
    pthread_mutex_unlock(&mutex);
}

/* Ends it; the calls there were. */
long disarm(void) {
    pthread_mutex_lock(&mutex);
    mode = OFF;
    if (log_file) fclose(log_file);
    log_file = NULL;
    pthread_mutex_unlock(&mutex);
    return calls;
}

/* A line of the caller's in the journal. */
void note(const char *line) {
    pthread_mutex_lock(&mutex);
    if (log_file) fprintf(log_file, "note\t%s\n", line), fflush(log_file);
    pthread_mutex_unlock(&mutex);
}

static int below_root(const char *path) {
    size_t n = strlen(root);
    return !strncmp(path, root, n) && (path[n] == '/' || !path[n]);
}

static int fd_path(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, 4095);
    if (n < 0) return 0;
    out[n] = 0;
    return 1;
}

/* Whether a call is one of those watched; the lock is held if so. */
static int enter_path(const char *path) {
    if (mode == OFF || !below_root(path)) return 0;
    pthread_mutex_lock(&mutex);
    if (mode != OFF) return 1;
    pthread_mutex_unlock(&mutex);
    return 0;
}

static int enter_fd(int fd) {
    char path[4096];
    return mode != OFF && fd_path(fd, path) && enter_path(path);
}

static int enter_at(int fd, const char *path) {
    char folder[4096];
    if (path[0] == '/' || fd == AT_FDCWD) return enter_path(path);
    return mode != OFF && fd_path(fd, folder) && enter_path(folder);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts a call; true when it must fail. */
static int before(void) {
    calls++;
    if ((mode == KILL_BEFORE || mode == TEAR) && calls == at) die();
    if (mode == FAIL && calls >= at && calls <= until) {
        errno = error_number;
        return 1;
    }
    return 0;
}

static void after(void) {
    int kept = errno;
    if (mode == KILL_AFTER && calls == at) die();
    pthread_mutex_unlock(&mutex);
    errno = kept;
}

static unsigned long inode(const char *path) {
    struct stat found;
    return lstat(path, &found) ? 0 : (unsigned long)found.st_ino;
}

static void say(const char *what, const char *path, const char *other) {
    if (mode != RECORD || !log_file) return;
    fprintf(log_file, "%s\t%lu\t%s\t%s\n", what, inode(other ? other : path), path, other ? other : "");
    fflush(log_file);
}

/* What a sync makes durable: a file's bytes, or a folder's names. */
static void record_sync(int fd) {
    static long number;
    char path[4096], copy[8300], buffer[65536];
    struct stat found;
    if (mode != RECORD || !log_file || !fd_path(fd, path) || fstat(fd, &found)) return;
    number++;
    snprintf(copy, sizeof copy, "%s/%ld", journal, number);
    FILE *out = REAL(fopen)(copy, "we");
    if (!out) abort();
    if (S_ISDIR(found.st_mode)) {
        DIR *folder = opendir(path);
        for (struct dirent *entry; folder && (entry = readdir(folder));)
            if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
                fprintf(out, "%lu\t%s\n", (unsigned long)entry->d_ino, entry->d_name);
        if (folder) closedir(folder);
    } else {
        off_t place = 0;
        for (ssize_t n; (n = pread(fd, buffer, sizeof buffer, place)) > 0; place += n)
            fwrite(buffer, 1, (size_t)n, out);
    }
    fclose(out);
    fprintf(log_file, "%s\t%lu\t%s\t%ld\n", S_ISDIR(found.st_mode) ? "syncdir" : "sync",
            (unsigned long)found.st_ino, path, number);
    fflush(log_file);
}

#define WATCH(entered, call, done)                 \
    if (!(entered)) return call;                   \
    __typeof__(call) result = -1;                  \
    if (!before()) {                               \
        result = call;                             \
        if (result >= 0) { done; }                 \
    }                                              \
    after();                                       \
    return result;

int fsync(int fd) { WATCH(enter_fd(fd), REAL(fsync)(fd), record_sync(fd)) }

int fdatasync(int fd) { WATCH(enter_fd(fd), REAL(fdatasync)(fd), record_sync(fd)) }

int rename(const char *from, const char *to) {
    WATCH(enter_path(to), REAL(rename)(from, to), say("rename", from, to))
}

int link(const char *from, const char *to) { WATCH(enter_path(to), REAL(link)(from, to), say("link", from, to)) }

int linkat(int a, const char *from, int b, const char *to, int flags) {
    WATCH(enter_at(b, to), REAL(linkat)(a, from, b, to, flags), say("link", from, to))
}

int unlink(const char *path) { WATCH(enter_path(path), REAL(unlink)(path), say("unlink", path, NULL)) }

int unlinkat(int fd, const char *path, int flags) {
    WATCH(enter_at(fd, path), REAL(unlinkat)(fd, path, flags), (void)0)
}

int rmdir(const char *path) { WATCH(enter_path(path), REAL(rmdir)(path), say("unlink", path, NULL)) }

int mkdir(const char *path, mode_t bits) { WATCH(enter_path(path), REAL(mkdir)(path, bits), say("mkdir", path, NULL)) }

int ftruncate(int fd, off_t n) { WATCH(enter_fd(fd), REAL(ftruncate)(fd, n), (void)0) }

int ftruncate64(int fd, off64_t n) { WATCH(enter_fd(fd), REAL(ftruncate64)(fd, n), (void)0) }

/* The half of a write gets through before the kill. */
#define TORN(n) \
    if (mode == TEAR && calls + 1 == at) n /= 2, mode = KILL_AFTER;

#define WATCH_WRITE(fd, n, call)                   \
    if (!enter_fd(fd)) return call;                \
    TORN(n)                                        \
    ssize_t result = -1;                           \
    if (!before()) result = call;                  \
    after();                                       \
    return result;

ssize_t write(int fd, const void *from, size_t n) { WATCH_WRITE(fd, n, REAL(write)(fd, from, n)) }

ssize_t pwrite(int fd, const void *from, size_t n, off_t place) {
    WATCH_WRITE(fd, n, REAL(pwrite)(fd, from, n, place))
}

ssize_t pwrite64(int fd, const void *from, size_t n, off64_t place) {
    WATCH_WRITE(fd, n, REAL(pwrite64)(fd, from, n, place))
}

ssize_t copy_file_range(int in, off64_t *a, int out, off64_t *b, size_t n, unsigned flags) {
    WATCH_WRITE(out, n, REAL(copy_file_range)(in, a, out, b, n, flags))
}

ssize_t sendfile64(int out, int in, off64_t *place, size_t n) {
    ssize_t (*call)(int, int, off64_t *, size_t) = (ssize_t(*)(int, int, off64_t *, size_t))real("sendfile64");
    WATCH_WRITE(out, n, call(out, in, place, n))
}

/* Opening counts where it may make a file. */
#define WATCH_OPEN(name, entered, ...)                                           \
    mode_t bits = 0;                                                             \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {                   \
        va_list more;                                                            \
        va_start(more, flags);                                                   \
        bits = va_arg(more, mode_t);                                             \
        va_end(more);                                                            \
    }                                                                            \
    if (!(flags & O_CREAT)) return REAL(name)(__VA_ARGS__, flags, bits);         \
    WATCH(entered, REAL(name)(__VA_ARGS__, flags, bits), say("create", path, NULL))

int open(const char *path, int flags, ...) { WATCH_OPEN(open, enter_path(path), path) }

int open64(const char *path, int flags, ...) { WATCH_OPEN(open64, enter_path(path), path) }

int openat(int fd, const char *path, int flags, ...) { WATCH_OPEN(openat, enter_at(fd, path), fd, path) }

int openat64(int fd, const char *path, int flags, ...) { WATCH_OPEN(openat64, enter_at(fd, path), fd, path) }
