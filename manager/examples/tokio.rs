//! A node under tokio that fetches one block: `cargo run --example tokio -- CID PEER_MULTIADDR`.

use anypath::{Config, Node, SessionOptions, libp2p::identity::Keypair, tiered_store};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(cid), Some(peer)) = (arguments.next(), arguments.next()) else {
        return Err("give a CID and the address of a peer that has it".into());
    };
    let directory = std::env::temp_dir().join("anypath-example");
    let store = tiered_store::Store::open(tiered_store::Config::new(directory)).await?;
    let config = Config::builder().private(true).p2p_port(Some(0)).build()?;
    #[expect(
        clippy::disallowed_methods,
        reason = "this program chooses its runtime"
    )]
    let executor = |task| drop(tokio::spawn(task));
    let node = Node::start(config, Keypair::generate_ed25519(), store, executor).await?;

    let session = node.session(SessionOptions::default().peers([peer.parse()?]));
    let block = session.get(cid.parse()?).await?;
    println!("{} bytes, {:?}", block.len(), session.progress());
    node.shutdown().await;
    Ok(())
}
