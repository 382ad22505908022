/* Where received packets come from.
 *
 * Where DPDK's EAL runs they are mbufs of the plugin's own pools
 * (packet_pool.c).  Elsewhere they come from the heap. */

#include <config.h>

#include "shim.h"

#include <errno.h>

#include "dpdk.h"
#include "packets.h"
#include "util.h"

#ifdef DPDK_NETDEV
#include <rte_errno.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#endif

/* Bytes of a frame with MTU 'mtu', rounded so that MTUs share pools: header,
 * two VLAN tags and a CRC that a guest does not send, as stock counts. */
uint32_t
packet_room(uint32_t mtu)
{
    return ROUND_UP(mtu + ETH_HEADER_LEN + 4 + 2 * VLAN_HEADER_LEN, 1024);
}

void
packet_source_release(struct packet_source *source)
{
#ifdef DPDK_NETDEV
    if (source->kind == SOURCE_POOL) {
        packet_pool_put(source->pool, source->share);
    }
#endif
    *source = (struct packet_source) { .kind = SOURCE_HELD };
}

#ifdef DPDK_NETDEV
/* Moves '*source' to a pool fit for 'topology', if it is not in one. */
static void
packet_source_use_pool(struct packet_source *source, const char *port_name,
                       const struct ovsv_topology *topology)
{
    uint32_t room = packet_pool_room(topology->mtu, topology->numa);
    int share = topology->n_rxq * PACKET_POOL_SHARE;
    bool pooled = source->kind == SOURCE_POOL && source->room == room;
    int error = 0;

    if (pooled && (!topology->attached
                   || (source->share == share
                       && source->numa == topology->numa))) {
        return;
    }
    if (!topology->attached) {
        /* No guest, no packets: no memory. */
        packet_source_release(source);
        return;
    }

    struct packet_source new = { .kind = SOURCE_POOL, .room = room,
                                 .numa = topology->numa };
    new.pool = packet_pool_get(port_name, room, topology->numa, share,
                               &new.mp, &error);
    if (new.pool) {
        new.mbuf_data = sizeof(struct rte_mbuf)
                        + rte_pktmbuf_priv_size(new.mp)
                        + RTE_PKTMBUF_HEADROOM;
        new.mbuf_room = rte_pktmbuf_data_room_size(new.mp)
                        - RTE_PKTMBUF_HEADROOM;
        new.share = share;
    } else {
        shim_log(VLL_ERR, "Failed to create memory pool for netdev %s, with "
                 "MTU %"PRIu32" on socket %d: %s", port_name, topology->mtu,
                 topology->numa, rte_strerror(error));
        new = (struct packet_source) { .kind = SOURCE_HELD,
                                       .exhausted = true };
    }
    packet_source_release(source);
    *source = new;
}
#endif

/* Makes '*source' the best there is for a port of this topology.  Main thread,
 * with none of the port's stashes in existence. */
void
packet_source_configure(struct packet_source *source,
                        const char *port_name OVS_UNUSED,
                        const struct ovsv_topology *topology)
{
#ifdef DPDK_NETDEV
    if (dpdk_available()) {
        packet_source_use_pool(source, port_name, topology);
        return;
    }
#endif
    *source = (struct packet_source) { .kind = SOURCE_HEAP,
                                       .room = packet_room(topology->mtu) };
}

/* Whether packet_source_configure() would now find something better: EAL came
 * up, or a guest came for whom there is no pool yet.  A lack of memory is not
 * tried again before the next change of configuration. */
bool
packet_source_is_stale(const struct packet_source *source, bool carrier)
{
    return dpdk_available()
           && (source->kind == SOURCE_HEAP
               || (source->kind == SOURCE_HELD && carrier
                   && !source->exhausted));
}

/* Tells 'stream' of the pool of '*source', in the words of netdev-dpdk.  Main
 * thread.  Returns 0, or ENODATA if there is none. */
int
packet_source_dump(const struct packet_source *source OVS_UNUSED,
                   FILE *stream OVS_UNUSED)
{
#ifdef DPDK_NETDEV
    if (source->kind == SOURCE_POOL) {
        rte_mempool_dump(stream, source->mp);
        fprintf(stream, "    count: avail (%u), in use (%u)\n",
                rte_mempool_avail_count(source->mp),
                rte_mempool_in_use_count(source->mp));
        return 0;
    }
#endif
    return ENODATA;
}
