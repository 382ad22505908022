/* Open vSwitch's services for Rust, and the plugin's way into Open vSwitch:
 * descriptor, initialisation, ovs-appctl commands. */

#include <config.h>

#include "shim.h"

#include <errno.h>
#include <limits.h>

#include "connectivity.h"
#include "coverage.h"
#include "dirs.h"
#include "openvswitch/dynamic-string.h"
#include "fatal-signal.h"
#include "netdev-plugin.h"
#include "seq.h"
#include "smap.h"
#include "unixctl.h"
#include "util.h"

VLOG_DEFINE_THIS_MODULE(netdev_vhost);

COVERAGE_DEFINE(vhost_tx_contention);

struct ovsv_entries ovsv;

/* Services. */

static enum vlog_level
vlog_level(enum ovsv_level level)
{
    switch (level) {
    case OVSV_ERR: return VLL_ERR;
    case OVSV_WARN: return VLL_WARN;
    case OVSV_INFO: return VLL_INFO;
    case OVSV_DBG: default: return VLL_DBG;
    }
}

void
ovsv_host_log(enum ovsv_level level, const char *line, size_t len)
{
    shim_log(vlog_level(level), "%.*s", (int) MIN(len, INT_MAX), line);
}

bool
ovsv_host_log_enabled(enum ovsv_level level)
{
    return vlog_is_enabled(&this_module, vlog_level(level));
}

void
shim_log(enum vlog_level level, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (vlog_is_enabled(&this_module, level)) {
        vlog_valist(&this_module, level, format, args);
    }
    va_end(args);
}

void
ovsv_host_thread_name(const char *name, size_t len)
{
    char *terminated = xmemdup0(name, len);

    set_subprogram_name(terminated);
    free(terminated);
}

void
ovsv_host_changed(struct netdev *netdev)
{
    /* This wakes main first and counts the change of 'netdev' second.  Main on
     * another core, or on this one, may look in between, find no change, and
     * sleep over it: wake it once more. */
    netdev_change_seq_changed(netdev);
    seq_change(connectivity_seq_get());
}

void
ovsv_host_request_reconfigure(struct netdev *netdev)
{
    netdev_request_reconfigure(netdev);
}

void
ovsv_host_unlink_at_exit(const char *path)
{
    fatal_signal_add_file_to_unlink(path);
}

void
ovsv_host_keep_at_exit(const char *path)
{
    fatal_signal_remove_file_to_unlink(path);
}

void
ovsv_host_tx_contended(void)
{
    COVERAGE_INC(vhost_tx_contention);
}

/* ovs-appctl vhost-user/show and its like. */

/* What one of these commands tells. */
struct command {
    enum ovsv_topic topic;
    bool one_port;              /* Of one port, which must be named. */
    bool has_word;              /* A word may follow the port's name. */
};

static struct command show = { .topic = OVSV_SHOW };
static struct command events = { .topic = OVSV_EVENTS };
static struct command stats = { .topic = OVSV_STATS };
static struct command latency = { .topic = OVSV_LATENCY, .has_word = true };
static struct command ring_dump = {
    .topic = OVSV_RINGS, .one_port = true, .has_word = true,
};

struct description {
    const struct command *command;
    const char *word;
    bool json;
    size_t n_ports;
    bool refused;               /* 'text' says why. */
    struct ds text;
};

static void
put_text(void *text, const char *s, size_t len)
{
    ds_put_buffer(text, s, len);
}

static void
describe_cb(struct ovsv_port *port, void *description_)
{
    struct description *description = description_;

    if (description->refused) {
        return;
    }
    if (description->n_ports++) {
        ds_put_cstr(&description->text, description->json ? ",\n " : "\n");
    }

    struct ds text = DS_EMPTY_INITIALIZER;

    if (!ovsv.port_describe(port, description->command->topic,
                            description->word, description->json, put_text,
                            &text)) {
        description->refused = true;
        ds_clear(&description->text);
    }
    ds_put_buffer(&description->text, ds_cstr(&text), text.length);
    ds_destroy(&text);
}

