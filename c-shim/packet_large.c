/* Buffers for frames of up to 64 KiB, which a guest leaves to others to cut up,
 * in a process with DPDK's EAL.
 *
 * They come from DPDK's heap, which devices can reach as they can a pool.  That
 * clears a buffer when it is given back, and returns a huge page to the system
 * with the last buffer in it, either of which costs more than moving a frame.
 * So some are kept: what was given back last, and is near still, is taken
 * first. */

#include <config.h>

#include "shim.h"

#ifdef DPDK_NETDEV

#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_spinlock.h>

#include "util.h"

/* What a buffer begins with, in a line of its own. */
struct large {
    struct rte_mbuf_ext_shared_info shared;
    rte_iova_t iova;            /* Of 'room'. */
    unsigned int node;          /* Where its owner wanted it. */
} __rte_cache_aligned;

#define LARGE_ROOM (PACKET_HEADROOM + OVSV_MAX_FRAME)
BUILD_ASSERT_DECL(LARGE_ROOM <= UINT16_MAX);

/* At most this many per NUMA node, 4 MiB: two bursts of them. */
#define KEPT (2 * NETDEV_MAX_BURST)

/* Whoever finds a lock taken does without: nobody waits here. */
static struct kept {
    rte_spinlock_t lock;        /* 0: free. */
    unsigned int n;
    struct large *buffers[KEPT];
} __rte_cache_aligned all_kept[RTE_MAX_NUMA_NODES];

static struct large *
large_take(unsigned int node)
{
    struct kept *kept = &all_kept[node];
    struct large *large = NULL;

    if (rte_spinlock_trylock(&kept->lock)) {
        if (kept->n) {
            large = kept->buffers[--kept->n];
        }
        rte_spinlock_unlock(&kept->lock);
    }
    return large;
}

/* The last mbuf that had it is free.  On any thread. */
static void
large_free(void *room OVS_UNUSED, void *large_)
{
    struct large *large = large_;
    struct kept *kept = &all_kept[large->node];
    bool is_kept = false;

    if (rte_spinlock_trylock(&kept->lock)) {
        if (kept->n < KEPT) {
            kept->buffers[kept->n++] = large;
            is_kept = true;
        }
        rte_spinlock_unlock(&kept->lock);
    }
    if (!is_kept) {
        rte_free(large);
    }
}

static struct large *
large_alloc(unsigned int node)
{
    struct large *large = large_take(node);

    if (!large) {
        large = rte_malloc(NULL, sizeof *large + LARGE_ROOM,
                           RTE_CACHE_LINE_SIZE);
        if (!large) {
            return NULL;
        }
        large->iova = rte_malloc_virt2iova(large) + sizeof *large;
        large->node = node;
        large->shared.free_cb = large_free;
        large->shared.fcb_opaque = large;
    }
    rte_mbuf_ext_refcnt_set(&large->shared, 1);
    return large;
}

/* Gives the mbuf of an empty packet a buffer for OVSV_MAX_FRAME bytes. */
bool
packet_enlarge(struct dp_packet *packet)
{
    struct rte_mbuf *mbuf = &packet->mbuf;
    unsigned int node = rte_socket_id();
    struct large *large = large_alloc(node < RTE_MAX_NUMA_NODES ? node : 0);

    if (!large) {
        return false;
    }
    rte_pktmbuf_attach_extbuf(mbuf, large + 1, large->iova, LARGE_ROOM,
                              &large->shared);
    rte_pktmbuf_reset_headroom(mbuf);
    /* It is as its last owner left it, whose length would take from its room. */
    dp_packet_set_size(packet, 0);
    return true;
}
#endif
