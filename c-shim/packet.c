/* Packets: what "struct dp_packet", mbufs and batches are, which differ between
 * Open vSwitch's versions and between builds with and without DPDK.
 *
 * Rust sees slots: an address and a length per packet, one call per burst. */

#include <config.h>

#include "shim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "packets.h"
#include "util.h"

#ifdef DPDK_NETDEV
#include <rte_mbuf.h>
#endif

/* Freeing. */

/* Whether 'packet' is an mbuf of the same pool as 'first' in the state in which
 * pools keep them, so that there is nothing to do but to put it there. */
static inline bool
packet_is_home_ready(const struct dp_packet *packet OVS_UNUSED,
                     const struct dp_packet *first OVS_UNUSED)
{
#ifdef DPDK_NETDEV
    const struct rte_mbuf *mbuf = &packet->mbuf;

    return packet->source == DPBUF_DPDK
           && mbuf->pool == first->mbuf.pool
           && rte_mbuf_refcnt_read(mbuf) == 1
           && mbuf->nb_segs == 1
           && !(mbuf->ol_flags & (RTE_MBUF_F_EXTERNAL | RTE_MBUF_F_INDIRECT));
#else
    return false;
#endif
}

/* Frees packets, in as few goes as it takes. */
static void
packets_delete(struct dp_packet **packets, size_t n,
               bool are_home_ready OVS_UNUSED)
{
#ifdef DPDK_NETDEV
    if (OVS_LIKELY(are_home_ready)) {
        rte_mempool_put_bulk(packets[0]->mbuf.pool, (void **) packets, n);
        return;
    }
#endif
    for (size_t i = 0; i < n;) {
        size_t n_put = packet_heap_put(&packets[i], n - i);

        if (!n_put) {
            dp_packet_delete(packets[i]);
            n_put = 1;
        }
        i += n_put;
    }
}

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
BUILD_ASSERT_DECL(offsetof(struct dp_packet, mbuf) == 0);

/* The mbufs stay as they came home, unread: where the bytes go is the same in
 * all of a pool, and mbuf_arm() does the rest for those that get any. */
static void
stash_refill_from_pool(struct packet_stash *stash)
{
    const struct packet_source *source = &stash->source;
    size_t n = stash->first;

    if (OVS_UNLIKELY(rte_mempool_get_bulk(source->mp,
                                          (void **) stash->packets, n))) {
        /* Not a burst's worth is left: take what there is. */
        for (n = 0; n < stash->first; n++) {
            void **packet = (void **) &stash->packets[stash->first - n - 1];

            if (rte_mempool_get(source->mp, packet)) {
                break;
            }
        }
    }
    stash->first -= n;
    for (size_t i = stash->first; i < stash->first + n; i++) {
        stash->slots[i] = (struct ovsv_rx_slot) {
            .data = (uint8_t *) stash->packets[i] + source->mbuf_data,
            .room = source->mbuf_room,
        };
    }
}

/* What a received frame says of itself, as lies in an mbuf: written at once, for
 * stores of single fields would queue behind those into the guest's memory. */
struct mbuf_frame {
    uint32_t packet_type;
    uint32_t pkt_len;
    uint16_t data_len;
    uint16_t vlan_tci;
    uint32_t rss;
};
#define MBUF_REARM_OFS offsetof(struct rte_mbuf, rearm_data)
#define MBUF_FRAME_OFS offsetof(struct rte_mbuf, rx_descriptor_fields1)
#define ASSERT_MBUF_FRAME(MEMBER, MBUF_MEMBER)                                \
    BUILD_ASSERT_DECL(MBUF_FRAME_OFS + offsetof(struct mbuf_frame, MEMBER)    \
                      == offsetof(struct rte_mbuf, MBUF_MEMBER))
ASSERT_MBUF_FRAME(packet_type, packet_type);
ASSERT_MBUF_FRAME(pkt_len, pkt_len);
ASSERT_MBUF_FRAME(data_len, data_len);
ASSERT_MBUF_FRAME(vlan_tci, vlan_tci);
ASSERT_MBUF_FRAME(rss, hash.rss);

/* Makes an mbuf that came straight out of its pool a packet of 'len' bytes.
 *
 * Whoever freed it left it direct, unshared and in one segment.  The rest of
 * what rte_pktmbuf_reset() does is done here, while writing the length, except
 * for 'tx_offload', which counts only where 'ol_flags' says so. */
static inline void
mbuf_arm(struct dp_packet *packet, uint32_t len)
{
    static const struct rte_mbuf fresh = {
        .data_off = RTE_PKTMBUF_HEADROOM,
        .refcnt = 1,
        .nb_segs = 1,
        .port = RTE_MBUF_PORT_INVALID,
    };
    struct rte_mbuf *mbuf = &packet->mbuf;
    struct mbuf_frame frame = { .pkt_len = len, .data_len = len };

    memcpy((char *) mbuf + MBUF_REARM_OFS, (const char *) &fresh
           + MBUF_REARM_OFS, sizeof(uint64_t));
    mbuf->ol_flags &= RTE_MBUF_F_EXTERNAL;
    memcpy((char *) mbuf + MBUF_FRAME_OFS, &frame, sizeof frame);
    mbuf->vlan_tci_outer = 0;
    dp_packet_reset_cutlen(packet);
    packet->packet_type = htonl(PT_ETH);
}
#endif