/* Describes one port, or all.  'command' is a struct command. */
static void
describe(struct unixctl_conn *conn, int argc, const char *argv[],
         void *command_)
{
    const struct command *command = command_;
    struct description description = {
        .command = command,
        .text = DS_EMPTY_INITIALIZER,
    };
    const char *port = NULL;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--json")) {
            description.json = true;
        } else if (!port) {
            port = argv[i];
        } else if (command->has_word && !description.word) {
            description.word = argv[i];
        } else {
            unixctl_command_reply_error(conn, command->has_word
                                        ? "too many arguments"
                                        : "more than one port");
            return;
        }
    }
    if (command->one_port && !port) {
        unixctl_command_reply_error(conn, "the name of a port is missing");
        return;
    }
    if (description.json) {
        ds_put_char(&description.text, '[');
    }
    if (!netdev_vhost_each_port(port, describe_cb, &description) && port) {
        ds_clear(&description.text);
        ds_put_cstr(&description.text, "no such vhost-user port");
        description.refused = true;
    }
    if (description.refused) {
        unixctl_command_reply_error(conn, ds_cstr(&description.text));
    } else {
        if (description.json) {
            ds_put_cstr(&description.text, "]\n");
        }
        unixctl_command_reply(conn, ds_cstr(&description.text));
    }
    ds_destroy(&description.text);
}

static void
reset_stats_cb(struct ovsv_port *port, void *aux OVS_UNUSED)
{
    ovsv.port_reset_stats(port);
}

static void
reset_stats(struct unixctl_conn *conn, int argc, const char *argv[],
            void *aux OVS_UNUSED)
{
    const char *port = argc > 1 ? argv[1] : NULL;

    if (!netdev_vhost_each_port(port, reset_stats_cb, NULL) && port) {
        unixctl_command_reply_error(conn, "no such vhost-user port");
        return;
    }
    unixctl_command_reply(conn, NULL);
}

/* ovs-appctl vhost-user/inject-panic, in builds that can. */

static const struct {
    const char *name;
    enum ovsv_site site;
} sites[] = {
    { "dequeue", OVSV_DEQUEUE },
    { "enqueue", OVSV_ENQUEUE },
    { "control", OVSV_CONTROL },
};

static void
inject_panic_cb(struct ovsv_port *port, void *site)
{
    ovsv.port_inject_panic(port, *(const enum ovsv_site *) site);
}

static void
inject_panic(struct unixctl_conn *conn, int argc OVS_UNUSED,
             const char *argv[], void *aux OVS_UNUSED)
{
    for (size_t i = 0; i < ARRAY_SIZE(sites); i++) {
        if (!strcmp(argv[2], sites[i].name)) {
            enum ovsv_site site = sites[i].site;

            if (netdev_vhost_each_port(argv[1], inject_panic_cb, &site)) {
                unixctl_command_reply(conn, NULL);
            } else {
                unixctl_command_reply_error(conn, "no such vhost-user port");
            }
            return;
        }
    }
    unixctl_command_reply_error(conn, "not one of dequeue, enqueue, control");
}

/* Registration. */

/* Called by Open vSwitch once it has daemonized and read its configuration.
 * Both types come from here, or neither. */
static int
plugin_init(const struct smap *other_config)
{
    size_t n;
    struct ovsv_option *options = pairs_from_smap(other_config, &n);
    const struct ovsv_config config = {
        .rundir = ovs_rundir(),
        .other_config = options,
        .n_other_config = n,
        .tso = smap_get_bool(other_config, "userspace-tso-enable", false),
        .iommu = smap_get_bool(other_config, "vhost-iommu-support", false),
        .postcopy = smap_get_bool(other_config, "vhost-postcopy-support",
                                  false),
        .memory_locked = memory_locked(),
    };
    int error = ovsv.init(&config);

    free(options);
    if (error) {
        return error;
    }
    packet_pools_init(other_config);

    unixctl_command_register("vhost-user/show", "[--json] [port]", 0, 2,
                             describe, &show);
    unixctl_command_register("vhost-user/events", "[--json] [port]", 0, 2,
                             describe, &events);
    unixctl_command_register("vhost-user/stats", "[--json] [port]", 0, 2,
                             describe, &stats);
    unixctl_command_register("vhost-user/reset-stats", "[port]", 0, 1,
                             reset_stats, NULL);
    unixctl_command_register("vhost-user/latency",
                             "[--json] [port [on|off]]", 0, 3,
                             describe, &latency);
    unixctl_command_register("vhost-user/ring-dump",
                             "[--json] port [vring]", 1, 3,
                             describe, &ring_dump);
    tap_register();
    if (ovsv.port_inject_panic) {
        unixctl_command_register("vhost-user/inject-panic",
                                 "port dequeue|enqueue|control", 2, 2,
                                 inject_panic, NULL);
    }
    return netdev_vhost_register();
}

const void *
ovsv_plugin(const struct ovsv_entries *entries)
{
    static const struct netdev_plugin plugin = {
        .abi = NETDEV_PLUGIN_ABI_INITIALIZER,
        .name = "ovs-vhost",
        .version = OVS_VHOST_VERSION,
        .init = plugin_init,
    };

    ovsv = *entries;
    return &plugin;
}
