/* Packets: what "struct dp_packet", mbufs and batches are, which differ between
 * Open vSwitch's versions and between builds with and without DPDK.
 *
 * Rust sees slots: an address and a length per packet, one call per burst. */

#include <config.h>

#include "shim.h"

#include <errno.h>
#include <stdlib.h>

#include "packets.h"
#include "util.h"

#ifdef DPDK_NETDEV
#include <rte_malloc.h>
#include <rte_mbuf.h>
#endif

/* Receiving. */

/* Makes packets[index] ready for 'packet', which is new and empty. */
static inline void
stash_put(struct packet_stash *stash, size_t index, struct dp_packet *packet)
{
    stash->packets[index] = packet;
    stash->slots[index] = (struct ovsv_rx_slot) {
        .data = dp_packet_data(packet),
        .room = dp_packet_tailroom(packet),
    };
}

#ifdef DPDK_NETDEV
/* An mbuf comes reset, but for what only Open vSwitch knows of. */
static inline void
stash_put_mbuf(struct packet_stash *stash, size_t index, struct rte_mbuf *mbuf)
{
    struct dp_packet *packet = CONTAINER_OF(mbuf, struct dp_packet, mbuf);

    dp_packet_reset_cutlen(packet);
    packet->packet_type = htonl(PT_ETH);
    stash_put(stash, index, packet);
}

static void
stash_refill_from_pool(struct packet_stash *stash)
{
    struct rte_mempool *mp = stash->source.mp;
    struct rte_mbuf *mbufs[NETDEV_MAX_BURST];

    if (OVS_LIKELY(!rte_pktmbuf_alloc_bulk(mp, mbufs, stash->first))) {
        for (size_t i = 0; i < stash->first; i++) {
            stash_put_mbuf(stash, i, mbufs[i]);
        }
        stash->first = 0;
        return;
    }

    /* Not a burst's worth is left: take what there is. */
    while (stash->first > 0) {
        struct rte_mbuf *mbuf = rte_pktmbuf_alloc(mp);

        if (!mbuf) {
            break;
        }
        stash_put_mbuf(stash, --stash->first, mbuf);
    }
}
#endif

/* Replaces the packets that were handed out, as far as there is memory. */
static void
stash_refill(struct packet_stash *stash)
{
    switch (stash->source.kind) {
    case SOURCE_MALLOC:
        while (stash->first > 0) {
            stash_put(stash, --stash->first,
                      dp_packet_new_with_headroom(stash->source.room,
                                                  PACKET_HEADROOM));
        }
        break;
    case SOURCE_POOL:
#ifdef DPDK_NETDEV
        stash_refill_from_pool(stash);
#endif
        break;
    case SOURCE_HELD:
        break;
    }
}

/* The stash fills on its first use, by the thread that polls it. */
void
packet_stash_init(struct packet_stash *stash,
                  const struct packet_source *source)
{
    stash->source = *source;
    stash->first = NETDEV_MAX_BURST;
}

void
packet_stash_uninit(struct packet_stash *stash)
{
    for (size_t i = stash->first; i < NETDEV_MAX_BURST; i++) {
        dp_packet_delete(stash->packets[i]);
    }
    stash->first = NETDEV_MAX_BURST;
}

#ifdef DPDK_NETDEV
static void
grown_free(void *buffer OVS_UNUSED, void *all)
{
    rte_free(all);
}

/* What belongs to an external buffer beside the packet and its headroom. */
#define GROWN_EXTRA (sizeof(struct rte_mbuf_ext_shared_info) \
                     + 2 * sizeof(uintptr_t))
BUILD_ASSERT_DECL(PACKET_HEADROOM + OVSV_MAX_FRAME + GROWN_EXTRA
                  <= UINT16_MAX);

/* Gives the mbuf of an empty packet a buffer for 'len' bytes from DPDK's heap,
 * which devices can reach as they can its pool. */
static bool
packet_grow_mbuf(struct dp_packet *packet, uint32_t len)
{
    struct rte_mbuf *mbuf = &packet->mbuf;
    uint16_t size = ROUND_UP(PACKET_HEADROOM + len + GROWN_EXTRA
                             - sizeof(uintptr_t), sizeof(uintptr_t));
    void *buffer = rte_malloc(NULL, size, RTE_CACHE_LINE_SIZE);

    if (!buffer) {
        return false;
    }
    struct rte_mbuf_ext_shared_info *shared
        = rte_pktmbuf_ext_shinfo_init_helper(buffer, &size, grown_free,
                                             buffer);
    if (!shared) {
        rte_free(buffer);
        return false;
    }
    if (RTE_MBUF_HAS_EXTBUF(mbuf)) {
        /* It has grown before, and not enough. */
        rte_pktmbuf_detach_extbuf(mbuf);
    }
    rte_pktmbuf_attach_extbuf(mbuf, buffer, rte_malloc_virt2iova(buffer), size,
                              shared);
    rte_pktmbuf_reset_headroom(mbuf);
    return true;
}
#endif

