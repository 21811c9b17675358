use std::{path::PathBuf, time::Duration};

use super::{Config, Flag, LoadError, Origin, Sources, load};
use crate::swarm_key;

/// The one that go-ipfs' fingerprint is known of (libp2p-pnet's test).
const SWARM_KEY: &str = "6189c5cf0b87fb800c1a9feeda73c6ab5e998db48fb9e6a978575c770ceef683";

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn flags_beat_the_environment_and_the_environment_beats_the_file() {
    let (_directory, path) =
        file("max_connections = 1\nmax_relay_reservations = 1\nmemory_capacity = 1");
    let config = load(&Sources {
        file: Some(path),
        file_required: true,
        environment: environment(&[
            ("ANYPATH_MAX_RELAY_RESERVATIONS", "2"),
            ("ANYPATH_MEMORY_CAPACITY", "2"),
            ("HOME", "/"),
        ]),
        flags: vec![Flag {
            flag: "--memory",
            key: "memory_capacity",
            value: "3KiB".to_owned(),
        }],
    })
    .unwrap();
    assert_eq!(config.max_connections().get(), 1);
    assert_eq!(config.max_relay_reservations(), 2);
    assert_eq!(config.memory_capacity(), 3 * 1024);
}

#[test]
fn nothing_given_is_the_default() {
    let config = load(&Sources {
        file: Some("/nonexistent/config.toml".into()),
        ..Sources::default()
    })
    .unwrap();
    assert_eq!(config, Config::default());
}

#[test]
fn a_file_that_the_user_named_must_exist() {
    let error = load(&Sources {
        file: Some("/nonexistent/config.toml".into()),
        file_required: true,
        ..Sources::default()
    })
    .unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/config.toml"),
        "{error}"
    );
}

#[test]
fn an_unknown_key_is_refused_with_the_list_of_known_ones() {
    for sources in [
        {
            let (directory, path) = file("enable_mnds = true");
            std::mem::forget(directory);
            Sources {
                file: Some(path),
                ..Sources::default()
            }
        },
        Sources {
            environment: environment(&[("ANYPATH_ENABLE_MNDS", "true")]),
            ..Sources::default()
        },
    ] {
        let error = load(&sources).unwrap_err();
        assert!(matches!(error, LoadError::UnknownKey { .. }));
        let text = error.to_string();
        assert!(
            text.contains("`enable_mnds`")
                && text.contains("enable_mdns, ")
                && text.contains("relays"),
            "{text}"
        );
    }
}

