/* A CUDA driver in host memory, for tests of the calls and not of CUDA.

It keeps to the documented signatures and rules: nothing before cuInit, memory and stream calls only
with a context current in the calling thread, work of a stream done no earlier than it is waited for
or asked about, freeing once. Device addresses are numbers that host code cannot follow. What it
counts and what it shall fail with is reached through the functions that begin with standin_. */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
       INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_READY = 600,
       ILLEGAL_ADDRESS = 700 };
enum { DEVICES = 2, SLOTS = 64, WORK = 64 };
static const uint64_t BASE = 0x700000000000ull;

struct block { uint64_t address; char *host; size_t size; int pinned; };
struct copy { void *host; uint64_t device; size_t size; int up; };
struct stream { int used; int asked; int count; struct copy work[WORK]; };

static int devices = DEVICES, started, init_code, next_code;
static int retained[DEVICES];
static size_t limit = 1 << 20, taken;
static uint64_t next_address;
static struct block blocks[SLOTS];
static struct stream streams[SLOTS];
static __thread void *current;

void standin_reset(int with_devices, int with_init_code, size_t with_limit) {
    for (int i = 0; i < SLOTS; i++) if (blocks[i].host) free(blocks[i].host);
    memset(blocks, 0, sizeof blocks);
    memset(streams, 0, sizeof streams);
    memset(retained, 0, sizeof retained);
    devices = with_devices; init_code = with_init_code; limit = with_limit;
    started = 0; next_code = 0; taken = 0; next_address = BASE; current = NULL;
}
void standin_fail(int code) { next_code = code; }
int standin_retained(int device) { return retained[device]; }
size_t standin_taken(void) { return taken; }
int standin_blocks(int pinned) {
    int n = 0;
    for (int i = 0; i < SLOTS; i++) n += blocks[i].host && blocks[i].pinned == pinned;
    return n;
}
int standin_streams(void) {
    int n = 0;
    for (int i = 0; i < SLOTS; i++) n += streams[i].used;
    return n;
}

static int ready(void) {
    if (!started) return NOT_INITIALIZED;
    if (!current) return INVALID_CONTEXT;
    int code = next_code;
    next_code = 0;
    return code;
}
static struct block *block_of(uint64_t address) {
    for (int i = 0; i < SLOTS; i++)
        if (blocks[i].host && blocks[i].address == address) return &blocks[i];
    return NULL;
}
static char *inside(uint64_t address, size_t size) {
    for (int i = 0; i < SLOTS; i++) {
        struct block *b = &blocks[i];
        if (b->host && !b->pinned && address >= b->address
            && address + size <= b->address + b->size)
            return b->host + (address - b->address);
    }
    return NULL;
}
static int take(size_t size, int pinned, struct block **found) {
    if (size == 0) return INVALID_VALUE;
    if (size > limit - taken) return OUT_OF_MEMORY;
    for (int i = 0; i < SLOTS; i++) {
        if (blocks[i].host) continue;
        char *host = malloc(size);
        memset(host, 0xA5, size);
        blocks[i] = (struct block){pinned ? (uint64_t)(uintptr_t)host : next_address, host, size, pinned};
        next_address += (size + 511) / 256 * 256;
        taken += size;
        *found = &blocks[i];
        return OK;
    }
    return OUT_OF_MEMORY;
}
static int drop(uint64_t address, int pinned) {
    struct block *b = block_of(address);
    if (!b || b->pinned != pinned) return INVALID_VALUE;
    taken -= b->size;
    free(b->host);
    memset(b, 0, sizeof *b);
    return OK;
}
static struct stream *stream_of(void *handle) {
    uintptr_t at = (uintptr_t)handle;
    return at >= 1 && at <= SLOTS && streams[at - 1].used ? &streams[at - 1] : NULL;
}
static int finish(struct stream *s) {
    int code = OK;
    for (int i = 0; i < s->count; i++) {
        struct copy *c = &s->work[i];
        char *device = inside(c->device, c->size);
        if (!device) { code = ILLEGAL_ADDRESS; break; }
        if (c->up) memcpy(device, c->host, c->size); else memcpy(c->host, device, c->size);
    }
    s->count = 0;
    return code;
}
static int queue(void *handle, struct copy c) {
    int code = ready();
    if (code) return code;
    struct stream *s = stream_of(handle);
    if (!s) return INVALID_HANDLE;
    if (s->count == WORK) return OUT_OF_MEMORY;
    s->work[s->count++] = c;
    s->asked = 0;
    return OK;
}

int cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    if (init_code) return init_code;
    if (!devices) return NO_DEVICE;
    started = 1;
    return OK;
}
int cuDriverGetVersion(int *version) { *version = 12060; return OK; }
int cuGetErrorName(int code, const char **text) {
    *text = NULL;
    if (code == INVALID_VALUE) *text = "CUDA_ERROR_INVALID_VALUE";
    else if (code == INVALID_HANDLE) *text = "CUDA_ERROR_INVALID_HANDLE";
    else if (code == ILLEGAL_ADDRESS) *text = "CUDA_ERROR_ILLEGAL_ADDRESS";
    else if (code == 803) *text = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH";
    return *text ? OK : INVALID_VALUE;
}
int cuGetErrorString(int code, const char **text) {
    *text = code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : NULL;
    return *text ? OK : INVALID_VALUE;
}
int cuDeviceGetCount(int *count) {
    *count = devices;
    return started ? OK : NOT_INITIALIZED;
}
int cuDeviceGet(int *device, int index) {
    if (!started) return NOT_INITIALIZED;
    if (index < 0 || index >= devices) return INVALID_DEVICE;
    *device = index;
    return OK;
}
int cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, (size_t)size, "Stand-in %d", device);
    return OK;
}
int cuDeviceTotalMem_v2(size_t *total, int device) { (void)device; *total = limit; return OK; }
int cuDeviceGetAttribute(int *value, int key, int device) {
    switch (key) {
    case 16: *value = 8 + device; return OK;
    case 18: *value = device == 0; return OK;
    case 75: *value = 8; return OK;
    case 76: *value = 7; return OK;
    }
    return INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    if (!started) return NOT_INITIALIZED;
    retained[device]++;
    *context = &retained[device];
    return OK;
}
int cuDevicePrimaryCtxRelease(int device) {
    if (!retained[device]) return INVALID_CONTEXT;
    retained[device]--;
    return OK;
}
int cuCtxSetCurrent(void *context) { current = context; return started ? OK : NOT_INITIALIZED; }
int cuMemGetInfo_v2(size_t *free_, size_t *total) {
    *free_ = limit - taken;
    *total = limit;
    return ready();
}
int cuMemAlloc_v2(uint64_t *pointer, size_t size) {
    struct block *b = NULL;
    int code = ready();
    if (!code) code = take(size, 0, &b);
    if (!code) *pointer = b->address;
    return code;
}
int cuMemFree_v2(uint64_t pointer) { int code = ready(); return code ? code : drop(pointer, 0); }
int cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    struct block *b = NULL;
    int code = ready();
    if (flags > 7) return INVALID_VALUE;
    if (!code) code = take(size, 1, &b);
    if (!code) *pointer = b->host;
    return code;
}
int cuMemFreeHost(void *pointer) {
    int code = ready();
    return code ? code : drop((uint64_t)(uintptr_t)pointer, 1);
}
int cuStreamCreate(void **handle, unsigned flags) {
    int code = ready();
    if (code) return code;
    if (flags > 1) return INVALID_VALUE;
    for (int i = 0; i < SLOTS; i++) {
        if (streams[i].used) continue;
        streams[i].used = 1;
        *handle = (void *)(uintptr_t)(i + 1);
        return OK;
    }
    return OUT_OF_MEMORY;
}
int cuStreamDestroy_v2(void *handle) {
    int code = ready();
    struct stream *s = stream_of(handle);
    if (code || !s) return code ? code : INVALID_HANDLE;
    memset(s, 0, sizeof *s);
    return OK;
}
int cuStreamQuery(void *handle) {
    int code = ready();
    struct stream *s = stream_of(handle);
    if (code || !s) return code ? code : INVALID_HANDLE;
    if (s->count && !s->asked++) return NOT_READY;
    return finish(s);
}
int cuStreamSynchronize(void *handle) {
    int code = ready();
    struct stream *s = stream_of(handle);
    if (code || !s) return code ? code : INVALID_HANDLE;
    return finish(s);
}
int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, void *stream) {
    return queue(stream, (struct copy){(void *)source, target, size, 1});
}
int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t size, void *stream) {
    return queue(stream, (struct copy){target, source, size, 0});
}
