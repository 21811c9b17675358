#![no_main]
#![expect(dead_code, reason = "a part of the manager")]

#[path = "../../../manager/src/webrtc/core/router.rs"]
mod router;
mod seeds;
#[path = "../../../manager/src/webrtc/core/stun.rs"]
mod stun;
#[path = "../../../manager/src/webrtc/core/ufrag.rs"]
mod ufrag;

use libfuzzer_sys::fuzz_target;

fn examples() -> Vec<(String, Vec<u8>)> {
    vec![("check".to_owned(), stun::write_check(&ufrag::Ufrag::random([1; 32])))]
}

fuzz_target!(init: seeds::write(examples()), |bytes: &[u8]| {
    let mut router = router::Router::default();
    let source = ([192, 0, 2, 1], 1).into();
    let first = router.route(source, bytes);
    // Whoever begins has a connection from then on, and nobody else.
    let again = router.route(source, bytes);
    match first {
        router::Route::New(id, _) => assert_eq!(again, router::Route::Connection(id)),
        other => assert!(other == router::Route::Drop && again == other),
    }
});
