//! The settings that Anypath grew from (S0's `ConnectivityConfig`) keep their names and defaults.

use anypath::Config;
use std::time::Duration;

#[test]
fn the_connectivity_settings_keep_their_names_and_defaults() {
    let config = Config::default();
    for (enabled, key) in [
        (config.enable_mdns(), "enable_mdns"),
        (config.enable_pubsub_discovery(), "enable_pubsub_discovery"),
        (config.enable_dht_discovery(), "enable_dht_discovery"),
        (config.enable_autonat(), "enable_autonat"),
        (config.enable_relay_client(), "enable_relay_client"),
        (config.enable_dcutr(), "enable_dcutr"),
        (config.connect_to_bootstrap(), "connect_to_bootstrap"),
        (config.enable_port_mapping(), "enable_port_mapping"),
    ] {
        assert!(enabled, "{key} is on by default");
    }
    assert!(!config.enable_relay_server());
    assert_eq!(config.max_connections().get(), 1000);
    assert_eq!(config.max_relay_reservations(), 3);
    assert_eq!(config.max_relay_circuits().get(), 256);
    assert_eq!(config.mdns_query_interval(), Duration::from_secs(60));
    assert_eq!(config.pubsub_announce_interval(), Duration::from_secs(10));
    assert_eq!(config.autonat_query_interval(), Duration::from_secs(300));
}
