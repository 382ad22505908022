/* A port's counters in Open vSwitch's structures. */

#include <config.h>

#include "shim.h"

#include <string.h>

#include "util.h"

/* Members of "struct ovsv_stats" and, by the same name, of netdev's. */
#define VHOST_STATS                                                     \
    VHOST_STAT(rx_packets)              VHOST_STAT(tx_packets)          \
    VHOST_STAT(rx_bytes)                VHOST_STAT(tx_bytes)            \
    VHOST_STAT(rx_dropped)              VHOST_STAT(tx_dropped)          \
    VHOST_STAT(multicast)               VHOST_STAT(tx_multicast_packets) \
    VHOST_STAT(rx_broadcast_packets)    VHOST_STAT(tx_broadcast_packets) \
    VHOST_STAT(rx_1_to_64_packets)      VHOST_STAT(tx_1_to_64_packets)  \
    VHOST_STAT(rx_65_to_127_packets)    VHOST_STAT(tx_65_to_127_packets) \
    VHOST_STAT(rx_128_to_255_packets)   VHOST_STAT(tx_128_to_255_packets) \
    VHOST_STAT(rx_256_to_511_packets)   VHOST_STAT(tx_256_to_511_packets) \
    VHOST_STAT(rx_512_to_1023_packets)  VHOST_STAT(tx_512_to_1023_packets) \
    VHOST_STAT(rx_1024_to_1522_packets) VHOST_STAT(tx_1024_to_1522_packets) \
    VHOST_STAT(rx_1523_to_max_packets)  VHOST_STAT(tx_1523_to_max_packets)

#define VHOST_STAT(NAME) + sizeof(uint64_t)
BUILD_ASSERT_DECL(0 VHOST_STATS == sizeof(struct ovsv_stats));
#undef VHOST_STAT

void
port_get_stats(const struct ovsv_port *port, struct netdev_stats *stats)
{
    struct ovsv_stats known;

    ovsv.port_stats(port, &known);

    /* All ones: not known to this kind of port, not shown to the user. */
    memset(stats, 0xff, sizeof *stats);
#define VHOST_STAT(NAME) stats->NAME = known.NAME;
    VHOST_STATS
#undef VHOST_STAT
}

struct counters {
    struct netdev_custom_stats *stats;
    size_t allocated;
};

static void
take_counter(void *counters_, const char *name, size_t name_len,
             uint64_t value)
{
    struct counters *counters = counters_;
    struct netdev_custom_stats *stats = counters->stats;

    if (stats->size == UINT16_MAX) {
        return;
    }
    if (stats->size >= counters->allocated) {
        stats->counters = x2nrealloc(stats->counters, &counters->allocated,
                                     sizeof *stats->counters);
    }
    struct netdev_custom_counter *counter = &stats->counters[stats->size++];
    size_t n = MIN(name_len, sizeof counter->name - 1);

    memcpy(counter->name, name, n);
    counter->name[n] = '\0';
    counter->value = value;
}

/* Fills '*stats' with counters that the caller frees. */
void
port_get_custom_stats(const struct ovsv_port *port,
                      struct netdev_custom_stats *stats)
{
    struct counters counters = { .stats = stats };

    stats->size = 0;
    stats->counters = NULL;
    ovsv.port_custom_stats(port, take_counter, &counters);
}
