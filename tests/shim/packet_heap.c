/* Packets of the heap, with Open vSwitch's own packets and without a switch.
 * A sanitizer sees what is used after it was freed, and what is never freed. */

#include <config.h>

#include "shim.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>

#define ROOM 2048
/* More than a heap keeps. */
#define MANY 200

static void
delete_all(struct dp_packet **packets, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        dp_packet_delete(packets[i]);
    }
}

static void
what_came_back_last_is_used_first(void)
{
    struct packet_heap *heap = packet_heap_open(ROOM);
    struct dp_packet *packets[2], *again;

    packet_heap_get(heap, packets, 2);
    dp_packet_delete(packets[0]);
    dp_packet_delete(packets[1]);
    packet_heap_get(heap, &again, 1);
    assert(again == packets[1]);
    dp_packet_delete(again);
    packet_heap_close(heap);
}

static void
a_packet_is_new_each_time(void)
{
    struct packet_heap *heap = packet_heap_open(ROOM);
    struct dp_packet *packet;

    for (int i = 0; i < 2; i++) {
        packet_heap_get(heap, &packet, 1);
        assert(!dp_packet_size(packet));
        assert(dp_packet_headroom(packet) == PACKET_HEADROOM);
        assert(dp_packet_tailroom(packet) == ROOM);
        assert(packet->packet_type == htonl(PT_ETH));
        assert(!(*dp_packet_ol_flags_ptr(packet)
                 & DP_PACKET_OL_SUPPORTED_MASK));

        memset(dp_packet_put_uninit(packet, ROOM), 0xff, ROOM);
        dp_packet_push_zeros(packet, PACKET_HEADROOM);
        dp_packet_set_l3(packet, dp_packet_data(packet));
        dp_packet_set_rss_hash(packet, 1);
        packet->packet_type = htonl(PT_IPV4);
        dp_packet_delete(packet);
    }
    packet_heap_close(heap);
}

static void
packets_of_one_heap_go_back_in_one_go(void)
{
    struct packet_heap *heaps[] = { packet_heap_open(ROOM),
                                    packet_heap_open(ROOM) };
    struct dp_packet *packets[6];

    packet_heap_get(heaps[0], packets, 3);
    packet_heap_get(heaps[1], packets + 3, 2);
    packets[5] = dp_packet_new(ROOM);
    assert(packet_heap_put(packets, 6) == 3);
    assert(packet_heap_put(packets + 3, 3) == 2);
    assert(packet_heap_put(packets + 5, 1) == 0);
    dp_packet_delete(packets[5]);
    packet_heap_close(heaps[0]);
    packet_heap_close(heaps[1]);
}

static void
a_packet_that_grew_comes_back_with_the_buffer_it_had(void)
{
    struct packet_heap *heap = packet_heap_open(ROOM);
    struct dp_packet *packet, *again;

    packet_heap_get(heap, &packet, 1);
    dp_packet_push_zeros(packet, PACKET_HEADROOM + 1);
    assert(packet_heap_put(&packet, 1) == 0);
    dp_packet_delete(packet);
    packet_heap_get(heap, &again, 1);
    assert(again == packet);
    assert(dp_packet_headroom(packet) == PACKET_HEADROOM);
    dp_packet_delete(packet);
    packet_heap_close(heap);
}

static void
packets_may_outlive_the_queue(void)
{
    struct packet_heap *heap = packet_heap_open(ROOM);
    struct dp_packet *packets[MANY];

    packet_heap_get(heap, packets, MANY);
    delete_all(packets, MANY / 4);
    packet_heap_close(heap);
    delete_all(packets + MANY / 4, MANY / 4);
    for (size_t i = MANY / 2; i < MANY; ) {
        i += packet_heap_put(packets + i, MANY - i);
    }
}

/* Another thread's packets, which it deletes. */
static struct dp_packet *handed[MANY];

static void *
delete_handed(void *aux OVS_UNUSED)
{
    delete_all(handed, MANY);
    return NULL;
}

static void
packets_may_end_in_another_thread(void)
{
    for (int i = 0; i < 200; i++) {
        struct packet_heap *heap = packet_heap_open(ROOM);
        struct dp_packet *own[NETDEV_MAX_BURST];
        pthread_t thread;

        packet_heap_get(heap, handed, MANY);
        assert(!pthread_create(&thread, NULL, delete_handed, NULL));
        for (int j = 0; j < i; j++) {
            packet_heap_get(heap, own, NETDEV_MAX_BURST);
            assert(packet_heap_put(own, NETDEV_MAX_BURST)
                   == NETDEV_MAX_BURST);
        }
        packet_heap_close(heap);
        assert(!pthread_join(thread, NULL));
    }
}

#define CLAIM(CLAIM) { #CLAIM, CLAIM }

int
main(void)
{
    static const struct {
        const char *name;
        void (*check)(void);
    } claims[] = {
        CLAIM(what_came_back_last_is_used_first),
        CLAIM(a_packet_is_new_each_time),
        CLAIM(packets_of_one_heap_go_back_in_one_go),
        CLAIM(a_packet_that_grew_comes_back_with_the_buffer_it_had),
        CLAIM(packets_may_outlive_the_queue),
        CLAIM(packets_may_end_in_another_thread),
    };

    for (size_t i = 0; i < ARRAY_SIZE(claims); i++) {
        claims[i].check();
        printf("ok %s\n", claims[i].name);
    }
    return 0;
}
