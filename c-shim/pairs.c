/* Keys and their values, as either side has them. */

#include <config.h>

#include "shim.h"

#include <stdlib.h>

#include "smap.h"
#include "util.h"

/* Returns the 'n' pairs of 'smap', whose strings they share, in an array that
 * the caller frees. */
struct ovsv_option *
pairs_from_smap(const struct smap *smap, size_t *n)
{
    struct ovsv_option *pairs = xcalloc(smap_count(smap), sizeof *pairs);
    const struct smap_node *node;

    *n = 0;
    SMAP_FOR_EACH (node, smap) {
        pairs[(*n)++] = (struct ovsv_option) { node->key, node->value };
    }
    return pairs;
}

/* An ovsv_pair_cb that adds to a "struct smap". */
void
pair_to_smap(void *smap, const char *key, size_t key_len,
             const char *value, size_t value_len)
{
    smap_add_nocopy(smap, xmemdup0(key, key_len), xmemdup0(value, value_len));
}
