use super::*;

#[test]
fn defaults_build_and_equal_the_default() {
    assert_eq!(Config::builder().build(), Ok(Config::default()));
}

#[test]
fn values_that_cannot_work_are_refused() {
    let second = Duration::from_secs(1);
    let refused = |builder: ConfigBuilder| builder.build().unwrap_err();
    assert_eq!(
        refused(Config::builder().topics([""])),
        ConfigError::Topic(String::new())
    );
    assert_eq!(
        refused(Config::builder().topics((0..101).map(|n| n.to_string()))),
        ConfigError::TooManyTopics(101)
    );
    assert_eq!(
        refused(Config::builder().announce_interval(second / 2)),
        ConfigError::AnnounceInterval(second / 2)
    );
    assert_eq!(
        refused(Config::builder().announce_interval(second).peer_ttl(second)),
        ConfigError::PeerTtl {
            ttl: second,
            interval: second
        }
    );
    assert_eq!(
        refused(Config::builder().max_peers(0)),
        ConfigError::Zero("max_peers")
    );
}

#[test]
fn serde_reads_the_fields_and_refuses_unknown_ones() {
    let config: Config =
        toml::from_str("topics = ['a', 'b']\nannounce_interval = '5s'\nlisten_only = true")
            .unwrap();
    assert_eq!(config.topics().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(config.announce_interval(), Duration::from_secs(5));
    assert!(config.listen_only());
    assert!(toml::from_str::<Config>("interval = '5s'").is_err());
}

#[test]
fn a_rendezvous_string_is_a_topic() {
    for (name, topic) in [
        ("my-app", "my-app._peer-discovery._p2p._pubsub"),
        ("universal-connectivity", UNIVERSAL_CONNECTIVITY_TOPIC),
        (UNIVERSAL_CONNECTIVITY_TOPIC, UNIVERSAL_CONNECTIVITY_TOPIC),
        (DEFAULT_TOPIC, DEFAULT_TOPIC),
        ("ipfs-kit/discovery/ipfs-kit", "ipfs-kit/discovery/ipfs-kit"),
    ] {
        assert_eq!(rendezvous_topic(name), topic);
    }
}

#[test]
fn services_and_auto_connect_are_read_and_checked() {
    let config: Config = toml::from_str(
        "services = ['relay', 'content']\nnamespace = 'room'\n[auto_connect]\npeers = 3\nbackoff = '1s'",
    )
    .unwrap();
    assert_eq!(
        config.services().collect::<Vec<_>>(),
        [Service::Content, Service::Relay]
    );
    let auto_connect = config.auto_connect().unwrap();
    assert_eq!((auto_connect.peers, auto_connect.pending), (3, 4));
    let refused = |builder: ConfigBuilder| builder.build().unwrap_err();
    let none = AutoConnect {
        peers: 0,
        ..AutoConnect::default()
    };
    assert_eq!(
        refused(Config::builder().auto_connect(Some(none))),
        ConfigError::Zero("auto_connect.peers")
    );
    assert_eq!(
        refused(Config::builder().stale_after_percent(119)),
        ConfigError::StaleAfter(119)
    );
    assert_eq!(
        refused(Config::builder().namespace("")),
        ConfigError::Namespace(String::new())
    );
    assert_eq!(
        refused(Config::builder().max_content_per_peer(65)),
        ConfigError::Content(65)
    );
    let topics = (0..99).map(|n| n.to_string());
    assert_eq!(
        refused(Config::builder().topics(topics).services(Service::ALL)),
        ConfigError::TooManyTopics(102)
    );
}
