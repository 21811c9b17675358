#![no_main]
#![expect(dead_code, reason = "a part of the manager")]

#[path = "../../../manager/src/webrtc/core/message.rs"]
mod message;
mod seeds;

use libfuzzer_sys::fuzz_target;
use message::{Flag, encode_data, encode_flag};

fn examples() -> Vec<(String, Vec<u8>)> {
    let frames = [encode_data(b"data"), encode_flag(Flag::Fin), encode_flag(Flag::FinAck)];
    vec![("frames".to_owned(), [&[3][..], &frames.concat()].concat())]
}

// The first byte says in which pieces the rest comes.
fuzz_target!(init: seeds::write(examples()), |bytes: &[u8]| {
    if let Some((piece, bytes)) = bytes.split_first() {
        let _ = message::decode_pieces(bytes.chunks(usize::from(*piece).max(1)));
    }
});
