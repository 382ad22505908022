//! A vhost-user port: configuration, life cycle, control thread.
