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
