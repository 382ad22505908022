/* Ingress policing and QoS of the netdev classes.
 *
 * Cast, call: what passes is decided in Rust.  What each callback promises is
 * in netdev-provider.h. */

#include <config.h>

#include "shim.h"

#include <stdio.h>
#include <stdlib.h>

#include "smap.h"
#include "sset.h"
#include "util.h"

int
qos_set_policing(struct netdev *netdev, uint32_t kbits_rate,
                 uint32_t kbits_burst, uint32_t kpkts_rate,
                 uint32_t kpkts_burst)
{
    const struct ovsv_limits limits = {
        .kbits_rate = kbits_rate,
        .kbits_burst = kbits_burst,
        .kpkts_rate = kpkts_rate,
        .kpkts_burst = kpkts_burst,
    };

    return ovsv.port_set_policing(netdev_vhost_port(netdev), &limits);
}

static void
take_type(void *types, const char *type, size_t len)
{
    sset_add_and_free(types, xmemdup0(type, len));
}

int
qos_get_types(const struct netdev *netdev, struct sset *types)
{
    ovsv.port_qos_types(netdev_vhost_port(netdev), take_type, types);
    return 0;
}

int
qos_get(const struct netdev *netdev, const char **typep, struct smap *details)
{
    *typep = ovsv.port_qos(netdev_vhost_port(netdev), pair_to_smap, details);
    return 0;
}

int
qos_set(struct netdev *netdev, const char *type, const struct smap *details)
{
    size_t n;
    struct ovsv_option *pairs = pairs_from_smap(details, &n);
    int error = ovsv.port_set_qos(netdev_vhost_port(netdev), type, pairs, n);

    free(pairs);
    return error;
}

int
qos_get_queue(const struct netdev *netdev, unsigned int queue_id,
              struct smap *details)
{
    struct ovsv_queue_stats stats;

    return ovsv.port_qos_queue(netdev_vhost_port(netdev), queue_id, &stats,
                               pair_to_smap, details);
}

int
qos_set_queue(struct netdev *netdev, unsigned int queue_id,
              const struct smap *details)
{
    size_t n;
    struct ovsv_option *pairs = pairs_from_smap(details, &n);
    int error = ovsv.port_set_qos_queue(netdev_vhost_port(netdev), queue_id,
                                        pairs, n);

    free(pairs);
    return error;
}

int
qos_delete_queue(struct netdev *netdev, unsigned int queue_id)
{
    return ovsv.port_delete_qos_queue(netdev_vhost_port(netdev), queue_id);
}

static void
take_no_pair(void *aux OVS_UNUSED, const char *key OVS_UNUSED,
             size_t key_len OVS_UNUSED, const char *value OVS_UNUSED,
             size_t value_len OVS_UNUSED)
{
}

int
qos_get_queue_stats(const struct netdev *netdev, unsigned int queue_id,
                    struct netdev_queue_stats *stats)
{
    struct ovsv_queue_stats known;
    int error = ovsv.port_qos_queue(netdev_vhost_port(netdev), queue_id,
                                    &known, take_no_pair, NULL);

    if (!error) {
        stats->tx_bytes = known.tx_bytes;
        stats->tx_packets = known.tx_packets;
        stats->tx_errors = known.tx_errors;
        stats->created = known.created;
    }
    return error;
}

/* The queues that there were when a dump began. */
struct queue_dump {
    uint32_t *ids;
    size_t n, allocated;
    size_t next;                /* The first that was not dumped yet. */
};

static void
take_queue_id(void *dump_, uint32_t id)
{
    struct queue_dump *dump = dump_;

    if (dump->n >= dump->allocated) {
        dump->ids = x2nrealloc(dump->ids, &dump->allocated, sizeof *dump->ids);
    }
    dump->ids[dump->n++] = id;
}

int
qos_queue_dump_start(const struct netdev *netdev, void **statep)
{
    struct queue_dump *dump = xzalloc(sizeof *dump);
    int error = ovsv.port_qos_queues(netdev_vhost_port(netdev), take_queue_id,
                                     dump);

    if (error) {
        qos_queue_dump_done(netdev, dump);
        return error;
    }
    *statep = dump;
    return 0;
}

/* Queues that went away since the dump began are passed over. */
int
qos_queue_dump_next(const struct netdev *netdev, void *dump_,
                    unsigned int *queue_id, struct smap *details)
{
    struct queue_dump *dump = dump_;

    while (dump->next < dump->n) {
        *queue_id = dump->ids[dump->next++];
        if (!qos_get_queue(netdev, *queue_id, details)) {
            return 0;
        }
    }
    return EOF;
}

int
qos_queue_dump_done(const struct netdev *netdev OVS_UNUSED, void *dump_)
{
    struct queue_dump *dump = dump_;

    free(dump->ids);
    free(dump);
    return 0;
}