#[test]
fn an_error_names_key_value_and_origin() {
    let error = load(&Sources {
        environment: environment(&[("ANYPATH_API_PORT", "70000")]),
        ..Sources::default()
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("`api_port`") && text.contains("70000") && text.contains("ANYPATH_API_PORT"),
        "{text}"
    );

    let (_directory, path) = file("mdns_query_interval = \"soon\"");
    let text = load(&Sources {
        file: Some(path.clone()),
        ..Sources::default()
    })
    .unwrap_err()
    .to_string();
    assert!(
        text.contains("`mdns_query_interval`")
            && text.contains("soon")
            && text.contains(&path.display().to_string()),
        "{text}"
    );

    let flag = Flag {
        flag: "--relay",
        key: "relays",
        value: "/ip4/192.0.2.1/tcp/1".to_owned(),
    };
    let error = load(&Sources {
        flags: vec![flag],
        ..Sources::default()
    })
    .unwrap_err();
    assert!(
        matches!(&error, LoadError::Invalid { origin: Origin::Flag("--relay"), key, .. } if key == "relays"),
        "{error}"
    );
}

#[test]
fn lists_are_separated_by_commas_and_times_take_units_or_seconds() {
    let config = load(&Sources {
        environment: environment(&[
            (
                "ANYPATH_BOOTSTRAP_PEERS",
                "/ip4/192.0.2.1/tcp/1, /ip4/192.0.2.2/udp/2/quic-v1",
            ),
            ("ANYPATH_AUTONAT_QUERY_INTERVAL", "5m"),
            ("ANYPATH_MDNS_QUERY_INTERVAL", "60.0"),
            ("ANYPATH_DISK_CAPACITY", "1GiB"),
            ("ANYPATH_DATA_DIR", "/somewhere"),
        ]),
        ..Sources::default()
    })
    .unwrap();
    assert_eq!(config.bootstrap_peers().len(), 2);
    assert_eq!(config.autonat_query_interval(), Duration::from_secs(300));
    assert_eq!(config.mdns_query_interval(), Duration::from_secs(60));
    assert_eq!(config.disk_capacity(), Some(1 << 30));
}

#[test]
fn every_key_can_be_set_from_the_environment() {
    for (key, kind) in super::KEYS {
        if (*key == "ws_port" && !cfg!(feature = "websocket"))
            || (*key == "webrtc_port" && !cfg!(feature = "webrtc"))
        {
            continue;
        }
        use super::Kind::{Addresses, Count, Flag, Path, Port, Role, Secret, Size, Time};
        let text = match kind {
            Flag => "true",
            Count | Port => "7",
            Size => "128MiB",
            Time => "7s",
            Addresses => {
                "/ip4/192.0.2.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
            }
            Path => "/somewhere",
            Secret => SWARM_KEY,
            Role => "master",
        };
        // Of addresses, that one alone takes no peer's.
        let text = match *key {
            "stun_servers" => "/dns4/stun.example.org/udp/3478,/ip4/192.0.2.1/udp/3478",
            _ => text,
        };
        let name = format!("ANYPATH_{}", key.to_ascii_uppercase());
        load(&Sources {
            environment: vec![(name, text.to_owned())],
            ..Sources::default()
        })
        .unwrap();
    }
}

#[test]
fn a_swarm_key_makes_the_node_private_and_keeps_it_off_udp() {
    let text = format!("/key/swarm/psk/1.0.0/\n/base16/\n{SWARM_KEY}\n");
    let from_text = Config::builder().swarm_key(swarm_key::parse(&text).ok());
    let config = from_text.clone().private(false).build().unwrap();
    assert!(config.private() && config.has_swarm_key() && !config.dials_public_bootstrap());
    let quic: Vec<_> = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    let error = from_text.clone().listen_addrs(quic.clone()).build();
    assert!(error.unwrap_err().to_string().contains("TCP or WebSocket"));
    let relay =
        "/ip4/192.0.2.1/udp/1/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    let relays = vec![relay.parse().unwrap()];
    assert!(from_text.clone().relays(relays).build().is_err());
    let tcp = vec!["/ip4/127.0.0.1/tcp/0/ws".parse().unwrap()];
    assert!(from_text.clone().listen_addrs(tcp).build().is_ok());
    let two = from_text.swarm_key_file(Some("swarm.key".into())).build();
    assert!(two.is_err());
    // Only the digits, from the file and the environment.
    let (_directory, path) = file(&format!("swarm_key = \"{SWARM_KEY}\""));
    let sources = Sources {
        file: Some(path),
        ..Sources::default()
    };
    assert_eq!(load(&sources).unwrap().swarm_key(), config.swarm_key());
}

#[cfg(feature = "webrtc")]
#[test]
fn webrtc_has_a_port_of_its_own_and_none_in_a_private_network() {
    let config = Config::builder().webrtc_port(Some(9102));
    assert!(config.clone().build().unwrap().listens_over_webrtc());
    assert!(!Config::default().listens_over_webrtc());
    let listen: Vec<_> = vec!["/ip4/127.0.0.1/udp/0/webrtc-direct".parse().unwrap()];
    let listening = Config::builder().listen_addrs(listen.clone());
    assert!(listening.build().unwrap().listens_over_webrtc());
    for (wrong, says) in [
        (config.clone().p2p_port(Some(9102)), "another port"),
        (config.clone().listen_addrs(listen), "webrtc-direct"),
        (
            config.swarm_key(swarm_key::parse(SWARM_KEY).ok()),
            "private network",
        ),
    ] {
        let error = wrong.build().unwrap_err().to_string();
        assert!(
            error.contains("webrtc_port") && error.contains(says),
            "{error}"
        );
    }
}

#[test]
fn a_swarm_key_is_shown_by_no_error_and_no_debug_text() {
    let config = Config::builder().swarm_key(swarm_key::parse(SWARM_KEY).ok());
    assert!(!format!("{:?}", config.build().unwrap()).contains("6189c5"));
    for wrong in [format!("{SWARM_KEY}0"), SWARM_KEY.replace('6', "g")] {
        let error = load(&Sources {
            environment: environment(&[("ANYPATH_SWARM_KEY", &wrong)]),
            ..Sources::default()
        });
        let text = error.unwrap_err().to_string();
        assert!(!text.contains("189c5cf0b87"), "{text}");
        assert!(text.contains("64 hexadecimal digits"), "{text}");
    }
}

#[test]
fn a_private_node_stays_off_the_public_network_whatever_else_is_set() {
    let config = Config::builder()
        .private(true)
        .connect_to_bootstrap(true)
        .enable_dht_discovery(true)
        .build()
        .unwrap();
    assert!(!config.dials_public_bootstrap());
    assert!(!config.joins_public_dht());
}

#[test]
fn a_value_out_of_range_does_not_build() {
    assert!(
        Config::builder()
            .autonat_query_interval(Duration::ZERO)
            .build()
            .is_err()
    );
    assert!(Config::builder().disk_capacity(Some(1)).build().is_err());
    assert!(
        Config::builder()
            .cold_dir(Some("cold".into()))
            .cold_capacity(Some(1))
            .build()
            .is_err()
    );
    assert!(
        Config::builder()
            .cold_dir(Some("cold".into()))
            .cold_capacity(Some(1 << 30))
            .build()
            .is_ok()
    );
    assert!(
        Config::builder()
            .max_relay_reservations(65)
            .build()
            .is_err()
    );
    assert!(toml::from_str::<Config>("max_connections = 0").is_err());
    assert!(toml::from_str::<Config>("role = \"king\"").is_err());
    assert!(toml::from_str::<Config>("upload_limit = 0").is_err());
}
