/* Packets: the only file that looks inside "struct dp_packet", mbufs and
 * batches, which differ between Open vSwitch's versions and between builds
 * with and without DPDK.
 *
 * Rust sees slots: an address and a length per packet, one call per burst. */

#include <config.h>

#include "shim.h"

#include <errno.h>
#include <stdlib.h>

#include "packets.h"
#include "util.h"

#ifdef DPDK_NETDEV
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
    size_t n = ready ? ovsv.dequeue(port, queue, &stash->slots[first], ready)
                     : 0;

    if (!n) {
        return EAGAIN;
    }
    for (size_t i = first; i < first + n; i++) {
        dp_packet_set_size(stash->packets[i], stash->slots[i].len);
        dp_packet_batch_add(batch, stash->packets[i]);
    }
    stash->first += n;

    if (qfill) {
        *qfill = n == NETDEV_MAX_BURST ? ovsv.backlog(port, queue) : 0;
    }
    return 0;
}

/* Sending. */

static inline bool
packet_is_segmented(const struct dp_packet *packet OVS_UNUSED)
{
#ifdef DPDK_NETDEV
    return packet->mbuf.nb_segs > 1;
#else
    return false;
#endif
}

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
packets_send(const struct ovsv_port *port, uint16_t qid,
             struct dp_packet **packets, size_t n)
{
    struct ovsv_tx_slot slots[NETDEV_MAX_BURST];
    void *flat[NETDEV_MAX_BURST];
    size_t n_flat = 0;

    for (size_t i = 0; i < n; i++) {
        slots[i].data = dp_packet_data(packets[i]);
        slots[i].len = dp_packet_size(packets[i]);
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
packet_batch_send(const struct ovsv_port *port, uint16_t qid,
                  struct dp_packet_batch *batch)
{
    size_t n = dp_packet_batch_size(batch);

    for (size_t i = 0; i < n; i += NETDEV_MAX_BURST) {
        packets_send(port, qid, &batch->packets[i],
                     MIN(n - i, NETDEV_MAX_BURST));
    }
}
