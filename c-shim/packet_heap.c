/* Packets in a process without DPDK's EAL: pieces of the heap, which a receive
 * queue gets back from whoever is done with them, and uses again.
 *
 * That takes a host whose packets may belong to a provider.  Elsewhere they are
 * ordinary ones, of two allocations each. */

#include <config.h>

#include "shim.h"

#include <stdlib.h>
#include <string.h>

#include "ovs-atomic.h"
#include "util.h"

#ifdef DP_PACKET_HAS_PROVIDED

/* How many a queue keeps.  More are under way only where somebody holds packets
 * back. */
#define KEPT (4 * NETDEV_MAX_BURST)

struct packet_heap {
    /* The queue, and each packet that there is.  The last frees this. */
    atomic_uint refs;
    uint32_t allocated;         /* Bytes of a packet, headroom included. */

    /* Whoever finds it locked does without: no poll thread waits for another. */
    atomic_flag locked;
    bool closed;                /* The queue has gone. */
    size_t n;
    struct dp_packet *kept[KEPT]; /* What was used last is taken first. */
};

struct heap_packet {
    struct packet_heap *heap;
    struct dp_packet_provided provided;
    uint8_t buffer[] OVS_ALIGNED_VAR(CACHE_LINE_SIZE);
};

static inline struct heap_packet *
heap_packet_cast(struct dp_packet *packet)
{
    return CONTAINER_OF(packet, struct heap_packet, provided.packet);
}

static inline bool
heap_trylock(struct packet_heap *heap)
{
    return !atomic_flag_test_and_set_explicit(&heap->locked,
                                              memory_order_acquire);
}

static inline void
heap_unlock(struct packet_heap *heap)
{
    atomic_flag_clear_explicit(&heap->locked, memory_order_release);
}

static void
heap_ref(struct packet_heap *heap)
{
    unsigned int before;

    atomic_add_explicit(&heap->refs, 1, &before, memory_order_relaxed);
}

static void
heap_unref(struct packet_heap *heap)
{
    unsigned int before;

    atomic_sub_explicit(&heap->refs, 1, &before, memory_order_acq_rel);
    if (before == 1) {
        free(heap);
    }
}

static void
heap_packets_free(struct dp_packet **packets, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct heap_packet *packet = heap_packet_cast(packets[i]);
        struct packet_heap *heap = packet->heap;

        free_cacheline(packet);
        heap_unref(heap);
    }
}

/* Keeps packets of 'heap', and frees those that there is no place for. */
static void
heap_put(struct packet_heap *heap, struct dp_packet **packets, size_t n)
{
    size_t n_kept = 0;

    if (OVS_LIKELY(heap_trylock(heap))) {
        if (!heap->closed) {
            n_kept = MIN(n, KEPT - heap->n);
            memcpy(&heap->kept[heap->n], packets, n_kept * sizeof *packets);
            heap->n += n_kept;
        }
        heap_unlock(heap);
    }
    heap_packets_free(packets + n_kept, n - n_kept);
}

/* Open vSwitch is done with a packet, in whatever thread. */
static void
heap_release(struct dp_packet_provided *provided)
{
    struct dp_packet *packet = &provided->packet;

    heap_put(heap_packet_cast(packet)->heap, &packet, 1);
}

static struct dp_packet *
heap_packet_new(struct packet_heap *heap)
{
    struct heap_packet *packet
        = xmalloc_cacheline(sizeof *packet + heap->allocated);

    heap_ref(heap);
    packet->heap = heap;
    packet->provided.release = heap_release;
    packet->provided.base = packet->buffer;
    return &packet->provided.packet;
}

/* For packets of up to 'room' bytes. */
struct packet_heap *
packet_heap_open(uint32_t room)
{
    struct packet_heap *heap = xzalloc(sizeof *heap);

    heap_ref(heap);
    heap->allocated = PACKET_HEADROOM + room;
    return heap;
}

/* Packets that are under way are freed when they come back. */
void
packet_heap_close(struct packet_heap *heap)
{
    while (!heap_trylock(heap)) {
        /* For as long as it takes to copy some pointers. */
    }
    heap->closed = true;
    heap_unlock(heap);

    heap_packets_free(heap->kept, heap->n);
    heap_unref(heap);
}

/* Stores 'n' empty packets in 'packets'. */
void
packet_heap_get(struct packet_heap *heap, struct dp_packet **packets, size_t n)
{
    size_t n_kept = 0;

    if (OVS_LIKELY(heap_trylock(heap))) {
        n_kept = MIN(n, heap->n);
        heap->n -= n_kept;
        memcpy(packets, &heap->kept[heap->n], n_kept * sizeof *packets);
        heap_unlock(heap);
    }
    for (size_t i = 0; i < n; i++) {
        if (i >= n_kept) {
            packets[i] = heap_packet_new(heap);
        }
        dp_packet_use_provided(&heap_packet_cast(packets[i])->provided,
                               heap->allocated, PACKET_HEADROOM);
    }
}

/* The queue that gets this packet back as it is, or NULL. */
static inline struct packet_heap *
heap_of(struct dp_packet *packet)
{
    if (packet->source == DPBUF_PROVIDED) {
        struct heap_packet *mine = heap_packet_cast(packet);

        if (mine->provided.release == heap_release
            && dp_packet_base(packet) == mine->provided.base) {
            return mine->heap;
        }
    }
    return NULL;
}

/* Gives back those of the first of 'n' packets that are of one queue, in one
 * go.  Returns how many. */
size_t
packet_heap_put(struct dp_packet **packets, size_t n)
{
    struct packet_heap *heap = heap_of(packets[0]);
    size_t same;

    if (!heap) {
        return 0;
    }
    for (same = 1; same < n && heap_of(packets[same]) == heap; same++) {
        continue;
    }
    heap_put(heap, packets, same);
    return same;
}

#else /* !DP_PACKET_HAS_PROVIDED */

struct packet_heap {
    uint32_t room;
};

struct packet_heap *
packet_heap_open(uint32_t room)
{
    struct packet_heap *heap = xmalloc(sizeof *heap);

    heap->room = room;
    return heap;
}

void
packet_heap_close(struct packet_heap *heap)
{
    free(heap);
}

void
packet_heap_get(struct packet_heap *heap, struct dp_packet **packets, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        packets[i] = dp_packet_new_with_headroom(heap->room, PACKET_HEADROOM);
    }
}

size_t
packet_heap_put(struct dp_packet **packets OVS_UNUSED, size_t n OVS_UNUSED)
{
    return 0;
}
#endif
