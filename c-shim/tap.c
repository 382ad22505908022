/* ovs-appctl vhost-user/pcap and vhost-user/trace: for those who look at the
 * packets of a port. */

#include <config.h>

#include "shim.h"

#include "dirs.h"
#include "openvswitch/dynamic-string.h"
#include "unixctl.h"
#include "util.h"

/* A command for one port or, where it is only asked, for each. */
struct order {
    const char **words;
    size_t n_words;
    bool json;
    bool done;                  /* By every port so far. */
    size_t n_ports;
    struct ds reply;
};

static void
put_text(void *text, const char *s, size_t len)
{
    ds_put_buffer(text, s, len);
}

static void
order_cb(struct ovsv_port *port, void *order_)
{
    struct order *order = order_;

    if (order->n_ports++) {
        ds_put_cstr(&order->reply, order->json ? ",\n " : "\n");
    }
    order->done &= ovsv.port_tap(port, order->words, order->n_words,
                                 ovs_logdir(), order->json, put_text,
                                 &order->reply);
}

/* "start PORT option...", "stop PORT", or "[PORT]"; and "--json" anywhere. */
static void
tap(struct unixctl_conn *conn, int argc, const char *argv[], void *tool)
{
    struct order order = {
        .words = xmalloc((argc + 2) * sizeof *order.words),
        .done = true,
        .reply = DS_EMPTY_INITIALIZER,
    };
    const char *port = NULL, *verb = NULL;

    order.words[order.n_words++] = tool;
    order.n_words++;            /* The verb. */
    for (int i = 1; i < argc; i++) {
        /* Anything else may be a port's name. */
        bool may_be_verb = !verb && !port && i + 1 < argc;

        if (!strcmp(argv[i], "--json")) {
            order.json = true;
        } else if (may_be_verb && (!strcmp(argv[i], "start")
                                   || !strcmp(argv[i], "stop"))) {
            verb = argv[i];
        } else if (!port) {
            port = argv[i];
        } else {
            order.words[order.n_words++] = argv[i];
        }
    }
    order.words[1] = verb ? verb : "show";
    if (verb && !port) {
        unixctl_command_reply_error(conn, "the name of a port is missing");
    } else if (!netdev_vhost_each_port(port, order_cb, &order) && port) {
        unixctl_command_reply_error(conn, "no such vhost-user port");
    } else if (!order.done) {
        unixctl_command_reply_error(conn, ds_cstr(&order.reply));
    } else if (order.json) {
        char *array = xasprintf("[%s]\n", ds_cstr(&order.reply));

        unixctl_command_reply(conn, array);
        free(array);
    } else {
        unixctl_command_reply(conn, ds_cstr(&order.reply));
    }
    ds_destroy(&order.reply);
    free(order.words);
}

void
tap_register(void)
{
    static char pcap[] = "pcap", trace[] = "trace";

    unixctl_command_register("vhost-user/pcap",
                             "[--json] [port] | start port [file] "
                             "[option=value]... | stop port",
                             0, 12, tap, pcap);
    unixctl_command_register("vhost-user/trace",
                             "[--json] [port] | start port "
                             "[option=value]... | stop port",
                             0, 8, tap, trace);
}