bool
ovsv_host_grow(struct packet_stash *stash, struct ovsv_rx_slot *slot,
               uint32_t len)
{
    size_t index = slot - stash->slots;
    struct dp_packet **packet = &stash->packets[index];

    if (len > OVSV_MAX_FRAME) {
        return false;
    }
    switch (stash->source.kind) {
    case SOURCE_MALLOC:
        dp_packet_delete(*packet);
        *packet = dp_packet_new_with_headroom(len, PACKET_HEADROOM);
        break;
    case SOURCE_POOL:
#ifdef DPDK_NETDEV
        if (!packet_grow_mbuf(*packet, len)) {
            return false;
        }
#endif
        break;
    case SOURCE_HELD:
        return false;
    }
    stash_put(stash, index, *packet);
    return true;
}

/* Receives a burst into 'batch', which is empty.  Returns 0, or EAGAIN if
 * there was nothing.  A guest whose packets there is no memory for keeps them
 * in its ring: nothing is dropped here. */
int
packet_stash_receive(struct packet_stash *stash, const struct ovsv_port *port,
                     const struct ovsv_queue *queue,
                     struct dp_packet_batch *batch, int *qfill)
{
    if (stash->first) {
        stash_refill(stash);
    }

    size_t first = stash->first;
    size_t ready = NETDEV_MAX_BURST - first;
    size_t n = ready ? ovsv.dequeue(port, queue, stash, &stash->slots[first],
                                    ready)
                     : 0;

    if (!n) {
        return EAGAIN;
    }
    for (size_t i = first; i < first + n; i++) {
        const struct ovsv_offload *offload = &stash->slots[i].offload;

        dp_packet_set_size(stash->packets[i], stash->slots[i].len);
        if (OVS_UNLIKELY(offload->flags)) {
            offload_to_packet(stash->packets[i], offload);
        }
        dp_packet_batch_add(batch, stash->packets[i]);
    }
    stash->first += n;

    if (qfill) {
        *qfill = n == NETDEV_MAX_BURST ? ovsv.backlog(port, queue) : 0;
    }
    return 0;
}

/* Sending. */

/* Returns the whole of a segmented packet in one piece, using '*buffer', which
 * the caller frees.  Open vSwitch makes no such packets, but the driver of a
 * physical port may. */
static const void *
packet_flatten(const struct dp_packet *packet, void **buffer)
{
    *buffer = xmalloc(dp_packet_size(packet));
#ifdef DPDK_NETDEV
    return rte_pktmbuf_read(&packet->mbuf, 0, dp_packet_size(packet), *buffer);
#else
    OVS_NOT_REACHED();
#endif
}

static inline bool
packets_are_mbufs(struct dp_packet *const *packets OVS_UNUSED,
                  size_t n OVS_UNUSED)
{
#ifdef DPDK_NETDEV
    for (size_t i = 0; i < n; i++) {
        if (packets[i]->source != DPBUF_DPDK) {
            return false;
        }
    }
    return true;
#else
    return false;
#endif
}

static void
packets_delete(struct dp_packet **packets, size_t n)
{
    if (packets_are_mbufs(packets, n)) {
#ifdef DPDK_NETDEV
        rte_pktmbuf_free_bulk((struct rte_mbuf **) packets, n);
#endif
        return;
    }
    for (size_t i = 0; i < n; i++) {
        dp_packet_delete(packets[i]);
    }
}

static void
packets_send(const struct ovsv_port *port, uint16_t qid, uint32_t mtu,
             struct dp_packet **packets, size_t n)
{
    struct ovsv_tx_slot slots[NETDEV_MAX_BURST];
    void *flat[NETDEV_MAX_BURST];
    size_t n_flat = 0;

    for (size_t i = 0; i < n; i++) {
        slots[i].data = dp_packet_data(packets[i]);
        slots[i].len = dp_packet_size(packets[i]);
        slots[i].offload = OVS_LIKELY(!offload_is_asked(packets[i]))
                           ? (struct ovsv_offload) { 0 }
                           : offload_from_packet(packets[i], mtu);
        if (OVS_UNLIKELY(packet_is_segmented(packets[i]))) {
            slots[i].data = packet_flatten(packets[i], &flat[n_flat++]);
        }
    }
    ovsv.send(port, qid, slots, n);

    while (n_flat > 0) {
        free(flat[--n_flat]);
    }
    packets_delete(packets, n);
}

/* Sends what the guest has room for, and frees all. */
void
packet_batch_send(const struct ovsv_port *port, uint16_t qid, uint32_t mtu,
                  struct dp_packet_batch *batch)
{
    size_t n = dp_packet_batch_size(batch);

    for (size_t i = 0; i < n; i += NETDEV_MAX_BURST) {
        packets_send(port, qid, mtu, &batch->packets[i],
                     MIN(n - i, NETDEV_MAX_BURST));
    }
}