/* Replaces the packets that were handed out, as far as there is memory. */
static void
stash_refill(struct packet_stash *stash)
{
    switch (stash->source.kind) {
    case SOURCE_HEAP:
        packet_heap_get(stash->heap, stash->packets, stash->first);
        while (stash->first > 0) {
            stash->first--;
            stash_put(stash, stash->first, stash->packets[stash->first]);
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
    stash->heap = source->kind == SOURCE_HEAP
                  ? packet_heap_open(source->room) : NULL;
    stash->first = NETDEV_MAX_BURST;
}

void
packet_stash_uninit(struct packet_stash *stash)
{
    packets_delete(&stash->packets[stash->first],
                   NETDEV_MAX_BURST - stash->first, false);
    stash->first = NETDEV_MAX_BURST;
    if (stash->heap) {
        packet_heap_close(stash->heap);
    }
}

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
    case SOURCE_HEAP:
        dp_packet_delete(*packet);
        *packet = dp_packet_new_with_headroom(len, PACKET_HEADROOM);
        break;
    case SOURCE_POOL:
#ifdef DPDK_NETDEV
        if (!packet_enlarge(*packet)) {
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

/* The packet that packets[index] has become. */
static inline struct dp_packet *
stash_take(struct packet_stash *stash, size_t index)
{
    const struct ovsv_rx_slot *slot = &stash->slots[index];
    struct dp_packet *packet = stash->packets[index];

#ifdef DPDK_NETDEV
    if (OVS_LIKELY(stash->source.kind == SOURCE_POOL)) {
        mbuf_arm(packet, slot->len);
    } else {
        dp_packet_set_size(packet, slot->len);
    }
#else
    dp_packet_set_size(packet, slot->len);
#endif
    if (OVS_UNLIKELY(slot->offload.flags)) {
        offload_to_packet(packet, &slot->offload);
    }
    return packet;
}

/* Takes those packets out of the 'n' received from packets[first] on that the
 * port refused: bit i of 'refused' is for the i-th.  The others close up, and
 * the refused stay behind them, to be received into again.  Returns how many
 * were not refused. */
static size_t
stash_refuse(struct packet_stash *stash, size_t first, size_t n,
             uint32_t refused)
{
    size_t kept = first;

    for (size_t i = first; i < first + n; i++, refused >>= 1) {
        if (!(refused & 1)) {
            struct ovsv_rx_slot slot = stash->slots[i];
            struct dp_packet *packet = stash->packets[i];

            stash->slots[i] = stash->slots[kept];
            stash->packets[i] = stash->packets[kept];
            stash->slots[kept] = slot;
            stash->packets[kept++] = packet;
        }
    }
    for (size_t i = kept; i < first + n; i++) {
        stash->slots[i].len = 0;
        stash->slots[i].offload = (struct ovsv_offload) { 0 };
    }
    return kept - first;
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
    uint32_t refused = 0;
    size_t n = 0;

    if (OVS_LIKELY(ready)) {
        n = ovsv.dequeue(port, queue, stash, &stash->slots[first], ready,
                         &refused);
    } else if (stash->source.kind == SOURCE_POOL) {
        ovsv.starve(port, queue);
    }

    if (OVS_UNLIKELY(refused)) {
        n = stash_refuse(stash, first, n, refused);
    }
    if (!n) {
        return EAGAIN;
    }
    for (size_t i = 0; i < n; i++) {
        batch->packets[i] = stash_take(stash, first + i);
    }
    batch->count = n;
    stash->first += n;

    if (qfill) {
        *qfill = ovsv.backlog(port, queue);
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

/* Completes 'slot' for a packet that is more than its bytes, in one piece.
 * Returns a buffer to be freed when it has been sent, or NULL. */
static void *
slot_complete(struct ovsv_tx_slot *slot, struct dp_packet *packet,
              uint32_t mtu)
{
    void *buffer = NULL;

    if (offload_is_asked(packet)) {
        slot->offload = offload_from_packet(packet, mtu);
    }
    if (packet_is_segmented(packet)) {
        slot->data = packet_flatten(packet, &buffer);
    }
    return buffer;
}

static void
packets_send(const struct ovsv_port *port, uint16_t qid, uint32_t mtu,
             struct dp_packet **packets, size_t n)
{
    struct ovsv_tx_slot slots[NETDEV_MAX_BURST];
    void *flat[NETDEV_MAX_BURST];
    size_t n_flat = 0;
    bool are_home_ready = true;

    for (size_t i = 0; i < n; i++) {
        struct dp_packet *packet = packets[i];

        slots[i] = (struct ovsv_tx_slot) {
            .data = dp_packet_data(packet),
            .len = dp_packet_size(packet),
        };
        if (OVS_UNLIKELY(offload_is_asked(packet)
                         || packet_is_segmented(packet))) {
            flat[n_flat] = slot_complete(&slots[i], packet, mtu);
            n_flat += flat[n_flat] != NULL;
        }
        are_home_ready = are_home_ready
                         && packet_is_home_ready(packet, packets[0]);
    }
    ovsv.send(port, qid, slots, n, packets);

    while (n_flat > 0) {
        free(flat[--n_flat]);
    }
    packets_delete(packets, n, are_home_ready);
}

uint32_t
ovsv_host_qos_queue(struct dp_packet *const *packets, size_t index)
{
    return packets[index]->md.skb_priority;
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
