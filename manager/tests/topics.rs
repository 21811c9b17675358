//! Real nodes on loopback that publish and subscribe.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and brings its own runtime"
)]

#[expect(dead_code, reason = "the other test of nodes needs all of it")]
mod common;

use std::time::Duration;

use anypath::{Message, PublishError, SubscribeError, Subscription};
use common::{Host, SOON, TCP, alone, tokio_executor};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::{interval, timeout};

/// What the seed's task queue tells its workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Task {
    task_cid: String,
    timestamp: f64,
}

fn task(n: u32) -> Task {
    Task {
        task_cid: format!("bafy{n}"),
        timestamp: f64::from(n),
    }
}

async fn start() -> Host {
    let config = alone(&[TCP]).enable_pubsub_discovery(true);
    Host::start(config, tokio_executor()).await
}

async fn connect(from: &Host, to: &Host) {
    let address = to.addresses().remove(0);
    timeout(SOON, from.node.connect(address))
        .await
        .unwrap()
        .unwrap();
}

/// Publishes until one who listens is there: gossipsub tells nobody when that is.
async fn publish(host: &Host, topic: &str, value: &impl Serialize) {
    let mut again = interval(Duration::from_millis(20));
    let published = async {
        loop {
            match host.node.publish_json(topic, value).await {
                Ok(()) => return,
                Err(PublishError::NobodyListens) => again.tick().await,
                Err(error) => panic!("{error}"),
            };
        }
    };
    timeout(SOON, published).await.unwrap();
}

async fn next(subscription: &mut Subscription) -> Message {
    timeout(SOON, subscription.next()).await.unwrap().unwrap()
}

/// The one in the middle passes on, and listens itself; the ends are not connected.
#[tokio::test(flavor = "multi_thread")]
async fn json_on_a_topic_reaches_all_who_are_subscribed_with_the_name_of_its_publisher() {
    let (a, hub, b) = (start().await, start().await, start().await);
    let topic = "task_queue";
    let mut at_hub = hub.node.subscribe(topic).await.unwrap();
    let mut at_b = b.node.subscribe(topic).await.unwrap();
    let mut again_at_b = b.node.subscribe(topic).await.unwrap();
    assert_eq!(at_b.topic(), topic);
    connect(&b, &hub).await;
    connect(&a, &hub).await;
    // Until the hub has taken the other one into its mesh, which nobody is told.
    let first = timeout(SOON, async {
        let mut n = 0;
        loop {
            n += 1;
            publish(&a, topic, &task(n)).await;
            if let Ok(message) = timeout(Duration::from_millis(50), at_b.next()).await {
                return message.unwrap();
            }
        }
    });
    let first = first.await.unwrap();
    assert_eq!(first.from, a.node.peer_id());
    let first: Task = first.json().unwrap();
    let last = task(1_000_000);
    publish(&a, topic, &last).await;
    for subscription in [&mut at_hub, &mut at_b, &mut again_at_b] {
        let mut before = 0.0;
        loop {
            let message = next(subscription).await;
            assert_eq!(message.from, a.node.peer_id());
            let task: Task = message.json().unwrap();
            assert!(task.timestamp > before, "in order, and once");
            before = task.timestamp;
            if task == last {
                break;
            }
        }
        assert_eq!(subscription.missed(), 0);
    }
    assert!(first.timestamp >= 1.0);
    // Something else than JSON is a message too, and says what it is not.
    a.node.publish(topic, &b"\xff\xfe"[..]).await.unwrap();
    let message = next(&mut at_b).await;
    assert_eq!(&message.data[..], b"\xff\xfe");
    assert!(message.json::<Task>().is_err());
    for host in [a, hub, b] {
        host.node.shutdown().await;
    }
    assert!(timeout(SOON, at_b.next()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drops_the_subscription_leaves_the_topic() {
    let (a, b) = (start().await, start().await);
    let first = b.node.subscribe("news").await.unwrap();
    let second = b.node.subscribe("news").await.unwrap();
    connect(&a, &b).await;
    publish(&a, "news", &1).await;
    drop(first);
    a.node.publish("news", "2").await.unwrap();
    drop(second);
    let mut again = interval(Duration::from_millis(20));
    let left = async {
        while a.node.publish("news", "3").await.is_ok() {
            again.tick().await;
        }
    };
    timeout(SOON, left).await.unwrap();
    for host in [a, b] {
        host.node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_loses_the_oldest_messages_and_is_told_how_many() {
    const MESSAGES: u32 = 400;
    let (a, b) = (start().await, start().await);
    let mut slow = b.node.subscribe("news").await.unwrap();
    let mut quick = b.node.subscribe("news").await.unwrap();
    connect(&a, &b).await;
    for n in 0..MESSAGES {
        publish(&a, "news", &n).await;
        assert_eq!(next(&mut quick).await.json::<u32>().unwrap(), n);
    }
    let oldest: u32 = next(&mut slow).await.json().unwrap();
    assert_eq!(
        (oldest, slow.missed()),
        (MESSAGES - 256, u64::from(MESSAGES - 256))
    );
    assert_eq!(quick.missed(), 0);
    for host in [a, b] {
        host.node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_published_or_subscribed_to_is_named() {
    let node = start().await;
    let discovery = "_peer-discovery._p2p._pubsub";
    for topic in ["", &"x".repeat(257), discovery] {
        let subscribed = node.node.subscribe(topic).await;
        assert!(
            matches!(subscribed, Err(SubscribeError::Topic(_))),
            "{topic}"
        );
        let published = node.node.publish(topic, "x").await;
        assert!(matches!(published, Err(PublishError::Topic(_))), "{topic}");
    }
    let large = node.node.publish("news", vec![0; 60 * 1024 + 1]).await;
    assert!(matches!(large, Err(PublishError::TooLarge { .. })));
    let alone_here = node.node.publish("news", "x").await;
    assert!(matches!(alone_here, Err(PublishError::NobodyListens)));
    let mut subscriptions = Vec::new();
    for n in 0..64 {
        subscriptions.push(node.node.subscribe(format!("topic {n}")).await.unwrap());
    }
    let too_many = node.node.subscribe("one more").await;
    assert!(matches!(too_many, Err(SubscribeError::TooMany)));
    // One that is there already, and one in the place of another.
    node.node.subscribe("topic 7").await.unwrap();
    subscriptions.pop();
    node.node.subscribe("one more").await.unwrap();
    node.node.shutdown().await;

    let silent = Host::start(alone(&[TCP]), tokio_executor()).await;
    let refused = silent.node.subscribe("news").await;
    assert!(matches!(refused, Err(SubscribeError::Disabled)));
    let refused = silent.node.publish("news", "x").await;
    assert!(matches!(refused, Err(PublishError::Disabled)));
    silent.node.shutdown().await;
}

/// The largest message goes through, whatever is around it in a frame.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_message_arrives() {
    let (a, b) = (start().await, start().await);
    let mut subscription = b.node.subscribe("news").await.unwrap();
    connect(&a, &b).await;
    publish(&a, "news", &0).await;
    next(&mut subscription).await;
    let large = vec![b'7'; 60 * 1024];
    a.node.publish("news", large.clone()).await.unwrap();
    assert!(next(&mut subscription).await.data == large);
    for host in [a, b] {
        host.node.shutdown().await;
    }
}
